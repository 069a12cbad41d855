"""Small arrays on their way to a device, all in one transfer.

Every transfer waits for the device, and on a GPU a wait costs more than the bytes do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(device: torch.device, **arrays: np.ndarray) -> dict[str, Tensor]:
    """The arrays as tensors on a device, by name; of int64, bool or float64.

    They travel as float64, which holds every integer below 2^53. Nothing is sent where there is
    nothing to send.
    """
    if not arrays:
        return {}
    flat = np.concatenate([array.ravel() for array in arrays.values()], dtype=np.float64)
    parts = torch.from_numpy(flat).to(device).split([array.size for array in arrays.values()])
    return {
        name: part.view(array.shape).to(torch.from_numpy(array).dtype)
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    }
