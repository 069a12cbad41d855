"""Samples of each problem, judged one by one as they are finished. Knows no file."""

from __future__ import annotations

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
    """What to sample.

    Attributes:
        problems: What to solve.
        prompt_ids: The token ids of each problem's prompt.
        thinking: How to think and how to answer.
        num_samples: Of each problem.
        max_new_tokens: Limit of a sample, thought and answer together.
        seed: With problem and sample it decides the noise: two models meet the same.
        judge: Whether a completion's text solves the problem. Called from several threads.
        batch_size: Sequences handed to the engine at a time, at least one problem's.
    """

    problems: Sequence[Problem]
    prompt_ids: Sequence[Sequence[int]]
    thinking: ThinkingConfig
    num_samples: int
    max_new_tokens: int
    seed: int
    judge: Callable[[Problem, str], Judgement]
    batch_size: int

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Problem and sample of every sequence, in order."""
        return [(problem.id, i) for problem in self.problems for i in range(self.num_samples)]

    @property
    def settings(self) -> dict[str, Any]:
        """What the samples depend on beside the model and the problems, as plain data."""
        return {
            "thinking": self.thinking.to_dict(),
            "num_samples": self.num_samples,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }

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


def sample(
    engine: RolloutEngine,
    sampling: Sampling,
    recorded: Container[tuple[str, int]],
    on_record: Callable[[Record], object],
) -> None:
    """Sample every problem, but for what is recorded already.

    Problems go to the engine in parts that depend on `batch_size` and `num_samples` alone. A part
    that an earlier start has recorded in part is generated again as a whole, since a model's
    rounding depends on what is in the batch, and only its missing samples are records. So where
    the engine reproduces, the records do not depend on where a run was killed.

    Args:
        engine: Makes the rollouts.
        sampling: What to sample.
        recorded: Keys of the records that are there.
        on_record: Called with each new record, from several threads.
    """
    keys, num_samples = sampling.keys, sampling.num_samples

    def judge(sequence: int, rollout: Rollout) -> None:
        on_record(sampling.to_record(sequence, rollout))

    with ThreadPoolExecutor(_JUDGES) as pool:
        judged: list[Future[None]] = []

        def on_finished(first: int, index: int, rollout: Rollout) -> None:
            if keys[first + index] not in recorded:
                judged.append(pool.submit(judge, first + index, rollout))

        size = max(1, sampling.batch_size // num_samples)
        for start in range(0, len(sampling.problems), size):
            prompts = sampling.prompt_ids[start : start + size]
            first = start * num_samples
            if all(key in recorded for key in keys[first : first + len(prompts) * num_samples]):
                continue
            engine.generate(
                prompts,
                sampling.thinking,
                max_new_tokens=sampling.max_new_tokens,
                num_generations=num_samples,
                seed=sampling.seed,
                first_sequence=first,
                on_finished=partial(on_finished, first),
            )
            for future in judged:
                future.result()
            judged.clear()
