"""`softgrpo eval`: a model on benchmarks, recorded sample by sample."""

from __future__ import annotations

import argparse
import hashlib
import random
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softgrpo.cli.compare import file_stem, is_table, load_runs, render
from softgrpo.cli.fields import given_thinking
from softgrpo.evaluation import default_ks, is_records, tokenize_prompts
from softgrpo.files import locked, read_text, write_json, write_whole
from softgrpo.models import (
    context_length,
    default_device,
    load_tokenizer,
    load_weights,
    resolve_model,
)
from softgrpo.rewards import RewardError
from softgrpo.rollout import TransformersEngine
from softgrpo.runs.errors import reward_failed
from softgrpo.runs.problems import LAB_TASK, load
from softgrpo.runs.progress import duration
from softgrpo.runs.recording import Judge, evaluate_to_file, make_judge
from softgrpo.runs.strict_yaml import load_yaml
from softgrpo.runs.style import Style, read_style
from softgrpo.runs.trial import try_judge
from softgrpo.tasks import BENCHMARKS, BOXED, Problem, PromptFormat, load_benchmark, load_problems
from softgrpo.tasks.tables import SUFFIXES
from softgrpo.thinking.phases import Markers
from softgrpo.values import check

_PARTS = 4  # batches handed to the engine at a time, for it to keep its batch full
_NUM_GENERATED = 200  # problems of a generator, unless --limit says more or less

# The published settings (paper, section 5, and its authors' scripts), thought and answer alike.
_PAPER_LIMITS = {"samples": 32, "max_new_tokens": 32768}
_PAPER_SOFT = {"temperature": 1.0, "top_p": 0.95, "top_k": 5, "tau": 0.1}
_PAPER_BASE = {"temperature": 0.6, "top_p": 0.95, "top_k": 30}
PRESETS: dict[str, dict[str, Any]] = {
    "paper-softgrpo": {**_PAPER_LIMITS, "policy": "gumbel", **_PAPER_SOFT},
    "paper-discrete": {**_PAPER_LIMITS, "policy": "discrete", **_PAPER_BASE},
    "paper-soft": {**_PAPER_LIMITS, "policy": "gumbel", **_PAPER_BASE, "tau": 0.5},
}
_SAMPLES, _MAX_NEW_TOKENS = 8, 2048

# Beside the records.
_SUMMARY, _COST = "summary.md", "cost.json"
_CLOCK = "wall_seconds_of_the_last_start"


