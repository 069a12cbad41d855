"""Samples of each problem, which of them are right, and what that says of the model.

Not a benchmark with intervals over seeds and paired tests: one number with its standard error.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softgrpo.rollout import Rollout, RolloutEngine
    from softgrpo.tasks import Problem
    from softgrpo.thinking import ThinkingConfig

Record = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What was sampled and what it cost.

    Attributes:
        records: One dict a sample: problem_id, sample, text, correct, num_tokens, num_soft_tokens,
            finish_reason, thinking_ended_by. The samples of a problem side by side.
        seconds: By the clock.
        cpu_seconds: Of this process, all its threads.
    """

    records: list[Record]
    seconds: float
    cpu_seconds: float

    @property
    def pass_at_1(self) -> float:
        """The mean over problems of the share of right samples."""
        return statistics.fmean(self._shares())

    @property
    def standard_error(self) -> float:
        """Of pass_at_1, clustered by problem: samples of one problem are not independent.

        NaN for a single problem, whose spread is unknown.
        """
        shares = self._shares()
        if len(shares) < 2:
            return math.nan
        return statistics.stdev(shares) / math.sqrt(len(shares))

    @property
    def mean_tokens(self) -> float:
        """Generated tokens of a sample, thought and answer."""
        return statistics.fmean(record["num_tokens"] for record in self.records)

    @property
    def share_closed(self) -> float:
        """The share of samples whose thinking ended, by itself or forced."""
        return statistics.fmean(record["thinking_ended_by"] is not None for record in self.records)

    def summary(self) -> dict[str, float | int]:
        """The numbers without the records."""
        return {
            "pass_at_1": self.pass_at_1,
            "standard_error": self.standard_error,
            "mean_tokens": self.mean_tokens,
            "share_closed": self.share_closed,
            "num_problems": len(self._shares()),
            "num_samples": len(self.records),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def _shares(self) -> list[float]:
        verdicts: dict[str, list[bool]] = {}
        for record in self.records:
            verdicts.setdefault(record["problem_id"], []).append(record["correct"])
        return [statistics.fmean(of_one) for of_one in verdicts.values()]


def evaluate(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    prompts_ids: Sequence[Sequence[int]],
    thinking: ThinkingConfig,
    *,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
    verify: Callable[[Problem, str], bool],
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Sample every problem and verify what comes.

    Args:
        engine: Makes the rollouts.
        problems: What to solve.
        prompts_ids: The token ids of each problem's prompt.
        thinking: How to think and how to answer.
        num_samples: Of each problem.
        max_new_tokens: Limit of a sample, thought and answer together.
        seed: The same seed gives two models the same noise.
        verify: Whether a completion's text solves the problem.
        progress: Called with the number of samples that have just finished.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    rollouts = engine.generate(
        prompts_ids,
        thinking,
        max_new_tokens=max_new_tokens,
        num_generations=num_samples,
        seed=seed,
        progress=progress,
    )
    records = [
        to_record(problems[index // num_samples], index % num_samples, rollout, verify)
        for index, rollout in enumerate(rollouts)
    ]
    return Evaluation(records, time.perf_counter() - clock, time.process_time() - cpu)


def to_record(
    problem: Problem, sample: int, rollout: Rollout, verify: Callable[[Problem, str], bool]
) -> Record:
    """What is kept of one rollout, its trace aside."""
    return {
        "problem_id": problem.id,
        "sample": sample,
        "text": rollout.text,
        "correct": verify(problem, rollout.text),
        "num_tokens": len(rollout.token_ids),
        "num_soft_tokens": int(rollout.trace.is_soft.sum()),
        "finish_reason": rollout.finish_reason,
        "thinking_ended_by": rollout.thinking_ended_by,
    }
