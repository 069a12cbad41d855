"""Small arrays on their way to a device, all in one transfer.

Every transfer waits for the device, and on a GPU a wait costs more than the bytes do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(device: torch.device, **arrays: np.ndarray) -> dict[str, Tensor]:
    """The arrays as tensors on a device, by name.

    They travel as float64, which holds every integer below 2^53, and arrive as bool, int64 or
    float64.
    """
    flat = np.concatenate([array.ravel() for array in arrays.values()], dtype=np.float64)
    parts = torch.from_numpy(flat).to(device).split([array.size for array in arrays.values()])
    return {
        name: part.reshape(array.shape).to(_KINDS[array.dtype.kind])
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    }


_KINDS = {"b": torch.bool, "i": torch.int64, "f": torch.float64}
