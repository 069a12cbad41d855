"""What every rollout engine takes and gives. It runs nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from softgrpo.rollout.request import Request
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import ThinkingEnd
from softgrpo.thinking.trace import SoftTrace

FinishReason = Literal["stop", "length"]


class NonFiniteLogitsError(RuntimeError):
    """The model's logits are NaN or infinite: nothing can be sampled from them."""


@dataclass(frozen=True)
class Rollout:
    """One generated sequence.

    Attributes:
        prompt_ids: The prompt's token ids.
        token_ids: The reported token of each of the T steps, the ending token included.
        text: They, decoded without special tokens.
        trace: The T recorded steps, one row.
        logps: T log-densities in nats under the objective asked for, else None.
        finish_reason: ``stop`` at an end-of-sequence token, ``length`` at the limit.
        thinking_ended_by: ``marker``, ``budget`` or ``cold_stop``; None when it never ended.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    trace: SoftTrace
    logps: list[float] | None
    finish_reason: FinishReason
    thinking_ended_by: ThinkingEnd | None


class RolloutEngine(ABC):
    """Requests in, rollouts out."""

    @abstractmethod
    def run(
        self, requests: Sequence[Request], on_finished: Callable[[int, Rollout], object]
    ) -> None:
        """Generate the sequences that are asked for, each under settings of its own.

        Args:
            requests: Equal prompts share one prefill; equal settings are drawn together.
            on_finished: Called with each one's place in ``requests`` and its rollout as soon as it
                has ended, in whatever order they end.

        Raises:
            ValueError: A prompt is empty or longer than the context leaves room for, or the engine
                cannot do what is asked for; names it.
            NonFiniteLogitsError: Names the step at which the logits were not finite.
        """

    @abstractmethod
    def sync(self) -> None:
        """Take over the weights of the model in training; nothing to do where they are its own.

        Where that model is sharded every process must call it: the shards are gathered.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: ThinkingConfig,
        *,
        max_new_tokens: int | Sequence[int],
        num_generations: int = 1,
        seed: int = 0,
        first_sequence: int = 0,
        objective: Objective | None = None,
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> list[Rollout]:
        """Sample ``num_generations`` sequences of every prompt, all under the same settings.

        Args:
            prompts: Token ids. Equal prompts share one prefill.
            config: How to think and how to answer.
            max_new_tokens: Limit of generated steps, thinking and answer together; one, or one of
                each prompt.
            num_generations: Samples of each prompt.
            seed: With a sequence's index it decides its noise, whatever else is in the batch.
            first_sequence: Index of the first sequence, where a larger rollout is made in parts.
            objective: The log-density to report with each step; None reports none.
            on_finished: As in ``run``; the places are those of the result.

        Returns:
            len(prompts) * num_generations rollouts, the samples of a prompt side by side.

        Raises:
            ValueError, NonFiniteLogitsError: As in ``run``; not as many limits as prompts.
        """
        limits = max_new_tokens
        if isinstance(limits, int):
            limits = [limits] * len(prompts)
        if len(limits) != len(prompts):
            raise ValueError(f"max_new_tokens has {len(limits)} limits for {len(prompts)} prompts")
        samples = [
            sample
            for sample in zip(map(tuple, prompts), limits, strict=True)
            for _ in range(num_generations)
        ]
        requests = [
            Request(prompt, config, limit, objective, seed, index)
            for index, (prompt, limit) in enumerate(samples, start=first_sequence)
        ]
        rollouts: dict[int, Rollout] = {}

        def keep(place: int, rollout: Rollout) -> None:
            rollouts[place] = rollout
            if on_finished is not None:
                on_finished(place, rollout)

        self.run(requests, keep)
        return [rollouts[place] for place in range(len(requests))]


def check_requests(requests: Iterable[Request], context: int | None) -> None:
    """Refuse what no engine can generate.

    Args:
        requests: What is asked for.
        context: Longest sequence of the model in tokens, None where it names none.

    Raises:
        ValueError: Names what is wrong, with the numbers.
    """
    for request in requests:
        length, limit = len(request.prompt), request.limit
        if limit < 1:
            raise ValueError(f"max_new_tokens={limit}: must be >= 1")
        if not length:
            raise ValueError("a prompt has no tokens")
        if context is not None and length + limit > context:
            raise ValueError(
                f"a prompt of {length} tokens and max_new_tokens={limit} exceed "
                f"the model's context of {context}: shorten one of them"
            )


def find_eos_token_ids(declared: int | Sequence[int] | None, tokenizer: Any) -> set[int]:
    """The end-of-sequence tokens a generation config declares, and the tokenizer's (as TRL)."""
    ids = {declared} if isinstance(declared, int) else set(declared or ())
    return ids if tokenizer.eos_token_id is None else ids | {tokenizer.eos_token_id}
