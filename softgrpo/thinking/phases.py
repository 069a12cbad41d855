"""When thinking ends: at a marker, at the budget, by cold stop, or with the sequence.

Host-side bookkeeping, fed the reported token of every step. A marker is looked for in the decoded
text, so it is found however the tokenizer cuts it: "####" and " ####" are different tokens and both
end the thinking (deviation [8]: the authors compare one token id).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from softgrpo.thinking.config import ThinkingConfig

ThinkingEnd = Literal["marker", "budget", "cold_stop"]


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def __len__(self) -> int: ...


class Markers:
    """The end-of-thinking strings under one tokenizer.

    Args:
        think_end: The strings; the first is the one that is forced.
        tokenizer: The model's.

    Raises:
        ValueError: The tokenizer cannot produce a marker.
    """

    def __init__(self, think_end: Sequence[str], tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self.strings = tuple(think_end)
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in self.strings]
        for text, ids in zip(self.strings, encoded, strict=True):
            if text not in self._text(ids):
                raise ValueError(
                    f"think_end={text!r}: the tokenizer cannot produce it (it comes back as "
                    f"{self._text(ids)!r}); choose a marker made of tokens it knows"
                )
        self.forced_ids: list[int] = encoded[0] if encoded else []
        # A tail this long holds any marker: one token more than its bytes for a part before it.
        self.tail = max((len(text.encode()) for text in self.strings), default=0) + 1
        self._known = np.zeros(0, dtype=bool)  # tokens that have been looked at, and what was seen
        self._may_end = np.zeros(0, dtype=bool)

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens completes a marker."""
        if not self.strings:
            return False
        tail = tokens[-self.tail :]
        before, now = self._text(tail[:-1]), self._text(tail)
        return any(now.count(text) > before.count(text) for text in self.strings)

    def may_end(self, tokens: np.ndarray) -> np.ndarray:
        """[N] bool, which of these tokens could complete a marker: few do."""
        highest = int(tokens.max(initial=-1))
        if highest >= len(self._known):
            more = highest + 1 - len(self._known)
            self._known = np.pad(self._known, (0, more))
            self._may_end = np.pad(self._may_end, (0, more))
        is_known = self._known[tokens]
        if not is_known.all():
            for token in set(tokens[~is_known].tolist()):
                self._may_end[token] = self._may_complete(self._text([token]))
                self._known[token] = True
        return self._may_end[tokens]

    def _may_complete(self, text: str) -> bool:
        """Whether a token of this text may hold the end of a marker: all of one, or its rest."""
        # U+FFFD: part of a character; and a token alone may have lost its spaces.
        if "�" in text or any(marker[-1].isspace() for marker in self.strings):
            return True
        return any(
            marker in text or any(text.startswith(marker[i:]) for i in range(1, len(marker)))
            for marker in self.strings
        )

    def _text(self, ids: list[int]) -> str:
        return self._decode(ids, skip_special_tokens=False)


@dataclass(frozen=True)
class Progress:
    """What a step was to some sequences.

    Attributes:
        tokens: [N] int64, the step's tokens: what was drawn, or what was put in its place.
        was_thinking: [N] bool, whether the sequence still thought when it was drawn.
        ended: [N] bool, whether this very step ended the thinking (with a marker).
        was_forced: [N] bool, whether the token was put there.
    """

    tokens: np.ndarray
    was_thinking: np.ndarray
    ended: np.ndarray
    was_forced: np.ndarray


