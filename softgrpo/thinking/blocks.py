"""Rows of logits that are worked on together, because more would not stay in a processor's cache.

What is computed of a row's whole vocabulary in several passes (a softmax, its entropy, a search)
reads memory once where a block of rows goes through all of them before the next one does.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Logits of a block: in a processor's cache, or enough to fill a GPU.
_CPU_BLOCK, _GPU_BLOCK = 2**18, 2**24


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of logits [N, V], in order; none where N is 0."""
    elements = _CPU_BLOCK if logits.device.type == "cpu" else _GPU_BLOCK
    return spans(len(logits), elements // logits.shape[1])


def spans(count: int, size: int) -> Iterator[slice]:
    """Slices that cover ``count`` rows in order, ``size`` (but one at least) at a time."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
