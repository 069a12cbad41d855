"""Trace + embedding matrix -> the inputs a model saw during the rollout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from softgrpo.thinking.blocks import spans
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.policies import POLICIES
from softgrpo.thinking.trace import SoftTrace

# Embeddings looked up at a time: 24 MiB in float32 where the hidden size is 1,536.
_BLOCK_VECTORS = 4096


def mix(
    embedding: Callable[[Tensor], Tensor],
    ids: Tensor,
    weights: Tensor,
    embedding_noise: Tensor | None = None,
) -> Tensor:
    """s = sum_i w_i E[i] (+ noise): [N, D] in the embedding's dtype.

    Summed in float32 at least and rounded once, whatever autocast says: a rollout and its replay
    run under different ones, and must feed the model the same.

    Args:
        embedding: The model's input embedding module (so that one that scales is included).
        ids: [N, K] int.
        weights: [N, K] float.
        embedding_noise: [N, D] or None.
    """
    parts = [
        _mix(embedding(ids[rows].long()), weights[rows], _at(embedding_noise, rows))
        for rows in spans(max(1, len(ids)), _BLOCK_VECTORS // ids.shape[1])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mix(vectors: Tensor, weights: Tensor, noise: Tensor | None) -> Tensor:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    mixture = (vectors.to(dtype) * weights.to(dtype)[..., None]).sum(1)
    return (mixture if noise is None else mixture + noise).to(vectors.dtype)


def _at(values: Tensor | None, rows: slice) -> Tensor | None:
    return None if values is None else values[rows]


def build_inputs_embeds(
    input_ids: Tensor, trace: SoftTrace, embedding: nn.Module, config: ThinkingConfig
) -> Tensor:
    """Rebuild the inputs of prompts and recorded steps.

    Args:
        input_ids: [B, P + T] int64, prompts left-padded, then the reported tokens.
        trace: T steps of the same B sequences.
        embedding: The model's input embedding module.
        config: The rollout's settings; the trace refuses others.

    Returns:
        [B, P + T, D]. Detached: the mixing of a soft thought belongs to the environment. For policy
        ``discrete`` the tokens are looked up with their gradient, as in ordinary training: where
        the embedding is tied to the head, a detached one would lose half of its gradient.
    """
    trace.require(config)
    if config.policy == "discrete":
        return embedding(input_ids)
    with torch.no_grad():
        inputs = embedding(input_ids)
        soft = trace.is_soft
        if bool(soft.any()):
            weights = POLICIES[config.policy].weights(
                trace.scores[soft], trace.support[soft], config
            )
            noise = None if trace.embedding_noise is None else trace.embedding_noise[soft]
            mixture = mix(embedding, trace.ids[soft], weights, noise)
            completion = inputs[:, inputs.shape[1] - trace.num_steps :]
            inputs = torch.cat(
                [
                    inputs[:, : inputs.shape[1] - trace.num_steps],
                    completion.masked_scatter(soft[..., None], mixture.to(inputs.dtype)),
                ],
                dim=1,
            )
    return inputs.detach()
