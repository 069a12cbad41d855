"""Which of torch's attention kernels are used, and in which dtype products are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def without_cudnn() -> AbstractContextManager[Any]:
    """F.scaled_dot_product_attention without cuDNN, in the whole process, while it lasts.

    cuDNN builds a plan for every new shape, and here nearly every shape is new: a step's number of
    keys, a pass's lengths. On a B200 that was measured by others at .4 s forward and .5 s backward
    a shape (modelscope/FunASR issue 3704); torch prefers cuDNN there. Backward passes of
    checkpointed layers attend again: they must be inside too, or other tensors would be saved.
    """
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which a product of tensors of this dtype is computed: autocast's, where that is on."""
    is_cast = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_cast else dtype
