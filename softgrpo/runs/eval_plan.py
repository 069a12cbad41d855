"""All of an evaluation that can be known, and refused, before its model is loaded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from softgrpo.evaluation import Sampling, tokenize_prompts
from softgrpo.files import read_text
from softgrpo.models import context_length, load_config, load_tokenizer
from softgrpo.runs.comparing import file_stem
from softgrpo.runs.errors import OptionError
from softgrpo.runs.eval_folder import check_output
from softgrpo.runs.eval_options import EvalOptions
from softgrpo.runs.judging import make_judge
from softgrpo.runs.problems import LAB_TASK, load
from softgrpo.runs.strict_yaml import load_yaml
from softgrpo.runs.style import Style, read_style
from softgrpo.runs.trial import try_judge
from softgrpo.tasks import BENCHMARKS, BOXED, Problem, PromptFormat, load_benchmark, load_problems
from softgrpo.tasks.tables import SUFFIXES
from softgrpo.thinking.phases import Markers
from softgrpo.values import check

_PARTS = 4  # batches handed to the engine at a time, for it to keep its batch full
_NUM_GENERATED = 200  # problems of a generator, unless the limit says more or less
_MAX_NEW_TOKENS = 2048


class PlannedTask(NamedTuple):
    """One file of records to be made."""

    name: str  # as in tables
    sampling: Sampling
    settings: dict[str, Any]  # what the records depend on besides


@dataclass(frozen=True)
class EvalPlan:
    """What an evaluation will do."""

    tasks: list[PlannedTask]  # in their order
    output: Path  # the folder of their records
    tokenizer: Any
    longest: int  # most tokens of a prompt and its sample


class _Source(NamedTuple):
    """All problems of one source, and what it says of how to put and to judge them."""

    name: str
    problems: list[Problem]
    prompt: PromptFormat
    verifier: str
    origin: dict[str, Any]


def plan_evaluation(options: EvalOptions) -> EvalPlan:
    """Check options against the problems and the model's tokenizer.

    Raises:
        ValueError: Names the option at fault and what would do.
    """
    style = read_style(options.model, options.thinking)
    if options.plain:
        style = replace(style, chat=False)
    sources = _sources(options, style)
    model = file_stem(options.model.rstrip("/").rpartition("/")[2])
    output = Path(options.output or f"results/{model}-{options.preset or style.thinking.policy}")
    check_output(output)
    where = options.trust_remote_code, options.revision, options.subfolder
    tokenizer = load_tokenizer(options.model, *where)
    tasks = [_plan(source, options, style, tokenizer) for source in sources]
    Markers(style.thinking.think_end, tokenizer)
    longest = _check_context(tasks, context_length(load_config(options.model, *where)))
    return EvalPlan(tasks, output, tokenizer, longest)


def _sources(options: EvalOptions, style: Style) -> list[_Source]:
    """What to evaluate on: benchmarks, a task, or the task that the model was trained on."""
    if options.benchmarks:
        return [_benchmark(name, options) for name in options.benchmarks]
    if options.task:
        is_file = options.task.endswith(SUFFIXES)
        name = Path(options.task).stem if is_file else options.task
        template = options.prompt or (style.prompt.template if style.run else BOXED)
        prompt = replace(style.prompt, template=template)
        origin = {"source": options.task, "options": options.task_options}
        return [_Source(name, _load_task(options.task, options), prompt, "math_verify", origin)]
    if style.run is None:
        raise ValueError(
            "nothing to evaluate on: give --benchmarks (there are "
            f"{', '.join(BENCHMARKS)}) or --task (reasoning_gym:NAME, FILE.jsonl, hub:ORG/NAME)"
        )
    config = style.run
    problems = load(config, "eval", config.num_eval_problems)
    verifier = config.eval_reward or config.rewards[0]
    origin = {"source": config.task, "options": config.task_options}
    return [_Source(str(config.task), problems, style.prompt, verifier, origin)]


def _benchmark(name: str, options: EvalOptions) -> _Source:
    problems = load_benchmark(name, data=options.data, seed=options.seed)
    benchmark = BENCHMARKS[name]
    # A run's own few-shot examples and system message belong to its own task.
    prompt = PromptFormat(separator="\n", template=options.prompt or benchmark.template)
    origin = {"source": "file" if options.data else benchmark.hub}
    return _Source(name, problems, prompt, benchmark.verifier, origin)


def _load_task(source: str, options: EvalOptions) -> list[Problem]:
    given = options.task_options or {}
    if isinstance(given, str):
        given = load_yaml(given, "--task-options")
        check("--task-options", given, dict[str, Any])
    if source == LAB_TASK:
        raise OptionError("task", source, "evaluate a run of it: softgrpo eval RUN")
    count = None
    if source.startswith("reasoning_gym:"):
        count = options.limit or _NUM_GENERATED
    elif source.startswith("hub:"):
        given = {"eval_split": given.get("split", "test"), **given}
    else:
        given = {"eval_source": source, **given}
    return load_problems(source, split="eval", num_problems=count, seed=options.seed, options=given)


def _plan(source: _Source, options: EvalOptions, style: Style, tokenizer: Any) -> PlannedTask:
    """Try how the problems are judged, choose among them, and put them to the model."""
    if style.chat and not tokenizer.chat_template:
        raise ValueError(
            "the model's tokenizer has no chat template; --plain puts the prompts as plain text"
        )
    prompt, verifier = source.prompt, options.verifier or source.verifier
    if options.system_prompt is not None:
        prompt = replace(prompt, system=options.system_prompt)
    put = prompt.messages if style.chat else prompt.text
    think_end = style.thinking.think_end
    judge = make_judge(verifier, put, think_end=think_end)
    try_judge(judge, source.problems[0], style.chat, think_end)
    asked = repr([(p.question, p.answer) for p in source.problems]).encode(errors="replace")
    digest = hashlib.sha256(asked).hexdigest()[:16]
    settings = {
        "model": options.model,
        "revision": options.revision,
        "subfolder": options.subfolder,
        "engine": options.engine,
        "dtype": options.dtype,
        "task": source.name,
        "problems": {**source.origin, "problems": digest, "subset": options.subset},
        "prompt": asdict(prompt),
        "chat": style.chat,
        "verifier": verifier,
    }
    problems = _selected(source.problems, options)
    sampling = Sampling(
        problems=problems,
        prompt_ids=tokenize_prompts(tokenizer, list(map(put, problems)), style.template_options),
        thinking=style.thinking,
        num_samples=options.samples,
        max_new_tokens=options.max_new_tokens or style.max_new_tokens or _MAX_NEW_TOKENS,
        seed=options.seed,
        judge=judge,
        batch_size=_PARTS * options.batch_size,
    )
    return PlannedTask(source.name, sampling, settings)


def _selected(problems: list[Problem], options: EvalOptions) -> list[Problem]:
    """The subset, then up to the limit."""
    spec = options.subset
    if spec and spec.startswith("random:"):
        count = spec.removeprefix("random:")
        if not count.isdigit() or not 1 <= int(count) <= len(problems):
            raise OptionError("subset", spec, f"random:N takes N from 1 to {len(problems)}")
        problems = random.Random(options.seed).sample(problems, int(count))
    elif spec:
        by_id = {problem.id: problem for problem in problems}
        path = Path(spec)
        ids = read_text(path).split() if path.is_file() else spec.split(",")
        if unknown := [name for name in ids if name not in by_id]:
            why = f"no such problem; ids are like {problems[0].id!r}, and random:N draws N of them"
            raise OptionError("subset", unknown[0], why)
        problems = [by_id[name] for name in ids]
    return problems[: options.limit]


def _check_context(tasks: Sequence[PlannedTask], context: int | None) -> int:
    """The most tokens of a prompt and its sample, which the model's context must hold."""
    lengths = {task.name: max(map(len, task.sampling.prompt_ids)) for task in tasks}
    name, longest = max(lengths.items(), key=lambda item: item[1])
    most = tasks[0].sampling.max_new_tokens
    if context is not None and longest + most > context:
        room = context - longest
        raise OptionError(
            "max_new_tokens",
            most,
            f"a prompt of {name} has {longest} tokens and the model's context is {context}; "
            + (f"{room} is the most" if room > 0 else "it does not fit: leave it out by --subset"),
        )
    return longest + most
