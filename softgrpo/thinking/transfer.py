"""Small arrays on their way to a device, all in one transfer.

Every transfer waits for the device, and on a GPU a wait costs more than the bytes do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(device: torch.device, **arrays: np.ndarray) -> dict[str, Tensor]:
    """The arrays as tensors on a device, by name.

    They travel as float64, which holds every integer below 2^53, and arrive as int64, bool or
    float64. Nothing is sent where there is nothing to send.
    """
    if not arrays:
        return {}
    by_kind = sorted(arrays.items(), key=lambda item: "fib".index(item[1].dtype.kind))
    flat = np.concatenate([array.ravel() for _, array in by_kind], dtype=np.float64)
    return spread(torch.from_numpy(flat).to(device), by_kind)


def spread(flat: Tensor, arrays: list[tuple[str, np.ndarray]]) -> dict[str, Tensor]:
    """What has arrived, in its own kinds and shapes; floats come first, then integers, then bools.

    Args:
        flat: [n] float64, the arrays one after the other.
        arrays: Their names, and they themselves, which are looked at and not read.
    """
    sizes = {kind: 0 for kind in "fib"}
    for _, array in arrays:
        sizes[array.dtype.kind] += array.size
    floats, integers, booleans = flat.split(list(sizes.values()))
    values = {"f": floats, "i": integers.long(), "b": booleans.bool()}
    tensors = {}
    for kind, joined in values.items():
        own = [(name, array) for name, array in arrays if array.dtype.kind == kind]
        parts = joined.split([array.size for _, array in own]) if own else ()
        for (name, array), part in zip(own, parts, strict=True):
            tensors[name] = part if array.ndim == 1 else part.view(array.shape)
    return tensors
