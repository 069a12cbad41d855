"""A trace and an embedding module -> the inputs that a model saw during the rollout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgrpo.modeling.inputs import mix
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import MIXERS
from softgrpo.thinking.trace import SoftTrace


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
        [B, P + T, D]. Detached, because the mixing of a soft thought counts as the environment's.
        For policy ``discrete`` the tokens are looked up with gradient, as in ordinary training:
        without, an embedding that is tied to the head would lose a part of its gradient.
    """
    trace.require(config)
    if config.policy == "discrete":
        return embedding(input_ids)
    with torch.no_grad():
        inputs = embedding(input_ids)
        soft = trace.is_soft
        weights = MIXERS[config.policy].weights(trace.scores[soft], trace.support[soft], config)
        noise = None if trace.embedding_noise is None else trace.embedding_noise[soft]
        mixture = mix(embedding, trace.ids[soft], weights, noise)
        inputs[:, inputs.shape[1] - trace.num_steps :][soft] = mixture
    return inputs.detach()
