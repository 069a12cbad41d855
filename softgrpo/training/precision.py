"""The number formats of a training run: what libraries round that must not be rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def keep_results(fsdp_plugin: Any) -> None:
    """Let a model sharded by FSDP2 return what it computed, in the dtype it was computed in.

    accelerate's policy casts results to the training dtype. Log-densities are computed in float32;
    in bfloat16 one of -100 nats moves by up to a quarter, and a ratio with it.

    Args:
        fsdp_plugin: accelerate's FullyShardedDataParallelPlugin, changed in place; None: no FSDP.
    """
    policy = getattr(fsdp_plugin, "mixed_precision_policy", None)
    if policy is not None and fsdp_plugin.fsdp_version == 2:
        fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=None)
