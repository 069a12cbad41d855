"""When thinking ends: at a marker, at the budget, by cold stop, or with the sequence.

Host-side bookkeeping, fed the reported token of every step. A marker is looked for in the decoded
text, so it is found however the tokenizer cuts it: "####" and " ####" are different tokens and both
end the thinking (deviation [8]: the authors compare one token id).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from softgrpo.thinking.config import ThinkingConfig

ThinkingEnd = Literal["marker", "budget", "cold_stop"]

# What is known of a token, beside that it may end a marker or that it does not: nothing yet.
_UNSEEN = 2
_NO_TOKEN = -1


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
        # By token, whether it could complete a marker. The last place stands for all behind it.
        self._seen = np.full(1, _UNSEEN, dtype=np.int8)

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens completes a marker."""
        if not self.strings:
            return False
        tail = tokens[-self.tail :]
        before, now = self._text(tail[:-1]), self._text(tail)
        return any(now.count(text) > before.count(text) for text in self.strings)

    def may_end(self, tokens: np.ndarray) -> list[int]:
        """Which of these [N] tokens could complete a marker, by their places: few do."""
        places = self._seen.take(tokens, mode="clip").nonzero()[0].tolist()
        return [place for place in places if self._may_end(int(tokens[place]))]

    def _may_end(self, token: int) -> bool:
        if token + 1 >= len(self._seen):
            more = token + 2 - len(self._seen)
            self._seen = np.pad(self._seen, (0, more), constant_values=_UNSEEN)
        if self._seen[token] == _UNSEEN:
            self._seen[token] = self._may_complete(self._text([token]))
        return bool(self._seen[token])

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


class Progress(NamedTuple):
    """What a step was to some sequences."""

    tokens: np.ndarray  # [N] int64, the step's tokens: what was drawn, or what was put in its place
    # The sequences, as places in [N], whose thinking this very step ended (with a marker).
    ended: list[int]
    forced: list[int]  # those whose token was put there


class ThinkingPhases:
    """Whether each of some sequences still thinks, and what is forced on it next.

    All of one config. Its sequences are told apart by a number each, which ``begin`` gives and
    ``end`` takes back; what is kept of them stands in arrays, so that a step costs little however
    many there are.

    Args:
        markers: The end markers.
        config: Budget and cold stop.

    Attributes:
        is_thinking: bool, by number.
        num_stopped: How many sequences have ended their thinking so far.
    """

    def __init__(self, markers: Markers, config: ThinkingConfig) -> None:
        self._markers, self._config = markers, config
        self._free: list[int] = []
        self._forced: dict[int, list[int]] = {}  # tokens still to be put in, in order
        self._ended_by: list[ThinkingEnd | None] = []
        self.is_thinking = np.zeros(0, dtype=bool)
        self.num_stopped = 0
        self._num_left = np.zeros(0, dtype=np.int64)  # steps of the budget
        self._num_cold = np.zeros(0, dtype=np.int64)
        # The last tokens in a ring, the place in it of the next one, and by place the one behind
        # it: to look it up takes less time than to compute it.
        self._tails = np.zeros((0, markers.tail), dtype=np.int64)
        self._places = np.zeros(0, dtype=np.int64)
        self._behind = np.roll(np.arange(markers.tail), -1)

    def __len__(self) -> int:
        """How many sequences have a number."""
        return len(self.is_thinking) - len(self._free)

    def begin(self) -> int:
        """The number of one more sequence, the lowest that is free."""
        if not self._free:
            self._grow()
        number = heapq.heappop(self._free)
        self.is_thinking[number], self._ended_by[number] = True, None
        self._num_left[number], self._num_cold[number] = self._config.max_think_tokens or 0, 0
        self._tails[number], self._places[number] = _NO_TOKEN, 0
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
        ended: list[int] = []
        forced: list[int] = []
        if self._forced:
            tokens = tokens.copy()
            for row, number in enumerate(numbers.tolist()):
                if number in self._forced:
                    tokens[row] = self._forced[number].pop(0)
                    forced.append(row)
                    if not self._forced[number]:
                        del self._forced[number]
        num_thinking = np.count_nonzero(thinks)
        if num_thinking == len(numbers):
            ended = self._think(numbers, tokens, entropies)
        elif num_thinking:
            rows = thinks.nonzero()[0]
            ended = rows[self._think(numbers[rows], tokens[rows], entropies[rows])].tolist()
        return Progress(tokens, ended, forced)

    def _think(self, numbers: np.ndarray, tokens: np.ndarray, entropies: np.ndarray) -> list[int]:
        """One step of sequences that think; the places where a marker ended it."""
        config = self._config
        ended = []
        if self._markers.strings:
            places = self._places[numbers]
            self._tails[numbers, places] = tokens
            self._places[numbers] = self._behind[places]
            for i in self._markers.may_end(tokens):
                if self._markers.ends(self._tail(int(numbers[i]))):
                    ended.append(i)
                    self._stop(numbers[i : i + 1], "marker")
        if config.cold_stop_entropy is not None:
            num_cold = np.where(
                entropies < config.cold_stop_entropy, self._num_cold[numbers] + 1, 0
            )
            self._num_cold[numbers] = num_cold
            self._stop(numbers[num_cold >= config.cold_stop_steps], "cold_stop")
        if config.max_think_tokens is not None:
            self._num_left[numbers] = num_left = self._num_left[numbers] - 1
            self._stop(numbers[num_left == 0], "budget")
        return ended

    def _tail(self, number: int) -> list[int]:
        """The last tokens of a sequence, or all of them."""
        tail = np.roll(self._tails[number], -self._places[number])
        return tail[tail != _NO_TOKEN].tolist()

    def _stop(self, numbers: np.ndarray, how: ThinkingEnd) -> None:
        """End the thinking of these sequences, where nothing else has ended it just now."""
        for number in numbers[self.is_thinking[numbers]].tolist():
            self.is_thinking[number], self._ended_by[number] = False, how
            self.num_stopped += 1
            if how != "marker":
                self._forced[number] = list(self._markers.forced_ids)

    def _grow(self) -> None:
        """Room for as many again."""
        size = len(self.is_thinking)
        more = max(size, 8)
        self._free += range(size, size + more)
        self._ended_by += [None] * more
        self.is_thinking = np.pad(self.is_thinking, (0, more))
        self._num_left = np.pad(self._num_left, (0, more))
        self._num_cold = np.pad(self._num_cold, (0, more))
        self._tails = np.pad(self._tails, ((0, more), (0, 0)))
        self._places = np.pad(self._places, (0, more))
