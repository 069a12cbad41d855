"""Samples of each problem, judged one by one as they are finished. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from softgrpo.evaluation.records import Record

if TYPE_CHECKING:
    from softgrpo.rewards import Judgement
    from softgrpo.rollout import Rollout, RolloutEngine
    from softgrpo.tasks import Problem
    from softgrpo.thinking import ThinkingConfig

_JUDGES = 2  # threads that wait for the verifiers' processes while the engine decodes


@dataclass(frozen=True)
class Sampling:
    """What to sample."""

    problems: Sequence[Problem]
    prompt_ids: Sequence[Sequence[int]]  # the token ids of each problem's prompt
    thinking: ThinkingConfig  # how to think and how to answer
    num_samples: int  # of each problem
    max_new_tokens: int  # limit of a sample, thought and answer together
    seed: int  # with problem and sample it decides the noise: two models meet the same
    # Whether a completion's text solves the problem. Called from several threads.
    judge: Callable[[Problem, str], Judgement]
    batch_size: int  # sequences handed to the engine at a time, at least one problem's

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Problem and sample of every sequence, in order."""
        return self.keys_of(range(len(self.problems)))

    def keys_of(self, part: range) -> list[tuple[str, int]]:
        """The same of some of the problems."""
        return [(self.problems[place].id, i) for place in part for i in range(self.num_samples)]

    @property
    def settings(self) -> dict[str, Any]:
        """What the samples depend on beside the model and the problems, as plain data."""
        return {
            "thinking": self.thinking.to_dict(),
            "num_samples": self.num_samples,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }

    def generate(
        self,
        engine: RolloutEngine,
        part: range,
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> list[Rollout]:
        """The rollouts of some of the problems; see RolloutEngine.generate."""
        return engine.generate(
            self.prompt_ids[part.start : part.stop],
            self.thinking,
            max_new_tokens=self.max_new_tokens,
            num_generations=self.num_samples,
            seed=self.seed,
            first_sequence=part.start * self.num_samples,
            on_finished=on_finished,
        )

    def to_record(self, sequence: int, rollout: Rollout) -> Record:
        """Judge a rollout; what is kept of it, its trace aside."""
        problem = self.problems[sequence // self.num_samples]
        judgement = self.judge(problem, rollout.text)
        return Record(
            problem_id=problem.id,
            sample=sequence % self.num_samples,
            text=rollout.text,
            answer=judgement.answer,
            correct=judgement.correct,
            num_tokens=len(rollout.token_ids),
            num_soft_tokens=int(rollout.trace.is_soft.sum()),
            finish_reason=rollout.finish_reason,
            thinking_ended_by=rollout.thinking_ended_by,
            seed=self.seed,
            sequence=sequence,
        )


def deal(
    sampling: Sampling, recorded: Container[tuple[str, int]], processes: int = 1
) -> list[list[range]]:
    """Which problems each process has to sample, in parts that go to its engine as they are.

    A part is as many problems as fill a batch, whatever the number of processes, and fewer only
    where there is no full batch for each: what is in a batch has a say in a model's rounding. For
    the same reason a part that is recorded in part is made again as a whole. Parts are dealt out in
    turn.

    Args:
        sampling: What to sample.
        recorded: Keys of the records that are there.
        processes: Among how many it is dealt out.

    Returns:
        For each process the parts, ranges of the problems' places.
    """
    count = len(sampling.problems)
    size = max(1, min(sampling.batch_size // sampling.num_samples, math.ceil(count / processes)))
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    missing = [part for part in parts if any(key not in recorded for key in sampling.keys_of(part))]
    return [missing[process::processes] for process in range(processes)]


def sample(
    engine: RolloutEngine,
    sampling: Sampling,
    parts: Sequence[range],
    recorded: Container[tuple[str, int]],
    on_record: Callable[[Record], object],
) -> None:
    """Sample problems, part by part; of what is recorded already there is no second record.

    Where the engine reproduces, the records do not depend on where a run was killed.

    Args:
        engine: Makes the rollouts.
        sampling: What to sample.
        parts: Which of its problems, as `deal` gives them.
        recorded: Keys of the records that are there.
        on_record: Called with each new record, from several threads.
    """
    keys = sampling.keys

    def judge(sequence: int, rollout: Rollout) -> None:
        on_record(sampling.to_record(sequence, rollout))

    with ThreadPoolExecutor(_JUDGES) as pool:
        judged: list[Future[None]] = []

        def on_finished(first: int, index: int, rollout: Rollout) -> None:
            if keys[first + index] not in recorded:
                judged.append(pool.submit(judge, first + index, rollout))

        for part in parts:
            first = part.start * sampling.num_samples
            sampling.generate(engine, part, partial(on_finished, first))
            for future in judged:
                future.result()
            judged.clear()
