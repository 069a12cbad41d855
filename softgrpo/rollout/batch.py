"""Sequences decoded together: prefill, one step after the other, bookkeeping, the trace.

The engine's inside. A step is drawn by softgrpo.thinking; here it is decided which sequences run,
which have ended, and what the model is fed next. As soon as enough places are free the next waiting
sequences take them, those with the highest limits first, else in order: so the places are full for
as long as can be known. Nothing depends on time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrpo.replay.ancestors import narrow_layers
from softgrpo.replay.embeddings import mix
from softgrpo.replay.forward import position_ids
from softgrpo.replay.logps import replay_logits
from softgrpo.rollout.attention import grouped_attention, rows_of_a_block
from softgrpo.rollout.cache import KeyValues, SlotCache
from softgrpo.rollout.engine import FinishReason, NonFiniteLogitsError, Rollout
from softgrpo.rollout.prepacked import prepacked
from softgrpo.rollout.steps import advance
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.noise import NoiseStream
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers, ThinkingPhase
from softgrpo.thinking.policies import POLICIES
from softgrpo.thinking.step import SoftStep
from softgrpo.thinking.trace import SoftTrace

Prompt = tuple[int, ...]

# A beginning that all prompts share (few-shot examples) is worth a forward of its own from here.
_MIN_SHARED = 16
# Tokens prefilled at a time, which bounds the memory of their activations.
_PREFILL_TOKENS = 8192
# Waiting sequences are let in once this share of the places is free, several prompts a prefill.
_REFILL_SHARE = 0.125


@dataclass
class _Sequence:
    """A sequence that runs.

    Attributes:
        index: Its place in the result.
        slot: Its place in the recorded tensors.
        noise: Its draws.
        phase: Whether it still thinks.
        length: Steps drawn.
    """

    index: int
    slot: int
    noise: NoiseStream
    phase: ThinkingPhase
    length: int = 0


@dataclass
class _Prefilled:
    """A prompt that sequences may begin from.

    Attributes:
        logits: [V] of the first step.
        states: Keys and values.
    """

    logits: Tensor
    states: KeyValues


class DecodingBatch:
    """Sequences decoded together, from the first prefill to the last token.

    Args:
        model: A causal LM.
        prompts: Token ids, one list a sequence.
        config: How to think and how to answer.
        markers: The config's end markers under the model's tokenizer.
        eos_token_ids: Tokens that end a sequence.
        limits: Most generated steps of each sequence.
        slots: Sequences that run at a time.
        capacity: Columns of the key-value cache; see ``SlotCache``.
        seed: Seed of the rollout.
        first_sequence: Index of the first sequence in it.
        objective: The log-density to record with each step, or None.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        config: ThinkingConfig,
        *,
        markers: Markers,
        eos_token_ids: set[int],
        limits: Sequence[int],
        slots: int,
        capacity: int,
        seed: int,
        first_sequence: int = 0,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.config, self.markers = model, config, markers
        self.prompts: list[Prompt] = [tuple(prompt) for prompt in prompts]
        self.eos_token_ids, self.limits, self.objective = eos_token_ids, limits, objective
        self.embedding = self.model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.seed, self.first_sequence = seed, first_sequence

        self.cache = SlotCache(model.config, slots, capacity)
        self._block = rows_of_a_block(model) or slots
        self._running: list[_Sequence] = []  # in the order of the cache's rows
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: -limits[i]))
        self._free = list(range(slots))[::-1]
        self._min_free = max(1, int(_REFILL_SHARE * slots))
        self._prefilled: dict[Prompt, _Prefilled] = {}  # those that sequences still wait for
        self._num_waiting = Counter(self.prompts)
        self._shared: KeyValues | None = None  # of the beginning that all prompts share

        num_columns = 1 if config.policy == "discrete" else int(config.top_k or 1)
        hidden_size = self.embedding.weight.shape[1]
        self._noise_width = POLICIES[config.policy].noise_width(num_columns, hidden_size)
        size = (slots, max(limits))
        self.ids = torch.zeros(*size, num_columns, dtype=torch.int32, device=self.device)
        self.scores = torch.zeros(*size, num_columns, device=self.device)
        self.support = torch.zeros(*size, num_columns, dtype=torch.bool, device=self.device)
        self.is_soft = torch.zeros(*size, dtype=torch.bool, device=self.device)
        self.logps = torch.zeros(*size, device=self.device)
        self.embedding_noise: Tensor | None = None
        if config.policy == "embedding_gaussian":
            self.embedding_noise = torch.zeros(*size, hidden_size, device=self.device)

    def run(
        self,
        decode: Callable[..., str],
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> Iterator[tuple[SoftStep, Tensor]]:
        """Decode until every sequence has ended; yields each step of the rows running and is_soft.

        Args:
            decode: The tokenizer's.
            on_finished: Called with the place of a sequence and its rollout as soon as it has
                ended.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with grouped_attention(self.model), prepacked(self.model, sum(self.limits)):
                yield from self._decode(decode, on_finished)
        finally:
            self.model.train(was_training)

    def _decode(
        self, decode: Callable[..., str], on_finished: Callable[[int, Rollout], object] | None
    ) -> Iterator[tuple[SoftStep, Tensor]]:
        logits: list[Tensor] = []
        self._share_beginning()
        while self._running or self._waiting:
            logits += self._admit()
            # A copy of the logits for nothing would cost a CPU as much as a tenth of the step.
            step, is_soft = self._step(torch.cat(logits) if len(logits) > 1 else logits[0])
            yield step, is_soft
            reasons = self._finish_reasons(step)
            for sequence, reason in zip(self._running, reasons, strict=True):
                if reason is None:
                    continue
                if on_finished is not None:
                    on_finished(sequence.index, self._rollout(sequence, reason, decode))
                self._free.append(sequence.slot)
            ended = [row for row, reason in enumerate(reasons) if reason is not None]
            staying = self.cache.order_without(ended, self._block)
            inputs = mix(self.embedding, step.ids, step.weights, step.embedding_noise)
            if ended:
                self._running = [self._running[row] for row in staying]
                self.cache.select(staying)
                inputs = inputs[staying]
            logits = [self._next_logits(inputs)] if staying else []

    # Prefill --------------------------------------------------------------------------------------
    def _admit(self) -> list[Tensor]:
        """Let waiting sequences in where enough places are free; their first steps' logits."""
        if self._running and len(self._free) < self._min_free or not self._waiting:
            return []
        count = min(len(self._free), len(self._waiting))
        indices = [self._waiting.popleft() for _ in range(count)]
        prompts = Counter(self.prompts[index] for index in indices)  # in order of appearance
        self._prefill([prompt for prompt in prompts if prompt not in self._prefilled])
        logits = []
        # The longest first, so that what runs is moved to make room for it and then not again.
        for prompt in sorted(prompts, key=len, reverse=True):
            self.cache.append(self._prefilled[prompt].states, prompts[prompt])
            logits.append(self._prefilled[prompt].logits.expand(prompts[prompt], -1))
            self._running += [self._begin(i) for i in indices if self.prompts[i] == prompt]
            self._num_waiting[prompt] -= prompts[prompt]
            if not self._num_waiting[prompt]:
                del self._prefilled[prompt]
        return logits

    def _begin(self, index: int) -> _Sequence:
        noise = NoiseStream(self.seed, self.first_sequence + index, self._noise_width)
        return _Sequence(index, self._free.pop(), noise, ThinkingPhase(self.markers, self.config))

    def _share_beginning(self) -> None:
        """What all prompts begin with, once."""
        if narrow_layers(self.model.config.get_text_config()):
            return  # a window counts columns, also those between this and the end of its prompt
        shared = _shared_prefix(list(self._num_waiting))
        if shared:
            ids = torch.tensor([self.prompts[0][:shared]], device=self.device)
            cache = SlotCache(self.model.config, 1, shared)
            mask = torch.ones_like(ids)
            self._forward(cache, mask, position_ids(mask), input_ids=ids)
            self._shared = cache.extract(0, torch.arange(shared, device=self.device))

    def _prefill(self, prompts: list[Prompt]) -> None:
        """Each of these prompts once, as many together as the memory of activations allows."""
        while prompts:
            count = max(1, _PREFILL_TOKENS // max(map(len, prompts)))
            self._prefill_together(prompts[:count])
            prompts = prompts[count:]

    def _prefill_together(self, prompts: list[Prompt]) -> None:
        shared = 0 if self._shared is None else self._shared[0][0].shape[1]
        longest = max(map(len, prompts)) - shared
        cache = SlotCache(self.model.config, len(prompts), shared + longest)
        if self._shared is not None:
            cache.append(self._shared, len(prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), shared + longest, dtype=torch.long)
        mask[:, :shared] = 1
        for i, prompt in enumerate(prompts):
            suffix = prompt[shared:]
            ids[i, longest - len(suffix) :] = torch.tensor(suffix)
            mask[i, shared + longest - len(suffix) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = position_ids(mask)
        size = max(1, _PREFILL_TOKENS // len(prompts))
        for start in range(0, longest, size):
            part = ids[:, start : start + size]
            end = shared + start + part.shape[1]
            logits = self._forward(
                cache, mask[:, :end], positions[:, end - part.shape[1] : end], input_ids=part
            )
        for i, prompt in enumerate(prompts):
            states = cache.extract(i, mask[i].nonzero()[:, 0])
            self._prefilled[prompt] = _Prefilled(logits[i], states)

    # Steps ----------------------------------------------------------------------------------------
    def _next_logits(self, inputs: Tensor) -> Tensor:
        """The model's answer to one more input [N, D] of every running sequence."""
        self.cache.make_room()
        window, starts = self.cache.window, torch.tensor(self.cache.starts)[:, None]
        mask = torch.arange(window.start, window.end + 1) >= starts
        positions = (window.end - starts).to(self.device)
        return self._forward(
            self.cache, mask.to(self.device), positions, inputs_embeds=inputs[:, None]
        )

    def _forward(
        self, cache: SlotCache, attention_mask: Tensor, positions: Tensor, **inputs: Tensor
    ) -> Tensor:
        """Last position's logits [rows, V]; attention_mask ends with the inputs, at ``positions``.

        The model itself is called, never a part of it: FSDP2 wants its root to run first.
        """
        (tokens,) = inputs.values()
        logits = self.model(
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        ).logits[:, -1]
        cache.advance(tokens.shape[1])
        return logits

    def _step(self, logits: Tensor) -> tuple[SoftStep, Tensor]:
        """Draw, force or sample one step of every running sequence, and record it."""
        noise = torch.from_numpy(np.stack([sequence.noise.next() for sequence in self._running]))
        phases = [sequence.phase for sequence in self._running]
        step, is_soft = advance(logits, noise.to(self.device), self.config, phases)
        self._check_finite(step)
        self._record(logits, step, is_soft)
        return step, is_soft

    def _record(self, logits: Tensor, step: SoftStep, is_soft: Tensor) -> None:
        places = torch.tensor([(x.slot, x.length) for x in self._running], device=self.device)
        place = places.unbind(1)
        self.ids[place] = step.ids.int()
        self.scores[place] = step.scores.float()
        self.support[place] = step.support
        self.is_soft[place] = is_soft
        if self.embedding_noise is not None and step.embedding_noise is not None:
            self.embedding_noise[place] = step.embedding_noise
        if self.objective is not None:
            self.logps[place] = replay_logits(
                logits,
                step.ids,
                step.scores.float(),
                step.support,
                is_soft,
                self.objective,
                step.embedding_noise,
                self.embedding,
            ).float()

    def _finish_reasons(self, step: SoftStep) -> list[FinishReason | None]:
        """Count the step; why each sequence has ended with it, or None."""
        reasons: list[FinishReason | None] = []
        for sequence, token in zip(self._running, step.ids[:, 0].tolist(), strict=True):
            sequence.length += 1
            is_last = sequence.length == self.limits[sequence.index]
            reasons.append("stop" if token in self.eos_token_ids else "length" if is_last else None)
        return reasons

    def _check_finite(self, step: SoftStep) -> None:
        is_finite = torch.isfinite(step.entropy)
        if not bool(is_finite.all()):
            sequence = self._running[int((~is_finite).nonzero()[0])]
            raise NonFiniteLogitsError(
                f"the model's logits are not finite at generated step {sequence.length + 1}"
            )

    def _rollout(
        self, sequence: _Sequence, reason: FinishReason, decode: Callable[..., str]
    ) -> Rollout:
        part = slice(sequence.slot, sequence.slot + 1), slice(0, sequence.length)

        def recorded(values: Tensor) -> Tensor:
            return values[part].clone().cpu()  # the slot will be another's

        noise = self.embedding_noise
        trace = SoftTrace(
            ids=recorded(self.ids),
            scores=recorded(self.scores),
            support=recorded(self.support),
            is_soft=recorded(self.is_soft),
            lengths=torch.tensor([sequence.length], dtype=torch.int32),
            embedding_noise=None if noise is None else recorded(noise),
            settings=self.config.replay_settings(),
            source={
                "engine": "transformers",
                "seed": self.seed,
                "first_sequence": self.first_sequence,
            },
        )
        tokens = trace.tokens[0]
        return Rollout(
            prompt_ids=list(self.prompts[sequence.index]),
            token_ids=tokens,
            text=decode(tokens, skip_special_tokens=True),
            trace=trace,
            logps=None if self.objective is None else recorded(self.logps)[0].tolist(),
            finish_reason=reason,
            thinking_ended_by=sequence.phase.ended_by,
        )


def _shared_prefix(prompts: list[Prompt]) -> int:
    """Tokens that all prompts begin with, where worth sharing; at least one of each is left."""
    first, last = min(prompts), max(prompts)  # in lexicographic order these two differ the most
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _MIN_SHARED else 0
