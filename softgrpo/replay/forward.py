"""The replay inside a model's own forward: ``model(..., trace=trace)`` -> log-densities.

Everything runs inside ``forward`` so that the hooks of DDP, FSDP2 and PEFT fire as they do for an
ordinary call (TRL adds its fused head the same way). The trace travels as one object that wrappers
do not look into, so that none casts its float32 scores to a training dtype. Results are float32; an
FSDP2 policy with an ``output_dtype`` rounds them.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from softgrpo.modeling.inputs import position_ids
from softgrpo.replay.ancestors import packed_hidden
from softgrpo.replay.embeddings import build_inputs_embeds
from softgrpo.replay.head import OutputHead
from softgrpo.replay.logps import Replayed, replay_steps
from softgrpo.replay.packing import pack
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.trace import SoftTrace


def replay(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    trace: SoftTrace,
    objective: Objective,
    share_prompts: bool = False,
) -> Replayed:
    """Log-densities and entropies of a trace's steps under a model.

    Args:
        model: A transformers causal LM (``check_model`` holds for it).
        input_ids: [B, P + T] int64: prompts left-padded, then reported tokens right-padded.
        attention_mask: [B, P + T], 1 at tokens.
        trace: The T recorded steps.
        objective: The density, and the rollout's settings, which must be the trace's.
        share_prompts: Compute one row without padding, in which the common beginnings of prompts
            stand once (see replay.packing). The results are the same.

    Returns:
        Replayed with logps and entropies [B, T] in nats; 0 where attention_mask is 0.
    """
    num_steps = trace.num_steps
    embedding = model.get_input_embeddings()
    inputs = build_inputs_embeds(input_ids, trace, embedding, objective.config)
    if torch.is_grad_enabled() and not inputs.requires_grad:
        # Reentrant checkpointing gives a block no gradient if none of its inputs needs one.
        inputs.requires_grad_(bool(getattr(model, "is_gradient_checkpointing", False)))
    mask = attention_mask[:, -num_steps:].bool()
    if share_prompts:
        packed = pack(input_ids, attention_mask, num_steps)
        hidden = packed_hidden(model, inputs, packed)[packed.predictor]
    else:
        hidden = model.base_model(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state[:, -num_steps - 1 : -1][mask]
    embed = None if trace.embedding_noise is None else embedding
    flat = replay_steps(hidden, OutputHead.of(model), trace.steps(mask), objective, embed)
    zeros = flat.logps.new_zeros(mask.shape)
    return Replayed(
        zeros.masked_scatter(mask, flat.logps), zeros.masked_scatter(mask, flat.entropies)
    )


def add_replay(model: Any, objective: Objective, share_prompts: bool = False) -> None:
    """Give a model's forward the keyword ``trace``; without it the forward is the original.

    ``model(input_ids=..., attention_mask=..., trace=trace)`` then returns Replayed's fields as a
    dict. Call before wrapping the model.
    """
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, trace: SoftTrace | None = None, **kwargs: Any) -> Any:
        if trace is None:
            return original(*args, **kwargs)
        batch = kwargs["input_ids"], kwargs["attention_mask"]
        replayed = replay(self, *batch, trace, objective, share_prompts)
        # A dict: FSDP2 and DDP look into it for the tensors whose backward they hook.
        return replayed._asdict()

    model.forward = types.MethodType(forward, model)
