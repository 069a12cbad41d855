"""What a run came to: evaluation before and after, what it cost, and where everything lies."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch

from softgrpo.cli.evaluating import evaluate_to_file
from softgrpo.cli.plan import Plan
from softgrpo.cli.progress import duration
from softgrpo.cli.run_directory import RunDirectory
from softgrpo.evaluation import describe
from softgrpo.files import write_json
from softgrpo.reports import before_after_table

Summaries = dict[str, dict[str, float | int]]


def evaluate_all(engine: Any, plan: Plan, directory: RunDirectory, when: str) -> Summaries:
    """Evaluate every decoding, without what an earlier start of this run has evaluated.

    Args:
        engine: The trainer's, up to date with its weights.
        plan: Problems, decodings and how to judge.
        directory: Where the records go.
        when: ``before`` or ``after``.
    """
    summaries = {}
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
        results = evaluate_to_file(
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
        summaries[name] = results.summary()
    return summaries


def report(
    plan: Plan,
    directory: RunDirectory,
    before: Summaries,
    after: Summaries,
    cost: dict[str, Any],
) -> None:
    """Print and save the table with how it was drawn, the cost and the places."""
    write_json(directory.summary, {"before": before, "after": after, "cost": cost})
    lines = [f"{name}: {value}" for name, value in cost.items()]
    drawn = {"max_new_tokens": plan.args.max_completion_length, "seed": plan.args.seed}
    captions = [
        f"{name}: {describe({'thinking': thinking.to_dict(), **drawn})}"
        for name, thinking in plan.decodings.items()
    ]
    if before:
        markdown = before_after_table(before, after, "markdown")
        directory.summary.with_suffix(".md").write_text(
            "\n".join([markdown, "", *(f"- {line}" for line in captions + lines), ""]),
            encoding="utf-8",
        )
        print("\n".join(["", before_after_table(before, after), "", *captions]))
    print("\n" + "\n".join(lines))
    print(
        f"\nmodel    {directory.model}\ncurves   {directory.curves}\n"
        f"records  {directory.summary.parent}\nmetrics  {directory.metrics}\n"
        f"try it   softgrpo generate {directory.path} PROMPT --show-thoughts"
    )


def former_cost(directory: RunDirectory) -> dict[str, Any] | None:
    """What the start that trained took, as it reported; None where it came to no report."""
    if not directory.summary.exists():
        return None
    return json.loads(directory.summary.read_text(encoding="utf-8"))["cost"]


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
