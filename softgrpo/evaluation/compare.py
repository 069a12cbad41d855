"""Runs side by side: every metric of each, and paired tests between any two on the same task."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from softgrpo.evaluation.results import Results
from softgrpo.evaluation.statistics import Comparison, Estimate, compare_paired, share


@dataclass(frozen=True)
class Run:
    """One evaluation under a name."""

    name: str  # distinct within a task
    task: str  # the benchmark or other task
    results: Results


@dataclass(frozen=True)
class Score:
    """A run's numbers on one task."""

    run: str
    task: str  # ``average``: the mean over the run's tasks
    num_problems: int
    num_samples: int  # of each problem
    pass_at: dict[int, Estimate]  # by k, with 95% intervals over problems
    maj_at: dict[int, Estimate]  # the same; empty where the verifier does not tell answers
    first: dict[int, float]  # by k: right ones among the first k, as the paper counts them
    mean_tokens: float  # of a sample
    mean_tokens_of_correct: float  # of a right one
    share_closed: float  # of samples whose thinking ended; NaN where no marker ends it
    share_truncated: float  # of samples that met their limit


@dataclass(frozen=True)
class Pair:
    """Two runs on the problems of one task that both have: `second` minus `first`."""

    task: str
    metric: str
    first: str
    second: str
    comparison: Comparison


def default_ks(runs: Sequence[Run]) -> list[int]:
    """1, 16 and 32 where there are so many samples; else 1 and as many as all runs have."""
    most = min(run.results.num_samples for run in runs)
    paper = [k for k in (16, 32) if k <= most]
    return [1, *(paper or [most] * (most > 1))]


def score(runs: Sequence[Run], task: str, ks: Sequence[int]) -> Score:
    """All metrics of a run on a task, or its mean over some, each weighing the same.

    Args:
        runs: One run's, a task each; the paper's averages weigh its tasks like this.
        task: What the result is called.
        ks: For pass@k, first-k and maj@k.

    Raises:
        ValueError: A problem has fewer samples than k; names run and task.
    """
    for run in runs:
        if max(ks) > run.results.num_samples:
            raise ValueError(
                f"k={max(ks)}: {run.name} has {run.results.num_samples} samples of a problem of "
                f"{run.task}; choose a smaller k or evaluate with more samples"
            )
    every = [run.results for run in runs]
    more = [k for k in ks if k > 1]
    can_vote = all(results.can_vote for results in every)
    return Score(
        run=runs[0].name,
        task=task,
        num_problems=sum(len(r.by_problem) for r in every),
        num_samples=min(r.num_samples for r in every),
        pass_at={k: share(*(list(r.pass_at(k).values()) for r in every)) for k in ks},
        maj_at={k: share(*(list(r.maj_at(k).values()) for r in every)) for k in more}
        if can_vote
        else {},
        first={
            k: statistics.fmean(statistics.fmean(r.first(k).values()) for r in every) for k in more
        },
        mean_tokens=statistics.fmean(r.mean_tokens for r in every),
        mean_tokens_of_correct=statistics.fmean(r.mean_tokens_of_correct for r in every),
        share_closed=statistics.fmean(r.share_closed for r in every),
        share_truncated=statistics.fmean(r.share_truncated for r in every),
    )


def paired_tests(runs: Sequence[Run], ks: Sequence[int]) -> list[Pair]:
    """Every two runs on the same task, for pass@k of the smallest and the largest k."""
    pairs = []
    for first, second in itertools.combinations(runs, 2):
        if first.task != second.task:
            continue
        for k in sorted({min(ks), max(ks)}):
            if comparison := paired(first.results, second.results, k):
                pairs.append(Pair(first.task, f"pass@{k}", first.name, second.name, comparison))
    return pairs


def paired(first: Results, second: Results, k: int) -> Comparison | None:
    """pass@k of the second minus the first, on the problems of both; None where there are none."""
    a, b = first.pass_at(k), second.pass_at(k)
    common = [problem for problem in a if problem in b]
    return compare_paired([a[p] for p in common], [b[p] for p in common]) if common else None
