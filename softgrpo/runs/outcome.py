"""What a run came to: evaluation before and after, what it cost, and where everything lies."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from softgrpo.evaluation import Results, describe, paired, share
from softgrpo.files import read_json, write_json
from softgrpo.reports import Style, cell, format_table, interval
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.plan import Plan
from softgrpo.runs.progress import duration
from softgrpo.runs.recording import evaluate_to_file
from softgrpo.values import check

Evaluations = dict[str, Results]  # by decoding


def evaluate_all(engine: Any, plan: Plan, directory: RunDirectory, when: str) -> Evaluations:
    """Evaluate every decoding, without what an earlier start of this run has evaluated.

    Args:
        engine: The trainer's, up to date with its weights.
        plan: Problems, decodings and how to judge.
        directory: Where the records go.
        when: ``before`` or ``after``.
    """
    evaluations = {}
    config = plan.config
    settings = {
        "model": config.model,
        "trained": when == "after",
        "task": config.task,
        "task_options": config.task_options,
        "problem_seed": config.problem_seed,
        "verifier": config.eval_reward or config.rewards[0],
    }
    for name, thinking in plan.decodings.items() if plan.problems else ():
        evaluations[name] = evaluate_to_file(
            engine,
            plan.problems,
            plan.prompt_ids,
            thinking,
            directory.records(when, name),
            label=f"evaluating {when} training, {name}",
            settings=settings,
            num_samples=config.eval_samples,
            max_new_tokens=int(plan.args.max_completion_length or 0),
            seed=plan.args.seed,
            judge=plan.judge,
            batch_size=plan.args.rollout_batch_size,
        )
    return evaluations


def report(
    plan: Plan,
    directory: RunDirectory,
    before: Evaluations,
    after: Evaluations,
    cost: dict[str, Any],
) -> None:
    """Print and save the table with how it was drawn, the cost and the places."""
    summaries = {
        when: {name: results.summary() for name, results in evaluations.items()}
        for when, evaluations in (("before", before), ("after", after))
    }
    write_json(directory.summary, {**summaries, "cost": cost})
    lines = [f"{name}: {value}" for name, value in cost.items()]
    drawn = {"max_new_tokens": plan.args.max_completion_length, "seed": plan.args.seed}
    captions = ["[a, b]: 95% interval over problems"]
    captions += [
        f"{name}: {describe({'thinking': thinking.to_dict(), **drawn})}"
        for name, thinking in plan.decodings.items()
    ]
    if before:
        markdown = table(before, after, "markdown")
        directory.summary.with_suffix(".md").write_text(
            "\n".join([markdown, "", *(f"- {line}" for line in captions + lines), ""]),
            encoding="utf-8",
        )
        print("\n".join(["", table(before, after), "", *captions]))
    print("\n" + "\n".join(lines))
    print(
        f"\nmodel    {directory.model}\ncurves   {directory.curves}\n"
        f"records  {directory.summary.parent}\nmetrics  {directory.metrics}\n"
        f"try it   softgrpo generate {directory.path} PROMPT --show-thoughts"
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


def cost(started: tuple[float, float], tokens: int) -> dict[str, Any]:
    """What this start of the run took.

    Args:
        started: `usage` when it began.
        tokens: Prompt and completion tokens of all training steps.
    """
    clock, cpu = (now - then for now, then in zip(usage(), started, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    values: dict[str, Any] = {
        "wall time": duration(clock),
        "CPU-seconds": round(cpu),
        "training tokens": tokens,
        "peak memory": f"{peak / 2**30:.2f} GiB",
    }
    if torch.cuda.is_available():
        values["peak GPU memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return values
