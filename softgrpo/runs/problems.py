"""The problems of a run: softgrpo.tasks, and the laboratory's own task in the same way."""

from __future__ import annotations

from typing import Any, cast

from softgrpo.runs.recipe import RunConfig
from softgrpo.tasks import Problem, PromptFormat, load_problems
from softgrpo.tasks.problems import Split

LAB_TASK = "lab:chains"


def load(config: RunConfig, split: Split, count: int | None) -> list[Problem]:
    """The training or the held-out problems of a recipe."""
    assert config.task is not None
    if config.task == LAB_TASK:
        return _chains(config, split, count)
    try:
        return load_problems(
            config.task,
            split=split,
            num_problems=count,
            seed=config.problem_seed,
            options=cast(dict[str, Any] | None, config.task_options),
        )
    except ValueError as error:
        # A recipe has two fields for what is one argument there.
        before, argument, after = str(error).partition("num_problems")
        if before or not argument:
            raise
        raise ValueError(f"num_{split}_problems{after}") from error


def prompt_format(config: RunConfig) -> PromptFormat:
    """What stands around the questions."""
    return PromptFormat(
        system=config.system_prompt,
        examples=tuple(tuple(example) for example in cast(list[Any], config.examples or [])),
        template=config.prompt_template,
        separator=config.prompt_separator,
    )


def _chains(config: RunConfig, split: Split, count: int | None) -> list[Problem]:
    from softgrpo.lab.chains import make_problems

    if config.task_options:
        raise ValueError(f"task_options={config.task_options}: {LAB_TASK} has none")
    if count is None:
        raise ValueError(f"num_train_problems: must be set for {LAB_TASK}, which has no end")
    made = make_problems(count, config.problem_seed, "train" if split == "train" else "heldout")
    return [Problem(f"chains/{p.prompt.replace(' ', '')}", p.prompt, p.answer) for p in made]
