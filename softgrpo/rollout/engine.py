"""What every rollout engine takes and gives. It runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


class RolloutEngine(Protocol):
    """Prompts in, rollouts out."""

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
        """Sample ``num_generations`` sequences of every prompt.

        Args:
            prompts: Token ids. Equal prompts share one prefill.
            config: How to think and how to answer.
            max_new_tokens: Limit of generated steps, thinking and answer together; one, or one of
                each prompt.
            num_generations: Samples of each prompt.
            seed: With a sequence's index it decides its noise, whatever else is in the batch.
            first_sequence: Index of the first sequence, where a larger rollout is made in parts.
            objective: The log-density to report with each step; None reports none.
            on_finished: Called with each sequence's place in the result and its rollout as soon as
                it has ended, in whatever order they end.

        Returns:
            len(prompts) * num_generations rollouts, the samples of a prompt side by side.

        Raises:
            ValueError: A prompt is empty or longer than the context leaves room for.
            NonFiniteLogitsError: Names the step at which the logits were not finite.
        """
        ...


def check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], context: int | None
) -> list[int]:
    """Refuse what no engine can generate; the limit of each prompt.

    Args:
        prompts: Token ids.
        max_new_tokens: Limit of generated steps, one or one of each prompt.
        context: Longest sequence of the model in tokens, None where it names none.

    Raises:
        ValueError: Names what is wrong, with the numbers.
    """
    if isinstance(max_new_tokens, int):
        max_new_tokens = [max_new_tokens] * len(prompts)
    limits = list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens has {len(limits)} limits for {len(prompts)} prompts")
    for prompt, limit in zip(prompts, limits, strict=True):
        if limit < 1:
            raise ValueError(f"max_new_tokens={limit}: must be >= 1")
        if not prompt:
            raise ValueError("a prompt has no tokens")
        if context is not None and len(prompt) + limit > context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={limit} exceed "
                f"the model's context of {context}: shorten one of them"
            )
    return limits


def find_eos_token_ids(declared: int | Sequence[int] | None, tokenizer: Any) -> set[int]:
    """The end-of-sequence tokens a generation config declares, and the tokenizer's (as TRL)."""
    ids = {declared} if isinstance(declared, int) else set(declared or ())
    return ids if tokenizer.eos_token_id is None else ids | {tokenizer.eos_token_id}