class ThinkingPhases:
    """Whether each of some sequences still thinks, and what is forced on it next.

    All of one config. Its sequences are told apart by a number each, which ``begin`` gives and
    ``end`` takes back; what is kept of them stands in arrays, so that a step costs little however
    many there are.

    Args:
        markers: The end markers.
        config: Budget and cold stop.
    """

    def __init__(self, markers: Markers, config: ThinkingConfig) -> None:
        self._markers, self._config = markers, config
        self._free: list[int] = []
        self._forced: dict[int, list[int]] = {}  # tokens still to be put in, in order
        self._ended_by: list[ThinkingEnd | None] = []
        self.is_thinking = np.zeros(0, dtype=bool)
        self._num_steps = np.zeros(0, dtype=np.int64)
        self._num_cold = np.zeros(0, dtype=np.int64)
        # The last tokens, each at its step modulo their number.
        self._tails = np.zeros((0, markers.tail), dtype=np.int64)

    def __len__(self) -> int:
        """How many sequences have a number."""
        return len(self.is_thinking) - len(self._free)

    def begin(self) -> int:
        """The number of one more sequence, the lowest that is free."""
        if not self._free:
            self._grow()
        number = heapq.heappop(self._free)
        self.is_thinking[number], self._ended_by[number] = True, None
        self._num_steps[number] = self._num_cold[number] = 0
        return number

    def end(self, number: int) -> None:
        """Forget a sequence; its number will be another's."""
        self._forced.pop(number, None)
        heapq.heappush(self._free, number)

    def ended_by(self, number: int) -> ThinkingEnd | None:
        """How a sequence's thinking ended; None while it goes on."""
        return self._ended_by[number]

    def update(self, numbers: np.ndarray, tokens: np.ndarray, entropies: np.ndarray) -> Progress:
        """Take what each sequence drew.

        Args:
            numbers: [N] int64, of different sequences.
            tokens: [N] int64, the reported tokens.
            entropies: [N] float, of the supports in nats, for cold stop.
        """
        thinks = self.is_thinking[numbers]
        ended, was_forced = np.zeros((2, len(numbers)), dtype=bool)
        if self._forced:
            tokens = tokens.copy()
            for row, number in enumerate(numbers.tolist()):
                if number in self._forced:
                    tokens[row], was_forced[row] = self._next_forced(number), True
        if thinks.all():
            ended = self._think(numbers, tokens, entropies)
        elif thinks.any():
            ended[thinks] = self._think(numbers[thinks], tokens[thinks], entropies[thinks])
        return Progress(tokens, thinks, ended, was_forced)

    def _think(self, numbers: np.ndarray, tokens: np.ndarray, entropies: np.ndarray) -> np.ndarray:
        """One step of sequences that think; [N] bool, where a marker ended it."""
        config = self._config
        steps = self._num_steps[numbers]
        self._num_steps[numbers] = steps + 1
        ended = np.zeros(len(numbers), dtype=bool)
        if self._markers.strings:
            self._tails[numbers, steps % self._markers.tail] = tokens
            for i in self._markers.may_end(tokens).nonzero()[0].tolist():
                if self._markers.ends(self._tail(int(numbers[i]))):
                    ended[i] = True
                    self._stop(int(numbers[i]), "marker")
        goes_on = ~ended
        if config.cold_stop_entropy is not None:
            is_cold = entropies < config.cold_stop_entropy
            self._num_cold[numbers] = np.where(is_cold, self._num_cold[numbers] + 1, 0)
            stops = goes_on & (self._num_cold[numbers] >= config.cold_stop_steps)
            for number in numbers[stops].tolist():
                self._stop(number, "cold_stop")
            goes_on &= ~stops
        if config.max_think_tokens is not None:
            stops = goes_on & (self._num_steps[numbers] == config.max_think_tokens)
            for number in numbers[stops].tolist():
                self._stop(number, "budget")
        return ended

    def _tail(self, number: int) -> list[int]:
        """The last tokens of a sequence, or all of them."""
        steps, size = int(self._num_steps[number]), self._markers.tail
        tail = self._tails[number]
        return tail[:steps].tolist() if steps <= size else np.roll(tail, -(steps % size)).tolist()

    def _stop(self, number: int, how: ThinkingEnd) -> None:
        self.is_thinking[number], self._ended_by[number] = False, how
        if how != "marker":
            self._forced[number] = list(self._markers.forced_ids)

    def _next_forced(self, number: int) -> int:
        token = self._forced[number].pop(0)
        if not self._forced[number]:
            del self._forced[number]
        return token

    def _grow(self) -> None:
        """Room for as many again."""
        size = len(self.is_thinking)
        more = max(size, 8)
        self._free += range(size, size + more)
        self._ended_by += [None] * more
        self.is_thinking = np.pad(self.is_thinking, (0, more))
        self._num_steps = np.pad(self._num_steps, (0, more))
        self._num_cold = np.pad(self._num_cold, (0, more))
        self._tails = np.pad(self._tails, ((0, more), (0, 0)))