@dataclass(frozen=True)
class _Task:
    """One file of records to be made.

    Attributes:
        name: As in tables.
        problems: All that are asked for.
        prompt: What stands around the questions.
        verifier: Its name.
        judge: It.
        source: Where the problems come from, for the records' settings.
    """

    name: str
    problems: list[Problem]
    prompt: PromptFormat
    verifier: str
    judge: Judge
    source: Mapping[str, Any]


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the table of what is in the output folder."""
    started, cpu = time.perf_counter(), time.process_time()
    _apply_preset(options)
    thinking = given_thinking(options)
    if options.no_think_end:
        thinking["think_end"] = ()
    style = read_style(options.model, thinking)
    tasks = _tasks(options, style)
    output = Path(options.output or _default_output(options, style))
    _check_output(output)

    tokenizer = load_tokenizer(
        options.model, options.trust_remote_code, options.revision, options.subfolder
    )
    Markers(style.thinking.think_end, tokenizer)
    chat = style.chat and not options.plain
    prompt_ids = {task.name: _prompt_ids(task, tokenizer, chat, style) for task in tasks}
    most = options.max_new_tokens or style.max_new_tokens or _MAX_NEW_TOKENS
    context = context_length(
        options.model, options.trust_remote_code, options.revision, options.subfolder
    )
    longest = _check_context(prompt_ids, most, context)
    engine = _engine(options, tokenizer, longest + most)
    with locked(output):
        _check_output(output)
        if options.overwrite:
            for task in tasks:
                _records(output, task).unlink(missing_ok=True)
        try:
            for task in tasks:
                evaluate_to_file(
                    engine,
                    task.problems,
                    prompt_ids[task.name],
                    style.thinking,
                    _records(output, task),
                    label=task.name,
                    settings=_settings(options, task, chat),
                    num_samples=options.samples,
                    max_new_tokens=most,
                    seed=options.seed,
                    judge=task.judge,
                    batch_size=_PARTS * options.batch_size,
                )
        except KeyboardInterrupt:
            print(f"\n{_what_is_left(output)}", flush=True)
            return 130
        except RewardError as error:
            raise reward_failed(error, _what_is_left(output)) from error
        _report(output, started, cpu)
    return 0


def _what_is_left(output: Path) -> str:
    again = shlex.join(["softgrpo", *sys.argv[1:]])
    return f"what is finished is in {output}; go on with: {again}"


def _apply_preset(options: argparse.Namespace) -> None:
    """A preset gives what the command line leaves open; an answer is sampled like its thought."""
    preset = PRESETS[options.preset] if options.preset else {"samples": _SAMPLES}
    for name, value in preset.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.samples is None or options.samples < 1:
        raise ValueError(f"--samples {options.samples}: must be at least 1")
    for name in ("limit", "max_new_tokens", "batch_size", "batch_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.preset:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(options, f"answer_{name}") is None:
                setattr(options, f"answer_{name}", getattr(options, name))


def _tasks(options: argparse.Namespace, style: Style) -> list[_Task]:
    """What to evaluate on: benchmarks, a task, or the task that the model was trained on."""
    if options.benchmarks:
        return [_benchmark(name.strip(), options, style) for name in options.benchmarks.split(",")]
    if options.task:
        problems = _load_task(options)
        template = options.prompt or (style.prompt.template if style.run else BOXED)
        source = {"source": options.task, "options": options.task_options}
        is_file = options.task.endswith(SUFFIXES)
        name = Path(options.task).stem if is_file else options.task
        return [_make_task(name, problems, template, options.verifier, source, options, style)]
    if style.run is None:
        raise ValueError(
            "nothing to evaluate on: give --benchmarks (there are "
            f"{', '.join(BENCHMARKS)}) or --task (reasoning_gym:NAME, FILE.jsonl, hub:ORG/NAME)"
        )
    config = style.run
    problems = load(config, "eval", config.num_eval_problems)
    verifier = options.verifier or config.eval_reward or config.rewards[0]
    source = {"source": config.task, "options": config.task_options}
    name = str(config.task)
    return [_make_task(name, problems, style.prompt.template, verifier, source, options, style)]


def _benchmark(name: str, options: argparse.Namespace, style: Style) -> _Task:
    problems = load_benchmark(name, data=options.data, seed=options.seed)
    benchmark = BENCHMARKS[name]
    source = {"source": "file" if options.data else ":".join(map(str, benchmark.hub))}
    template, verifier = options.prompt or benchmark.template, options.verifier
    # A run's own few-shot examples and system message belong to its own task.
    plain = replace(style, prompt=PromptFormat(separator="\n"), run=None)
    return _make_task(
        name, problems, template, verifier or benchmark.verifier, source, options, plain
    )


def _make_task(
    name: str,
    problems: list[Problem],
    template: str,
    verifier: str | None,
    source: Mapping[str, Any],
    options: argparse.Namespace,
    style: Style,
) -> _Task:
    prompt = replace(style.prompt, template=template)
    if options.system_prompt is not None:
        prompt = replace(prompt, system=options.system_prompt)
    verifier = verifier or "math_verify"
    chat, think_end = style.chat and not options.plain, style.thinking.think_end
    judge = make_judge(verifier, prompt.messages if chat else prompt.text, think_end=think_end)
    try_judge(judge, problems[0], chat, think_end)
    digest = hashlib.sha256(
        repr([(p.question, p.answer) for p in problems]).encode(errors="replace")
    )
    source = {**source, "problems": digest.hexdigest()[:16], "subset": options.subset}
    return _Task(name, _selected(problems, options), prompt, verifier, judge, source)


def _load_task(options: argparse.Namespace) -> list[Problem]:
    source = options.task
    given = load_yaml(options.task_options, "--task-options") if options.task_options else {}
    check("--task-options", given, dict[str, Any])
    if source == LAB_TASK:
        raise ValueError(f"--task {source}: evaluate a run of it: softgrpo eval RUN")
    count = None
    if source.startswith("reasoning_gym:"):
        count = options.limit or _NUM_GENERATED
    elif source.startswith("hub:"):
        given.setdefault("eval_split", given.get("split", "test"))
    else:
        given.setdefault("eval_source", source)
    return load_problems(source, split="eval", num_problems=count, seed=options.seed, options=given)


def _selected(problems: list[Problem], options: argparse.Namespace) -> list[Problem]:
    """--subset, then --limit."""
    spec = options.subset
    if spec and spec.startswith("random:"):
        count = spec.removeprefix("random:")
        if not count.isdigit() or not 1 <= int(count) <= len(problems):
            raise ValueError(f"--subset {spec}: random:N takes N from 1 to {len(problems)}")
        problems = random.Random(options.seed).sample(problems, int(count))
    elif spec:
        by_id = {problem.id: problem for problem in problems}
        path = Path(spec)
        ids = read_text(path).split() if path.is_file() else spec.split(",")
        if unknown := [name for name in ids if name not in by_id]:
            raise ValueError(
                f"--subset: no problem {unknown[0]!r}; ids are like {problems[0].id!r}, and "
                "random:N draws N of them"
            )
        problems = [by_id[name] for name in ids]
    return problems[: options.limit]


def _prompt_ids(task: _Task, tokenizer: Any, chat: bool, style: Style) -> list[list[int]]:
    if chat and not tokenizer.chat_template:
        raise ValueError(
            "the model's tokenizer has no chat template; --plain puts the prompts as plain text"
        )
    put = task.prompt.messages if chat else task.prompt.text
    prompts = [put(problem) for problem in task.problems]
    return tokenize_prompts(tokenizer, prompts, style.template_options)


def _check_context(
    prompt_ids: Mapping[str, Sequence[Sequence[int]]], most: int, context: int | None
) -> int:
    """The tokens of the longest prompt."""
    lengths = {name: max(map(len, prompts)) for name, prompts in prompt_ids.items()}
    name, longest = max(lengths.items(), key=lambda item: item[1])
    if context is not None and longest + most > context:
        room = context - longest
        raise ValueError(
            f"--max-new-tokens {most}: a prompt of {name} has {longest} tokens and the model's "
            f"context is {context}; "
            + (f"{room} is the most" if room > 0 else "it does not fit: leave it out by --subset")
        )
    return longest


def _engine(options: argparse.Namespace, tokenizer: Any, max_model_len: int) -> Any:
    if options.engine == "vllm":
        if options.batch_tokens is not None:
            raise ValueError("--batch-tokens: vLLM's cache takes what memory it is given")
        if options.subfolder:
            raise ValueError("--subfolder: vLLM opens no subfolder; download it and give its path")
        from softgrpo.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(
            resolve_model(options.model),
            dtype=options.dtype,
            max_model_len=max_model_len,
            max_num_seqs=options.batch_size,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
        )
    model = load_weights(
        options.model,
        getattr(torch, options.dtype),
        options.trust_remote_code,
        options.revision,
        options.subfolder,
    )
    return TransformersEngine(
        model.to(default_device()),
        tokenizer,
        max_batch_size=options.batch_size,
        max_batch_tokens=options.batch_tokens,
    )


def _settings(options: argparse.Namespace, task: _Task, chat: bool) -> dict[str, Any]:
    """What the records depend on, besides thinking, samples, length and seed."""
    return {
        "model": options.model,
        "revision": options.revision,
        "subfolder": options.subfolder,
        "engine": options.engine,
        "dtype": options.dtype,
        "task": task.name,
        "problems": dict(task.source),
        "prompt": asdict(task.prompt),
        "chat": chat,
        "verifier": task.verifier,
    }


def _default_output(options: argparse.Namespace, style: Style) -> str:
    model = file_stem(options.model.rstrip("/").rpartition("/")[2])
    return f"results/{model}-{options.preset or style.thinking.policy}"


def _records(output: Path, task: _Task) -> Path:
    return output / f"{file_stem(task.name)}.jsonl"


def _check_output(output: Path) -> None:
    """Refuse to write over, or into a table with, what no evaluation has written; touches nothing.

    Raises:
        ValueError: The output is a file, or holds files of such names that are not ours.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is a file")
    for pattern, is_ours in (("*.jsonl", is_records), (_SUMMARY, is_table), (_COST, _is_cost)):
        for path in sorted(output.glob(pattern)):
            if not is_ours(path):
                raise ValueError(
                    f"--output {output}: {path.name} there was not written by an evaluation; "
                    "choose another folder"
                )


def _is_cost(path: Path) -> bool:
    """Whether a file begins as what `_report` writes, or is empty."""
    begins = b'{\n  "' + _CLOCK.encode()
    return path.is_file() and path.read_bytes()[: len(begins)] in (b"", begins)


def _report(output: Path, started: float, cpu: float) -> None:
    # The folder may be a run's, whose own samples lie below it.
    runs = load_runs(list(map(str, sorted(output.glob("*.jsonl")))))
    ks = default_ks(runs)
    wall, spent = time.perf_counter() - started, time.process_time() - cpu
    print("\n" + render(runs, ks, "text", None))
    write_whole(output / _SUMMARY, render(runs, ks, "markdown", None) + "\n")
    write_json(output / _COST, {_CLOCK: wall, "cpu_seconds_of_the_last_start": spent})
    print(f"\n{duration(wall)}, {spent:.0f} CPU-seconds; records and summary.md in {output}")
