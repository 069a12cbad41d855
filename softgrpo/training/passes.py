"""A batch through the model in several passes, each within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from softgrpo.thinking import SoftTrace, ThinkingConfig
from softgrpo.training.micro_batches import Batch, put_back, take, trace_of


def replay_in_passes(
    replay: Callable[[Tensor, Tensor, SoftTrace], tuple[Tensor, Tensor]],
    batch: Batch,
    passes: list[list[int]],
    config: ThinkingConfig,
) -> tuple[Tensor, Tensor]:
    """Log-densities and entropies [B, T] of a batch, in nats, for whoever needs no gradient.

    Args:
        replay: (ids [b, L], attention mask [b, L], trace) -> those of one pass [b, t].
        batch: B sequences.
        passes: The rows of each pass, see ``plan_passes``.
        config: The rollouts'.
    """
    replayed = []
    for part in (take(batch, rows) for rows in passes):
        input_ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        attention_mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        replayed.append(replay(input_ids, attention_mask, trace_of(part, config)))
    logps, entropies = zip(*replayed, strict=True)
    num_steps = batch["completion_ids"].shape[1]
    return put_back(logps, passes, num_steps), put_back(entropies, passes, num_steps)


@contextmanager
def without_checkpointing(model: Any) -> Iterator[None]:
    """Let a model's layers keep their activations for the backward pass."""
    layers = [x for x in model.modules() if getattr(x, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
