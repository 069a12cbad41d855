"""What a run came to: evaluation before and after, what it cost, and where everything lies."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softgrpo.evaluation import Results, describe, paired, share
from softgrpo.files import read_json, write_json
from softgrpo.planning.devices import gib
from softgrpo.reports import Style, cell, format_table, interval
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.display import Display, duration
from softgrpo.runs.estimate import Estimate
from softgrpo.runs.plan import Plan
from softgrpo.runs.recording import record
from softgrpo.values import check

Evaluations = dict[str, Results]  # by decoding


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: The run's, from which it is resumed.
        model: The final model, in Hugging Face format, once the run is whole.
        metrics: A JSON line a log.
        curves: Their picture.
        records: The folder of every evaluated sample, with summary.json and summary.md.
        step: Optimizer steps made.
        before, after: Results of the evaluations by decoding. Empty where there was none (yet).
        cost: Of the start that trained: its wall time, CPU-seconds, training tokens, peak memory,
            and what was estimated of the run. Empty in other processes than the first.
        interrupted: Whether it was stopped by Ctrl-C or SIGTERM.
    """

    folder: Path
    model: Path
    metrics: Path
    curves: Path
    records: Path
    step: int = 0
    before: Evaluations = field(default_factory=dict)
    after: Evaluations = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False


def evaluate_all(
    engine: Any, plan: Plan, directory: RunDirectory, when: str, display: Display
) -> Evaluations:
    """Evaluate every decoding, without what an earlier start of this run has evaluated.

    Args:
        engine: The trainer's, up to date with its weights.
        plan: What to sample.
        directory: Where the records go.
        when: ``before`` or ``after``.
        display: Where it says how it goes.
    """
    config = plan.config
    settings = {
        "model": config.model,
        "trained": when == "after",
        "task": config.task,
        "task_options": config.task_options,
        "problem_seed": config.problem_seed,
        "verifier": config.eval_reward or config.rewards[0],
    }
    return {
        name: record(
            engine,
            sampling,
            directory.records(when, name),
            settings,
            f"evaluating {when} training, {name}",
            display,
        )
        for name, sampling in plan.decodings.items()
    }


def report(plan: Plan, directory: RunDirectory, outcome: Outcome, display: Display) -> None:
    """Tell and save the table with how it was drawn, the cost and the places."""
    before, after = outcome.before, outcome.after
    summaries = {
        when: {name: results.summary() for name, results in evaluations.items()}
        for when, evaluations in (("before", before), ("after", after))
    }
    write_json(directory.summary, {**summaries, "cost": outcome.cost})
    lines = [f"{name}: {value}" for name, value in outcome.cost.items()]
    captions = ["[a, b]: 95% interval over problems"]
    captions += [f"{name}: {describe(s.settings)}" for name, s in plan.decodings.items()]
    if before:
        markdown = table(before, after, "markdown")
        directory.summary.with_suffix(".md").write_text(
            "\n".join([markdown, "", *(f"- {line}" for line in captions + lines), ""]),
            encoding="utf-8",
        )
        display.say("\n".join(["", table(before, after), "", *captions]))
    display.say("\n" + "\n".join(lines))
    display.say(
        f"\nmodel    {outcome.model}\ncurves   {outcome.curves}\n"
        f"records  {outcome.records}\nmetrics  {outcome.metrics}\n"
        f"try it   softgrpo generate {outcome.folder} PROMPT --show-thoughts"
    )


def table(before: Evaluations, after: Evaluations, style: Style = "text") -> str:
    """One row a decoding: pass@1 and its change by problem, tokens, and how samples ended.

    Args:
        before: Results by decoding.
        after: Of the same decodings and problems after training.
        style: See softgrpo.reports.format_table.
    """
    columns = "pass@1 before", "after", "change", "tokens", "thinking closed", "truncated"
    rows = [[name, *_cells(first, after[name])] for name, first in before.items()]
    return format_table(["decoding", *columns], rows, style)


def _cells(first: Results, second: Results) -> list[str]:
    both = first, second
    rates = [share(list(results.pass_at(1).values())) for results in both]
    change = paired(first, second, k=1)
    assert change is not None  # a run's problems are the same before and after
    difference = change.difference
    return [
        *(interval(rate.mean, rate.low, rate.high) for rate in rates),
        interval(difference.mean, difference.low, difference.high, signed=True),
        " -> ".join(f"{results.mean_tokens:.1f}" for results in both),
        " -> ".join(cell(results.share_closed, ".0%") for results in both),
        " -> ".join(cell(results.share_truncated, ".0%") for results in both),
    ]


def former_cost(directory: RunDirectory) -> dict[str, Any] | None:
    """What the start that trained took, as it reported; None where it came to no report."""
    if not directory.summary.exists():
        return None
    summary = read_json(directory.summary)
    check(str(directory.summary), summary, dict)
    return summary.get("cost")


def usage() -> tuple[float, float]:
    """Seconds by the clock, and of the processor in this process and those it has ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in spent)


def cost(started: tuple[float, float], tokens: int, estimated: Estimate | None) -> dict[str, Any]:
    """What this start of the run took.

    Args:
        started: `usage` when it began.
        tokens: Prompt and completion tokens of all training steps.
        estimated: What was said of the run when it started.
    """
    clock, cpu = (now - then for now, then in zip(usage(), started, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    values: dict[str, Any] = {
        "wall time": duration(clock),
        "CPU-seconds": round(cpu),
        "training tokens": tokens,
        "peak memory": f"{gib(peak)} GiB",
    }
    if torch.cuda.is_available():
        values["peak GPU memory"] = f"{gib(torch.cuda.max_memory_allocated())} GiB"
    return values | (estimated.cost if estimated else {})
