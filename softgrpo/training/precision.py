"""In which dtype rollouts are made."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def rollout_dtype(
    wanted: str,
    weights: torch.dtype,
    autocast: torch.dtype | None,
    device: torch.device,
    is_sharded: bool,
) -> torch.dtype | None:
    """The dtype of the copy of the model that makes the rollouts; None: no copy, the model does.

    On an accelerator autocast would cast float32 weights again in every decoding step; on a CPU
    they are laid out for decoding anyhow. Of a sharded model there is always a copy, in one piece:
    sequences end at different steps, and a process that decodes on alone would wait for the others'
    shards for ever.

    Args:
        wanted: ``auto``, ``model`` or a name of DTYPES.
        weights: Of the model.
        autocast: What training casts to, if it does.
        device: Where rollouts are made.
        is_sharded: Whether training shards the model (FSDP2).
    """
    is_cast = device.type != "cpu" and weights == torch.float32
    dtype = autocast if wanted == "auto" and is_cast else DTYPES.get(wanted)
    return weights if dtype is None and is_sharded else dtype
