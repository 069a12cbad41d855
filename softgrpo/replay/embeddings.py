"""Trace + embedding matrix -> the inputs a model saw during the rollout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.policies import POLICIES
from softgrpo.thinking.trace import SoftTrace


def mix(
    embedding: Callable[[Tensor], Tensor],
    ids: Tensor,
    weights: Tensor,
    embedding_noise: Tensor | None = None,
) -> Tensor:
    """s = sum_i w_i E[i] (+ noise): [N, D] in the embedding's dtype.

    Summed in float32 at least and rounded once, whatever autocast says: a rollout and its replay
    run under different ones, and must feed the model the same. Column by column: no [N, K, D] is
    made, and the module is called K times whatever N is (where it is sharded, every process must
    call it as often).

    Args:
        embedding: The model's input embedding module (so that one that scales is included).
        ids: [N, K] int.
        weights: [N, K] float.
        embedding_noise: [N, D] or None.
    """
    columns = ids.long().unbind(1)
    first = embedding(columns[0])
    dtype = torch.promote_types(first.dtype, torch.float32)
    shares = weights.to(dtype)[..., None].unbind(1)
    mixture = first.to(dtype) * shares[0]
    for column, share in zip(columns[1:], shares[1:], strict=True):
        mixture.addcmul_(embedding(column).to(dtype), share)
    if embedding_noise is not None:
        mixture += embedding_noise
    return mixture.to(first.dtype)


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
        weights = POLICIES[config.policy].weights(trace.scores[soft], trace.support[soft], config)
        noise = None if trace.embedding_noise is None else trace.embedding_noise[soft]
        mixture = mix(embedding, trace.ids[soft], weights, noise)
        inputs[:, inputs.shape[1] - trace.num_steps :][soft] = mixture
    return inputs.detach()
