"""A key-value cache whose rows come and go: allocated once, written in place, refilled.

transformers' DynamicCache concatenates, which copies every key and value at every step, and its
rows are all there from the beginning. Here all rows end at the same column, where the next tokens
are written, and each begins where its own prompt began:

    column   0 1 2 3 4 5 6 7
    row 0    . . a a a a a |      `start` of the cache is 2: what lies before it is never read
    row 1    . . . . b b b |      `end` is 7: the next column to be written

A row that finishes is overwritten by a later one; a new one is put in behind them. At the last
column everything that is still read moves back to the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from softgrpo.modeling.kernels import product_dtype

# Of an accelerator's free memory, for a cache whose size nobody has set.
_CACHE_SHARE = 0.7

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of one sequence, a pair [heads, tokens, head_dim] a layer."""


@dataclass
class Window:
    """The columns in use, the same in all layers: ``start`` to ``end``, the latter excluded."""

    start: int = 0
    end: int = 0


class SlotLayer(DynamicLayer):
    """A layer's keys and values, each in a buffer [slots, heads, capacity, head_dim].

    The window, the columns in use, is the cache's, which moves it on.
    """

    def __init__(self, slots: int, capacity: int, window: Window) -> None:
        super().__init__()
        self._slots, self._capacity, self._window = slots, capacity, window
        self.buffers: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns; what the first rows hold with them."""
        self.allocate(key_states, value_states)
        rows, _, length, _ = key_states.shape
        start, end = self._window.start, self._window.end + length
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, self._window.end : end] = states
        self.keys, self.values = (buffer[:rows, :, start:end] for buffer in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._window.end - self._window.start

    def allocate(self, *states: Tensor) -> None:
        """Make the buffers for states [..., heads, tokens, head_dim], where they are not made yet.

        Zeros: a column that is masked out is still multiplied, and must not hold a NaN. Under
        autocast attention would cast all of them at every step, so they are kept in its dtype.
        """
        if not self.buffers:
            self.lazy_initialization(*states)
            self.buffers = tuple(
                torch.zeros(
                    (self._slots, x.shape[-3], self._capacity, x.shape[-1]),
                    dtype=product_dtype(x.device, x.dtype),
                    device=x.device,
                )
                for x in states
            )


class SlotCache(DynamicCache):
    """The cache of rows that come and go.

    Every layer keeps every token: one with a sliding window is masked, not cut.

    Args:
        config: The model's.
        slots: Rows it can hold.
        capacity: Columns of a row. To be refilled it needs more than the longest row is long.

    Raises:
        ValueError: The model keeps something else than keys and values.
    """

    def __init__(self, config: Any, slots: int, capacity: int) -> None:
        super().__init__(config=config)
        for layer in self.layers:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ValueError(
                    f"{type(config).__name__}: its cache has a {type(layer).__name__}; rollouts "
                    "need a model that keeps keys and values only"
                )
        self.capacity = capacity
        self.starts: list[int] = []  # another list whenever one of them changes
        self.window = Window()
        self._slot_layers = [SlotLayer(slots, capacity, self.window) for _ in self.layers]
        self.layers = list(self._slot_layers)

    def append(self, states: KeyValues, copies: int) -> None:
        """Put a sequence into the next rows, so that it ends where all the others do."""
        length, rows = states[0][0].shape[1], len(self.starts)
        if length > self.window.end:
            self._move_to(length)
        start = self.window.end - length
        for layer, pair in zip(self._slot_layers, states, strict=True):
            layer.allocate(*pair)
            for buffer, x in zip(layer.buffers, pair, strict=True):
                buffer[rows : rows + copies, :, start : self.window.end] = x
        self.starts = self.starts + [start] * copies
        self.window.start = min(self.starts)

    def extract(self, row: int, columns: Tensor) -> KeyValues:
        """What a row holds at some columns, copied."""
        return [
            (keys[row].index_select(1, columns), values[row].index_select(1, columns))
            for keys, values in (layer.buffers for layer in self._slot_layers)
        ]

    def order_without(self, ended: Sequence[int]) -> list[int]:
        """The rows to ``select`` when some have ended: the last ones take their places."""
        order = list(range(len(self.starts)))
        for hole in sorted(ended, reverse=True):
            order[hole] = order[-1]
            order.pop()
        return order

    def select(self, rows: list[int]) -> None:
        """Let the first rows be these, of which those that are not in their place yet are moved.

        Without rows the cache is empty and starts anew.
        """
        moved = [(i, row) for i, row in enumerate(rows) if i != row]
        self.starts = [self.starts[row] for row in rows]
        self.window.start = min(self.starts, default=0)
        if not rows:
            self.window.end = 0
        for buffer in self._all_buffers() if moved else ():
            part = buffer[:, :, self.window.start : self.window.end]
            for target, source in moved:  # a source lies behind its target: none is lost
                part[target] = part[source]

    def advance(self, length: int) -> None:
        """Count columns that a forward pass has written."""
        self.window.end += length

    def make_room(self) -> None:
        """See to it that there is a column to write."""
        if self.window.end == self.capacity:
            self._move_to(self.window.end - self.window.start)

    def _move_to(self, end: int) -> None:
        """Move what is in use to end at another column."""
        rows, old = len(self.starts), self.window
        shift, start = end - old.end, old.start
        for buffer in self._all_buffers() if rows else ():
            states = buffer[:rows, :, start : old.end].clone()
            buffer[:rows, :, start + shift : end] = states
        self.starts = [row + shift for row in self.starts]
        self.window.start, self.window.end = start + shift if rows else 0, end

    def _all_buffers(self) -> list[Tensor]:
        return [buffer for layer in self._slot_layers for buffer in layer.buffers]


def cache_size(
    lengths: Sequence[int], max_batch_size: int, max_batch_tokens: int | None
) -> tuple[int, int]:
    """Rows and columns of the cache for sequences of these lengths at most.

    Where rows are refilled, a quarter more columns than the longest needs, so that they move back
    once in that many steps.

    Raises:
        ValueError: One sequence alone needs more than max_batch_tokens.
    """
    longest = max(lengths)
    if len(lengths) <= max_batch_size and longest * len(lengths) <= (max_batch_tokens or math.inf):
        return len(lengths), longest
    slots, capacity = min(max_batch_size, len(lengths)), longest + longest // 4 + 1
    if max_batch_tokens is not None:
        if longest > max_batch_tokens:
            raise ValueError(
                f"max_batch_tokens={max_batch_tokens} cannot hold one sequence of {longest} tokens "
                "(prompt and max_new_tokens): raise it or shorten the sequence"
            )
        slots = max(1, min(slots, max_batch_tokens // capacity))
    return slots, longest if slots == 1 else capacity


def affordable_tokens(model: Any) -> int | None:
    """Positions of a cache that a model's accelerator has memory for; None where nobody knows.

    A share is left for the step's own tensors, prompts being prefilled, and an optimizer that has
    not taken its memory yet.
    """
    weight = model.get_input_embeddings().weight
    if weight.device.type == "cpu":
        return None
    try:
        free, _ = torch.accelerator.get_memory_info(weight.device)
        kept = torch.accelerator.memory_reserved(weight.device)
        unused = kept - torch.accelerator.memory_allocated(weight.device)
    except (RuntimeError, AttributeError):
        return None
    dtype = product_dtype(weight.device, weight.dtype)
    return int(_CACHE_SHARE * (free + unused)) // bytes_of_a_token(model.config, dtype)


def bytes_of_a_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one position in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * dtype.itemsize
