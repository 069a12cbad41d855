"""When thinking ends: at a marker, at the budget, by cold stop, or with the sequence.

Host-side bookkeeping of one sequence, fed the reported token of every step. A marker is looked for
in the decoded text, so it is found however the tokenizer cuts it: "####" and " ####" are different
tokens and both end the thinking (deviation [8]: the authors compare one token id).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
        self._may_end: dict[int, bool] = {}
        self._last_characters = {text[-1] for text in self.strings}

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens completes a marker."""
        if not self.strings or not self._can_end(tokens[-1]):
            return False
        tail = tokens[-self.tail :]
        before, now = self._text(tail[:-1]), self._text(tail)
        return any(now.count(text) > before.count(text) for text in self.strings)

    def _can_end(self, token: int) -> bool:
        """Whether a token's text could hold a marker's last character (cached: most cannot)."""
        if token not in self._may_end:
            text = self._text([token])
            # U+FFFD: part of a character; only the decoded tail can tell.
            self._may_end[token] = "�" in text or any(c in text for c in self._last_characters)
        return self._may_end[token]

    def _text(self, ids: list[int]) -> str:
        return self._decode(ids, skip_special_tokens=False)


@dataclass
class ThinkingPhase:
    """Whether one sequence still thinks, and what is forced on it next.

    Attributes:
        markers: The end markers.
        config: Budget and cold stop.
        is_thinking: True until the thinking has ended.
        ended_by: How it ended, None while it goes on or when the sequence ended first.
        forced: Token ids still to be put in, in order.
    """

    markers: Markers
    config: ThinkingConfig
    is_thinking: bool = True
    ended_by: ThinkingEnd | None = None
    forced: list[int] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _num_steps: int = 0
    _num_cold: int = 0

    def update(self, token: int, entropy: float) -> bool:
        """Take the reported token of a step; True when the thinking ended at this very step.

        Args:
            token: Its id.
            entropy: Entropy of the support in nats, for cold stop.
        """
        if not self.is_thinking:
            return False
        self._tokens = [*self._tokens[-self.markers.tail :], token]
        self._num_steps += 1
        if self.markers.ends(self._tokens):
            return self._end("marker")
        config = self.config
        is_cold = config.cold_stop_entropy is not None and entropy < config.cold_stop_entropy
        self._num_cold = self._num_cold + 1 if is_cold else 0
        if is_cold and self._num_cold >= config.cold_stop_steps:
            self._end("cold_stop", force=True)
        elif self._num_steps == config.max_think_tokens:
            self._end("budget", force=True)
        return False

    def _end(self, how: ThinkingEnd, force: bool = False) -> bool:
        self.is_thinking = False
        self.ended_by = how
        self.forced = list(self.markers.forced_ids) if force else []
        return True
