"""Recorded steps under a model: hidden states or logits + trace -> per-step log-densities.

At a soft step only the recorded columns of the head are computed: renormalising over them cancels
the full-vocabulary log-sum-exp. At ordinary tokens the log-softmax is taken in chunks. So logits of
the whole vocabulary are never made for soft steps, and never for all tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgrpo.modeling.kernels import product_dtype
from softgrpo.replay.head import OutputHead
from softgrpo.replay.tokens import token_logps, tokens_from_hidden
from softgrpo.thinking import densities
from softgrpo.thinking.densities import DensityName, Reduction
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.trace import Steps

Embed = Callable[[Tensor], Tensor]


class Replayed(NamedTuple):
    """Log-densities and entropies of recorded steps, both in nats.

    Each is float, [N] of N steps, or [B, T] of a batch with 0 where there is no step.
    """

    logps: Tensor
    entropies: Tensor


def logps_from_logits(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    *,
    density: DensityName = "gumbel",
    reduction: Reduction = "masked_mean",
    embedding_noise: Tensor | None = None,
    embed: Embed | None = None,
    **settings: Any,
) -> Tensor:
    """Log-densities of recorded steps from full logits: the reference way.

    Args:
        logits: [N, V] float, raw logits of the step, with gradient.
        ids, scores, support, is_soft, embedding_noise: See Steps.of.
        density, reduction: See softgrpo.thinking.densities.
        embed: Token ids -> embeddings, density ``embedding_gaussian`` only.
        settings: Of ThinkingConfig: temperature (of the soft steps), answer_temperature (of the
            tokens; None or not given: temperature), noise_clamp, prob_floor, alpha, sigma.

    Returns:
        [N] float32 (float64 for float64 logits), nats.
    """
    steps = Steps.of(ids, scores, support, is_soft, embedding_noise)
    objective = Objective.of_density(density, reduction, **settings)
    return replay_logits(logits, steps, objective, embed)


def logps_from_hidden(
    hidden: Tensor,
    head: OutputHead | nn.Linear,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    *,
    density: DensityName = "gumbel",
    reduction: Reduction = "masked_mean",
    embedding_noise: Tensor | None = None,
    embed: Embed | None = None,
    **settings: Any,
) -> Tensor:
    """As ``logps_from_logits``, from hidden states [N, D] and a head, without [N, V] logits."""
    steps = Steps.of(ids, scores, support, is_soft, embedding_noise)
    head = OutputHead.of(head) if isinstance(head, nn.Linear) else head
    objective = Objective.of_density(density, reduction, **settings)
    return replay_steps(hidden, head, steps, objective, embed).logps


def replay_logits(
    logits: Tensor,
    steps: Steps,
    objective: Objective,
    embed: Embed | None = None,
) -> Tensor:
    """Log-densities [N] of recorded steps from their full logits.

    Args:
        logits: [N, V] float, raw logits of the step, with gradient.
        steps: N of them.
        objective: The density.
        embed: Token ids -> embeddings, density ``embedding_gaussian`` only.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = logits.new_zeros(len(logits), dtype=dtype)
    ids, soft, tokens = steps.ids.long(), steps.soft, steps.tokens
    if len(soft):
        # Columns first: choosing rows would copy them with all of their columns.
        columns = logits.gather(-1, ids)[soft].to(dtype)
        edge = densities.clamp_edge(product_dtype(logits.device, logits.dtype))
        replayed = _soft_steps(columns, steps, objective, edge, embed)
        logps = logps.index_copy(0, soft, replayed.logps)
    if len(tokens):
        some = logits if len(tokens) == len(logits) else logits[tokens]
        temperature = objective.config.answer_temperature
        token_logp, _ = token_logps(some, ids[tokens, 0], temperature)
        logps = logps.index_copy(0, tokens, token_logp)
    return logps


def replay_steps(
    hidden: Tensor,
    head: OutputHead,
    steps: Steps,
    objective: Objective,
    embed: Embed | None = None,
) -> Replayed:
    """Log-densities and entropies of N recorded steps.

    Args:
        hidden: [N, D] float, the hidden state that predicts each step, with gradient.
        head: The model's output head.
        steps: N of them.
        objective: The density.
        embed: Token ids -> embeddings, density ``embedding_gaussian`` only.

    Returns:
        Replayed: at a soft step the entropy is that of the support, at a token the vocabulary's.
        Both carry a gradient.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logps = hidden.new_zeros(len(hidden), dtype=dtype)
    entropies = torch.zeros_like(logps)
    soft, tokens = steps.soft, steps.tokens
    parts = []
    # Also if no step is soft, except in ordinary GRPO: every process must call a sharded embedding
    # equally often, and the head must be in the graph of every pass.
    if objective.density != "token":
        columns, head = head.columns(hidden[soft], steps.ids[soft])
        edge = densities.clamp_edge(product_dtype(hidden.device, hidden.dtype))
        parts.append((soft, _soft_steps(columns, steps, objective, edge, embed)))
    if len(tokens) or not parts:
        labels = steps.ids[tokens, 0].long()
        temperature = objective.config.answer_temperature
        replayed = Replayed(*tokens_from_hidden(hidden[tokens], head, labels, temperature))
        parts.append((tokens, replayed))
    for rows, part in parts:
        logps = logps.index_copy(0, rows, part.logps.to(dtype))
        entropies = entropies.index_copy(0, rows, part.entropies.to(dtype))
    return Replayed(logps, entropies)


def _soft_steps(
    columns: Tensor, steps: Steps, objective: Objective, edge: float, embed: Embed | None
) -> Replayed:
    """Log-densities and entropies of the soft ones among some steps, from their logits [S, K]."""
    rows = steps.soft
    logits = columns / objective.config.temperature
    scores, support = steps.scores[rows], steps.support[rows]
    entropies = densities.support_entropy(logits, support)
    if objective.density != "embedding_gaussian":
        return Replayed(objective.log_density(logits, scores, support, edge), entropies)
    if steps.embedding_noise is None or embed is None:
        raise ValueError("density 'embedding_gaussian' needs embedding_noise and embed")
    with torch.no_grad():
        embeddings = embed(steps.ids[rows].long())
    logps = densities.embedding_gaussian(
        logits,
        scores,
        support,
        steps.embedding_noise[rows],
        embeddings,
        objective.config.sigma,
        objective.reduction,
    )
    return Replayed(logps, entropies)
