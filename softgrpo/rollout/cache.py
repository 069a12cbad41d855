"""A key-value cache that is allocated once, written in place, and compacted as rows finish.

transformers' DynamicCache concatenates, which copies every key and value at every step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A layer's keys and values in buffers of fixed capacity, [B, heads, capacity, head_dim].

    Args:
        capacity: Tokens a row can hold.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (self._allocate(key_states), self._allocate(value_states))
        end = self._length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = states
        self._length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep (or repeat) rows; the buffers' unused part is not copied."""
        assert self._buffers is not None
        selected = []
        for buffer in self._buffers:
            rows = buffer.new_empty(len(indices), *buffer.shape[1:])
            rows[:, :, : self._length] = buffer[indices, :, : self._length]
            selected.append(rows)
        self._buffers = (selected[0], selected[1])
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)

    def _allocate(self, states: Tensor) -> Tensor:
        batch, heads, _, size = states.shape
        return states.new_empty(batch, heads, self._capacity, size)


def make_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for a model config; layers of full attention are preallocated, others as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache
