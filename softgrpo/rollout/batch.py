"""Sequences decoded together, one step after the other: who runs, who has ended, what is fed next.

The engine's inside. As soon as enough places are free the next waiting sequences take them, those
with the highest limits first, else in order: so the places are full for as long as can be known.
Nothing depends on time.

On an accelerator the host waits for the device once a step, when the step is read. Where something
happens it waits a second time, to send what the device cannot know: decisions that changed a step,
rows that come and go, noise of many steps ahead; and a third time where sequences end, whose
log-densities it fetches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrpo.modeling.attention import grouped_attention
from softgrpo.modeling.inputs import mix
from softgrpo.replay.logps import replay_logits
from softgrpo.rollout.cache import SlotCache
from softgrpo.rollout.engine import FinishReason, NonFiniteLogitsError, Rollout
from softgrpo.rollout.prefill import Prefill, forward
from softgrpo.rollout.prepacked import prepacked
from softgrpo.rollout.recorder import Recorder
from softgrpo.rollout.request import Request
from softgrpo.thinking.advance import StepRecord, decide, decisions, draw, order_of, settle
from softgrpo.thinking.mixers import MIXERS
from softgrpo.thinking.noise import NoiseTable
from softgrpo.thinking.phases import Markers, ThinkingPhases
from softgrpo.thinking.step import SoftStep
from softgrpo.thinking.trace import Steps
from softgrpo.thinking.transfer import upload

# Waiting sequences are let in once this share of the places is free, several prompts a prefill.
_REFILL_SHARE = 0.125


@dataclass(frozen=True)
class _Rows:
    """The rows that run, for as long as none of this changes."""

    known_starts: list[int]  # the cache's ``starts``, the very list
    known_stops: int  # the phases' ``num_stopped``
    next_limit: int  # the batch's step at which the first of them will be at its limit
    thinks: np.ndarray  # [N] bool, on the host
    order: Tensor | None  # of ``advance.order_of``; from here on, on the device
    numbers: Tensor  # [N] int64
    starts: Tensor  # [N] int64, the first column of each
    has_padding: bool  # whether one of them begins behind another
    # int64, both: rows that will draw a soft token, and those that will draw a token.
    kinds: tuple[Tensor, Tensor]


class DecodingBatch:
    """Sequences decoded together, from the first prefill to the last token.

    A sequence has a place among the requests. While it runs it has a row, which may change when
    another one ends, and a number, which does not: phases, noise and recorder know it by that.

    Requests are of one config and one objective. ``slots`` of them run at a time, in as many rows
    of a ``SlotCache`` of ``capacity`` columns.
    """

    def __init__(
        self,
        model: Any,
        requests: Sequence[Request],
        *,
        markers: Markers,
        eos_token_ids: set[int],
        slots: int,
        capacity: int,
    ) -> None:
        self.model, self.requests = model, requests
        self.config, self.objective = config, objective = requests[0].config, requests[0].objective
        self.embedding = model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.cache = SlotCache(model.config, slots, capacity)
        self._prefill = Prefill(model, [request.prompt for request in requests])

        self._slots, self._min_free = slots, max(1, int(_REFILL_SHARE * slots))
        limits = [request.limit for request in requests]
        self._waiting = deque(sorted(range(len(requests)), key=lambda place: -limits[place]))
        self._running = nobody = np.zeros(0, dtype=np.int64)  # numbers, in the cache's order
        nothing = torch.from_numpy(nobody).to(self.device)
        self._rows = _Rows([], 0, 0, nobody > 0, None, nothing, nothing, False, (nothing, nothing))
        self._places = [0] * slots  # by number
        self._last = np.zeros(slots, dtype=np.int64)  # by number, the batch's step at its limit
        # By token, whether it ends a sequence. The last place stands for all behind it.
        stops = [token for token in eos_token_ids if token >= 0]  # -1 says that there is none
        self._is_stop = np.zeros(max(stops, default=0) + 2, dtype=bool)
        self._is_stop[stops] = True

        num_columns = config.num_columns
        hidden_size = self.embedding.weight.shape[1]
        self._has_noise = config.policy == "embedding_gaussian"
        self._late = int(objective is not None) + self._has_noise * hidden_size
        self._phases = ThinkingPhases(markers, config)
        self._noise = NoiseTable(
            slots, MIXERS[config.policy].noise_width(num_columns, hidden_size), self.device
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
            num_steps = sum(request.limit for request in self.requests)
            with grouped_attention(self.model), prepacked(self.model, num_steps):
                yield from self._decode(decode, on_finished or (lambda *_: None))
        finally:
            self.model.train(was_training)

    def _decode(
        self, decode: Callable[..., str], on_finished: Callable[[int, Rollout], object]
    ) -> Iterator[StepRecord]:
        self._prefill.share_beginning()
        logits = self._admit(None)
        while logits is not None:
            step, record = self._draw(logits)
            yield record
            numbers, reasons = self._running, self._finish_reasons(record)
            logits, late = self._next(logits, step, record, list(reasons))
            for i, (row, reason) in enumerate(reasons.items()):
                number, values = int(numbers[row]), None if late is None else late[i]
                rollout = self._rollout(number, reason, values, decode)
                on_finished(self._places[number], rollout)
                self._phases.end(number)
            logits = self._admit(logits)

    def _admit(self, running: Tensor | None) -> Tensor | None:
        """Let waiting sequences in where enough places are free; the logits [N, V] of all rows."""
        num_free = self._slots - len(self._running)
        if running is not None and num_free < self._min_free or not self._waiting:
            return running
        places = [self._waiting.popleft() for _ in range(min(num_free, len(self._waiting)))]
        prompts = Counter(self.requests[place].prompt for place in places)  # in order of appearance
        self._prefill.compute(prompts)
        logits = [] if running is None else [running]
        new = []
        # The longest first, so that what runs is moved to make room for it and then not again.
        for prompt in sorted(prompts, key=len, reverse=True):
            prefilled = self._prefill.take(prompt, prompts[prompt])
            self.cache.append(prefilled.states, prompts[prompt])
            logits.append(prefilled.logits.expand(prompts[prompt], -1))
            new += [self._begin(i) for i in places if self.requests[i].prompt == prompt]
        numbers = np.array(new)
        self._running = np.concatenate([self._running, numbers])
        self._send({"noise": self._noise.draw(numbers)})
        # A copy of the logits for nothing would cost a CPU as much as a tenth of the step.
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _begin(self, place: int) -> int:
        """The number of the sequence at a place, which runs from now on."""
        request, number = self.requests[place], self._phases.begin()
        self._noise.begin(number, request.seed, request.index)
        self._recorder.begin(number)
        self._places[number] = place
        self._last[number] = self._recorder.num_steps + request.limit
        return number

    def _send(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Arrays to the device, and with them what it does not know yet of the rows that run."""
        starts, stops = self.cache.starts, self._phases.num_stopped
        if starts is not self._rows.known_starts or stops != self._rows.known_stops:
            thinks = self._phases.is_thinking[self._running]
            arrays |= {"numbers": self._running, "starts": np.array(starts, dtype=np.int64)}
            will_be_soft = thinks & (self.config.policy != "discrete")
            arrays["soft"], arrays["others"] = _split(will_be_soft)
            order = order_of(thinks)
            arrays |= {} if order is None else {"order": order}
        sent = upload(self.device, **arrays)
        if "numbers" in sent:
            self._rows = _Rows(
                known_starts=starts,
                known_stops=stops,
                next_limit=min(self._last[self._running].tolist(), default=0),
                thinks=thinks,
                order=sent.get("order"),
                numbers=sent["numbers"],
                starts=sent["starts"],
                has_padding=max(starts, default=0) > self.cache.window.start,
                kinds=(sent["soft"], sent["others"]),
            )
        if "noise" in sent:  # of the last rows: of those that were just let in, or of all
            numbers, count = self._rows.numbers, sent["noise"].shape[1]
            self._noise.put(numbers[len(numbers) - count :], sent["noise"])
        return sent

    # Steps ----------------------------------------------------------------------------------------
    def _draw(self, logits: Tensor) -> tuple[SoftStep, StepRecord]:
        """Draw, force or sample one step of every running sequence, and record it."""
        rows = self._rows
        noise = self._noise.next(rows.numbers)
        step, record = draw(logits, noise, self.config, rows.thinks, rows.order)
        if not record.is_whole:
            number = int(self._running[np.argmin(np.isfinite(record.entropies))])
            raise NonFiniteLogitsError(
                "the model's logits are not finite at generated step "
                f"{self._recorder.length(number) + 1}"
            )
        decide(record, self._phases, self._running)
        self._recorder.add(self._running, record)
        return step, record

    def _finish_reasons(self, record: StepRecord) -> dict[int, FinishReason]:
        """The rows that have ended with this step, in order, and why."""
        ended = is_stop = self._is_stop.take(record.tokens, mode="clip")
        if self._recorder.num_steps == self._rows.next_limit:
            ended = is_stop | (self._last[self._running] == self._rows.next_limit)
        return {row: "stop" if is_stop[row] else "length" for row in ended.nonzero()[0].tolist()}

    def _next(
        self, logits: Tensor, step: SoftStep, record: StepRecord, ended: list[int]
    ) -> tuple[Tensor | None, list[Tensor] | None]:
        """Feed the step to those that go on; the logits [N, V] of their next one.

        Returns:
            Also [T, late] of each that ended, what was kept of it on the device.
        """
        numbers, rows, arrays = self._running, self._rows, decisions(record)
        if arrays:
            arrays["was_soft"], arrays["was_other"] = _split(record.is_soft)
        if ended:
            staying = self.cache.order_without(ended)
            self._running = numbers[staying]
            self.cache.select(staying)
            arrays["staying"] = np.array(staying, dtype=np.int64)
        if len(self._running):
            self.cache.make_room()
        if self._noise.is_used_up:
            arrays["noise"] = self._noise.draw(self._running)
        sent = self._send(arrays)
        settle(step, sent)
        if self._late:
            kinds = (sent["was_soft"], sent["was_other"]) if "was_soft" in sent else rows.kinds
            self._keep(logits, step, rows.numbers, kinds)
        following = None
        if len(self._running):
            ids, weights, noise = step.ids, step.weights, step.embedding_noise
            if ended:
                ids, weights = ids[sent["staying"]], weights[sent["staying"]]
                noise = None if noise is None else noise[sent["staying"]]
            following = self._next_logits(mix(self.embedding, ids, weights, noise))
        if not ended or not self._late:
            return following, None
        return following, self._recorder.read_late(numbers[ended].tolist())

    def _keep(
        self, logits: Tensor, step: SoftStep, numbers: Tensor, kinds: tuple[Tensor, Tensor]
    ) -> None:
        """The step's log-densities and embedding noise, where they are asked for."""
        values, noise = [], step.embedding_noise
        if self.objective is not None:
            steps = Steps(step.ids, step.scores.float(), step.support, *kinds, noise)
            values.append(replay_logits(logits, steps, self.objective, self.embedding))
        if self._has_noise and noise is not None:
            values.append(noise)
        self._recorder.add_late(numbers, values)

    def _next_logits(self, inputs: Tensor) -> Tensor:
        """The model's answer to one more input [N, D] of every running sequence."""
        window, starts = self.cache.window, self._rows.starts
        mask = None
        if self._rows.has_padding:
            columns = torch.arange(window.start, window.end + 1, device=self.device)
            mask = columns >= starts[:, None]
        positions = window.end - starts[:, None]
        return forward(self.model, self.cache, mask, positions, inputs_embeds=inputs[:, None])

    def _rollout(
        self, number: int, reason: FinishReason, late: Tensor | None, decode: Callable[..., str]
    ) -> Rollout:
        """A sequence that has ended; late [T, late], what was kept of it on the device."""
        logps, noise = None, None
        if late is not None:
            if self.objective is not None:
                logps = late[:, 0].tolist()
            if self._has_noise:
                noise = late[:, int(self.objective is not None) :]
        request = self.requests[self._places[number]]
        trace = self._recorder.trace(number, self.config, noise, request.source("transformers"))
        tokens = trace.tokens[0]
        return Rollout(
            prompt_ids=list(request.prompt),
            token_ids=tokens,
            text=decode(tokens, skip_special_tokens=True),
            trace=trace,
            logps=logps,
            finish_reason=reason,
            thinking_ended_by=self._phases.ended_by(number),
        )


def _split(is_soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are soft, and the others."""
    return is_soft.nonzero()[0], (~is_soft).nonzero()[0]
