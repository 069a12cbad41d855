"""Sequences decoded together, one step after the other: who runs, who has ended, what is fed next.

The engine's inside. As soon as enough places are free the next waiting sequences take them, those
with the highest limits first, else in order: so the places are full for as long as can be known.
Nothing depends on time.

On an accelerator the host waits for the device twice a step, and a third time where sequences end:
when the step is read, when what was decided of it is sent back with the next step's noise, and when
a sequence's log-densities are fetched.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrpo.replay.embeddings import mix
from softgrpo.replay.logps import replay_rows
from softgrpo.rollout.attention import grouped_attention, rows_of_a_block
from softgrpo.rollout.cache import SlotCache
from softgrpo.rollout.engine import FinishReason, NonFiniteLogitsError, Rollout
from softgrpo.rollout.prefill import Prefill, Prompt, forward
from softgrpo.rollout.prepacked import prepacked
from softgrpo.rollout.recorder import Recorder
from softgrpo.rollout.steps import StepRecord, decide, decisions, draw, order_of, settle
from softgrpo.rollout.transfer import upload
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.noise import NoiseTable
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers, ThinkingPhases
from softgrpo.thinking.policies import POLICIES
from softgrpo.thinking.step import SoftStep

# Waiting sequences are let in once this share of the places is free, several prompts a prefill.
_REFILL_SHARE = 0.125


@dataclass(frozen=True)
class _Pending:
    """What the next step of the running sequences is drawn from.

    Attributes:
        logits: [N, V].
        noise: [N, width] Exponential(1) draws.
        order: As ``steps.order_of`` gives it, or None.
    """

    logits: Tensor
    noise: Tensor
    order: Tensor | None


class DecodingBatch:
    """Sequences decoded together, from the first prefill to the last token.

    A sequence that runs has a number, by which phases, noise and recorder know it.

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
        self.model, self.config, self.objective = model, config, objective
        self.prompts: list[Prompt] = [tuple(prompt) for prompt in prompts]
        self.seed, self.first_sequence = seed, first_sequence
        self.embedding = model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.cache = SlotCache(model.config, slots, capacity)
        self._known_starts, self._starts = self.cache.starts, np.zeros(0, dtype=np.int64)
        self._block = rows_of_a_block(model) or slots
        self._prefill = Prefill(model, self.prompts)

        self._slots, self._min_free = slots, max(1, int(_REFILL_SHARE * slots))
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: -limits[i]))
        self._running = np.zeros(0, dtype=np.int64)  # numbers, in the order of the cache's rows
        self._index = np.zeros(slots, dtype=np.int64)  # by number, its place in the result
        self._limits = np.array(limits, dtype=np.int64)
        self._eos_token_ids = np.array(sorted(eos_token_ids), dtype=np.int64)

        num_columns = 1 if config.policy == "discrete" else int(config.top_k or 1)
        hidden_size = self.embedding.weight.shape[1]
        self._has_noise = config.policy == "embedding_gaussian"
        self._late = int(objective is not None) + self._has_noise * hidden_size
        self._phases = ThinkingPhases(markers, config)
        self._noise = NoiseTable(
            slots, POLICIES[config.policy].noise_width(num_columns, hidden_size)
        )
        self._recorder = Recorder(slots, max(limits), num_columns, self._late, self.device)

    def run(
        self,
        decode: Callable[..., str],
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> Iterator[StepRecord]:
        """Decode until every sequence has ended; yields each step of the rows that run.

        Args:
            decode: The tokenizer's.
            on_finished: Called with the place of a sequence and its rollout as soon as it has
                ended.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with grouped_attention(self.model), prepacked(self.model, int(self._limits.sum())):
                yield from self._decode(decode, on_finished or (lambda *_: None))
        finally:
            self.model.train(was_training)

    def _decode(
        self, decode: Callable[..., str], on_finished: Callable[[int, Rollout], object]
    ) -> Iterator[StepRecord]:
        self._prefill.share_beginning()
        pending = self._admit(None)
        while pending is not None:
            step, record = self._draw(pending)
            yield record
            numbers, reasons = self._running, self._finish_reasons(record)
            pending, late = self._next(pending.logits, step, record, list(reasons))
            for place, (row, reason) in enumerate(reasons.items()):
                number = int(numbers[row])
                values = None if late is None else late[place]
                on_finished(int(self._index[number]), self._rollout(number, reason, values, decode))
                self._phases.end(number)
            pending = self._admit(pending)

    def _admit(self, pending: _Pending | None) -> _Pending | None:
        """Let waiting sequences in where enough places are free."""
        num_free = self._slots - len(self._running)
        if pending is not None and num_free < self._min_free or not self._waiting:
            return pending
        indices = [self._waiting.popleft() for _ in range(min(num_free, len(self._waiting)))]
        prompts = Counter(self.prompts[index] for index in indices)  # in order of appearance
        self._prefill.compute(prompts)
        logits = [] if pending is None else [pending.logits]
        new = []
        # The longest first, so that what runs is moved to make room for it and then not again.
        for prompt in sorted(prompts, key=len, reverse=True):
            prefilled = self._prefill.take(prompt, prompts[prompt])
            self.cache.append(prefilled.states, prompts[prompt])
            logits.append(prefilled.logits.expand(prompts[prompt], -1))
            new += [self._begin(index) for index in indices if self.prompts[index] == prompt]
        numbers = np.array(new)
        self._running = np.concatenate([self._running, numbers])
        sent = upload(self.device, noise=self._noise.next(numbers), **self._order())
        noise = [sent["noise"]] if pending is None else [pending.noise, sent["noise"]]
        # A copy of the logits for nothing would cost a CPU as much as a tenth of the step.
        joined = logits[0] if len(logits) == 1 else torch.cat(logits)
        return _Pending(joined, torch.cat(noise), sent.get("order"))

    def _begin(self, index: int) -> int:
        """The number of the sequence at a place of the result."""
        number = self._phases.begin()
        self._noise.begin(number, self.seed, self.first_sequence + index)
        self._index[number], self._recorder.lengths[number] = index, 0
        return number

    def _order(self) -> dict[str, np.ndarray]:
        order = order_of(self._phases.is_thinking[self._running])
        return {} if order is None else {"order": order}

    # Steps ----------------------------------------------------------------------------------------
    def _draw(self, pending: _Pending) -> tuple[SoftStep, StepRecord]:
        """Draw, force or sample one step of every running sequence, and record it."""
        thinks = self._phases.is_thinking[self._running]
        step, record = draw(pending.logits, pending.noise, self.config, thinks, pending.order)
        is_finite = np.isfinite(record.entropies)
        if not is_finite.all():
            number = self._running[int(np.argmin(is_finite))]
            raise NonFiniteLogitsError(
                "the model's logits are not finite at generated step "
                f"{self._recorder.lengths[number] + 1}"
            )
        decide(record, self.config, self._phases, self._running)
        self._recorder.add(self._running, record)
        return step, record

    def _finish_reasons(self, record: StepRecord) -> dict[int, FinishReason]:
        """The rows that have ended with this step, in order, and why."""
        is_last = self._recorder.lengths[self._running] == self._limits[self._index[self._running]]
        is_stop = (record.tokens[:, None] == self._eos_token_ids).any(axis=1)
        ended = (is_last | is_stop).nonzero()[0].tolist()
        return {row: "stop" if is_stop[row] else "length" for row in ended}

    def _next(
        self, logits: Tensor, step: SoftStep, record: StepRecord, ended: list[int]
    ) -> tuple[_Pending | None, Tensor | None]:
        """Feed the step to those that go on; what their next one is drawn from.

        Returns:
            Also [ended, T, late], what was kept on the device of those that ended.
        """
        numbers = self._running
        staying: list[int] = []
        if ended:
            staying = self.cache.order_without(ended, self._block)
            self._running = numbers[staying]
            self.cache.select(staying)
        if len(self._running):
            self.cache.make_room()
        arrays = decisions(record) | self._order()
        arrays["noise"] = self._noise.next(self._running)
        arrays["starts"] = self._start_columns()
        if ended:
            arrays |= {"staying": np.array(staying, dtype=np.int64), "ended": numbers[ended]}
        if self._late:
            steps = self._recorder.lengths[numbers] - 1
            soft, tokens = (x.nonzero()[0] for x in (record.is_soft, ~record.is_soft))
            arrays |= {"numbers": numbers, "steps": steps, "soft": soft, "others": tokens}
        sent = upload(self.device, **arrays)
        step = settle(step, sent["tokens"], sent["is_soft"], sent["was_forced"])
        if self._late:
            self._keep(logits, step, sent)
        if not len(self._running):
            pending = None
        else:
            ids, weights, noise = step.ids, step.weights, step.embedding_noise
            if ended:
                rows = sent["staying"]
                ids, weights = ids[rows], weights[rows]
                noise = None if noise is None else noise[rows]
            inputs = mix(self.embedding, ids, weights, noise)
            following = self._next_logits(inputs, sent["starts"])
            pending = _Pending(following, sent["noise"], sent.get("order"))
        if not ended or not self._late:
            return pending, None
        longest = int(self._recorder.lengths[numbers[ended]].max())
        return pending, self._recorder.read_late(sent["ended"], longest)

    def _keep(self, logits: Tensor, step: SoftStep, sent: dict[str, Tensor]) -> None:
        """The step's log-densities and embedding noise, where they are asked for."""
        values = []
        if self.objective is not None:
            values.append(
                replay_rows(
                    logits,
                    step.ids,
                    step.scores.float(),
                    step.support,
                    (sent["soft"], sent["others"]),
                    self.objective,
                    step.embedding_noise,
                    self.embedding,
                )
            )
        if self._has_noise and step.embedding_noise is not None:
            values.append(step.embedding_noise)
        self._recorder.add_late(sent["numbers"], sent["steps"], values)

    def _start_columns(self) -> np.ndarray:
        """The cache's ``starts``, made anew when they have changed."""
        if self._known_starts is not self.cache.starts:
            self._known_starts = self.cache.starts
            self._starts = np.array(self._known_starts, dtype=np.int64)
        return self._starts

    def _next_logits(self, inputs: Tensor, starts: Tensor) -> Tensor:
        """The model's answer to one more input [N, D] of every running sequence."""
        window = self.cache.window
        columns = torch.arange(window.start, window.end + 1, device=self.device)
        has_padding = self._start_columns().max() > window.start
        mask = columns >= starts[:, None] if has_padding else None
        positions = window.end - starts[:, None]
        return forward(self.model, self.cache, mask, positions, inputs_embeds=inputs[:, None])

    def _rollout(
        self, number: int, reason: FinishReason, late: Tensor | None, decode: Callable[..., str]
    ) -> Rollout:
        """A sequence that has ended; late [T', late], of which its own steps are the first."""
        length = int(self._recorder.lengths[number])
        logps, noise = None, None
        if late is not None:
            if self.objective is not None:
                logps = late[:length, 0].tolist()
            if self._has_noise:
                noise = late[:length, int(self.objective is not None) :]
        source = {
            "engine": "transformers",
            "seed": self.seed,
            "first_sequence": self.first_sequence,
        }
        trace = self._recorder.trace(number, self.config, noise, source)
        tokens = trace.tokens[0]
        return Rollout(
            prompt_ids=list(self.prompts[self._index[number]]),
            token_ids=tokens,
            text=decode(tokens, skip_special_tokens=True),
            trace=trace,
            logps=logps,
            finish_reason=reason,
            thinking_ended_by=self._phases.ended_by(number),
        )
