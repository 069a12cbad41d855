"""What rounding would take away: log-densities that libraries cast, updates that weights lose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn


def keep_results(fsdp_plugin: Any) -> None:
    """Let a model sharded by FSDP2 return what it computed, in the dtype it was computed in.

    The policy of accelerate's plugin casts results to the training dtype. Log-densities are
    computed in float32; in bfloat16 one of -100 nats moves by up to a quarter, and a ratio with it.
    """
    policy = getattr(fsdp_plugin, "mixed_precision_policy", None)
    if policy is not None and fsdp_plugin.fsdp_version == 2:
        fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def lost_updates(parameters: Iterable[nn.Parameter], learning_rate: float) -> str | None:
    """What to say where trained parameters are too coarse for their updates; None: nothing.

    The learning rate is about the size of Adam's updates.
    """
    dtypes = {p.dtype for p in parameters if p.requires_grad and torch.finfo(p.dtype).bits < 32}
    if not dtypes:
        return None
    dtype = max(dtypes, key=lambda kind: torch.finfo(kind).eps)
    return (
        f"updates will be lost: the trained weights are {str(dtype).removeprefix('torch.')} and "
        f"have no float32 masters; a relative change below {_smallest_change(dtype):.3g} is "
        f"rounded away, and with it an update of learning_rate={learning_rate:.3g} on every weight "
        f"above {largest_that_moves(learning_rate, dtype):.3g}; load the weights in float32 and "
        "train with bf16: true"
    )


def largest_that_moves(update: float, dtype: torch.dtype) -> float:
    """The weight above which adding an update of this size gives the same weight again."""
    return update / _smallest_change(dtype)


def _smallest_change(dtype: torch.dtype) -> float:
    """Relative changes below this are always rounded away; above twice of it, never."""
    return torch.finfo(dtype).eps / 4
