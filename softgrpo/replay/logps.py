"""Recorded steps under a model: hidden states or logits + trace -> per-step log-densities.

At a soft step only the recorded columns of the head are computed: renormalising over them cancels
the full-vocabulary log-sum-exp. At an ordinary token the log-softmax is taken in chunks of tokens.
So no [tokens, V] tensor ever exists at soft steps, nor a whole one anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softgrpo.replay.head import OutputHead
from softgrpo.replay.kernels import product_dtype
from softgrpo.replay.tokens import token_logps, tokens_from_hidden
from softgrpo.thinking import densities
from softgrpo.thinking.densities import DensityName, Reduction
from softgrpo.thinking.objective import Objective


class Replayed(NamedTuple):
    """Per-step results, flat over steps: logps [N] and entropies [N], both in nats."""

    logps: Tensor
    entropies: Tensor


def logps_from_logits(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    *,
    temperature: float = 1.0,
    density: DensityName = "gumbel",
    reduction: Reduction = "masked_mean",
    answer_temperature: float | None = None,
    noise_clamp: tuple[float, float] | None = (-1.5, 3.0),
    prob_floor: float = 1e-6,
    alpha: float = 1.0,
    sigma: float = 0.05,
    embedding_noise: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Log-densities of recorded steps from full logits: the reference way.

    Args:
        logits: [N, V] float, raw logits of the step, with gradient.
        ids: [N, K] int, recorded columns; column 0 is the token of an ordinary step.
        scores: [N, K] float, recorded scores.
        support: [N, K] bool.
        is_soft: [N] bool; False takes log softmax(logits / answer_temperature) of ids[:, 0].
        temperature: Of the soft steps.
        density, reduction: See softgrpo.thinking.densities.
        answer_temperature: Of the ordinary tokens; None: temperature.
        noise_clamp, prob_floor, alpha, sigma: See ThinkingConfig.
        embedding_noise: [N, D], density ``embedding_gaussian`` only.
        embed: Token ids -> embeddings, density ``embedding_gaussian`` only.

    Returns:
        [N] float32 (float64 for float64 logits), nats.
    """
    objective = Objective(
        density=density,
        reduction=reduction,
        temperature=temperature,
        answer_temperature=temperature if answer_temperature is None else answer_temperature,
        noise_clamp=noise_clamp,
        prob_floor=prob_floor,
        alpha=alpha,
        sigma=sigma,
    )
    return replay_logits(logits, ids, scores, support, is_soft, objective, embedding_noise, embed)


def logps_from_hidden(
    hidden: Tensor,
    head: OutputHead | nn.Linear,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    *,
    temperature: float = 1.0,
    answer_temperature: float | None = None,
    embedding_noise: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
    **options: object,
) -> Tensor:
    """As ``logps_from_logits``, from hidden states [N, D] and a head, without [N, V] logits."""
    objective = Objective(
        temperature=temperature,
        answer_temperature=temperature if answer_temperature is None else answer_temperature,
        **options,  # type: ignore[arg-type]
    )
    if isinstance(head, nn.Linear):
        head = OutputHead.of(head)
    return replay_steps(
        hidden, head, ids, scores, support, is_soft, objective, embedding_noise, embed
    ).logps


def replay_logits(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    objective: Objective,
    embedding_noise: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """As ``logps_from_logits``, with its settings as an Objective."""
    rows = is_soft.nonzero()[:, 0], (~is_soft).nonzero()[:, 0]
    ids = torch.cat([ids[:, :1], ids[:, 1:].masked_fill(~is_soft[:, None], 0)], dim=1)
    return replay_rows(logits, ids, scores, support, rows, objective, embedding_noise, embed)


def replay_rows(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    rows: tuple[Tensor, Tensor],
    objective: Objective,
    embedding_noise: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """As ``replay_logits``, told which rows are soft and which are tokens: int64, both.

    Where the host knows them already, nobody has to wait for the device to say so.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = logits.new_zeros(len(logits), dtype=dtype)
    soft, tokens = rows
    if len(soft):
        # Gathered before rows are chosen, which would copy them whole; a token's other ids are 0.
        columns = logits.gather(-1, ids.long())[soft].to(dtype)
        noise = None if embedding_noise is None else embedding_noise[soft]
        edge = densities.clamp_edge(product_dtype(logits.device, logits.dtype))
        replayed = _soft_steps(
            columns, ids[soft], scores[soft], support[soft], objective, edge, noise, embed
        )
        logps = logps.index_copy(0, soft, replayed.logps)
    if len(tokens):
        labels = ids[tokens, 0].long()
        some = logits if len(tokens) == len(logits) else logits[tokens]
        token_logp, _ = token_logps(some, labels, objective.answer_temperature)
        logps = logps.index_copy(0, tokens, token_logp)
    return logps


def replay_steps(
    hidden: Tensor,
    head: OutputHead,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    is_soft: Tensor,
    objective: Objective,
    embedding_noise: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Replayed:
    """Log-densities and entropies of N recorded steps.

    Args:
        hidden: [N, D] float, the hidden state that predicts each step, with gradient.
        head: The model's output head.
        ids, scores, support, is_soft: As in logps_from_logits.
        objective: The density and its settings.
        embedding_noise, embed: Density ``embedding_gaussian`` only.

    Returns:
        Replayed: at a soft step the entropy is that of the support, at a token the vocabulary's.
        Both carry a gradient.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logps = hidden.new_zeros(len(hidden), dtype=dtype)
    entropies = torch.zeros_like(logps)
    soft, tokens = is_soft.nonzero()[:, 0], (~is_soft).nonzero()[:, 0]
    parts = []
    # Soft steps also where there are none, but for ordinary GRPO: a sharded embedding is called as
    # often in every process, and the head is in the graph of every pass.
    if objective.density != "token":
        columns, head = head.columns(hidden[soft], ids[soft])
        noise = None if embedding_noise is None else embedding_noise[soft]
        edge = densities.clamp_edge(product_dtype(hidden.device, hidden.dtype))
        replayed = _soft_steps(
            columns, ids[soft], scores[soft], support[soft], objective, edge, noise, embed
        )
        parts.append((soft, replayed))
    if len(tokens) or not parts:
        parts.append((tokens, _tokens(hidden[tokens], head, ids[tokens, 0], objective)))
    for rows, part in parts:
        logps = logps.index_copy(0, rows, part.logps.to(dtype))
        entropies = entropies.index_copy(0, rows, part.entropies.to(dtype))
    return Replayed(logps, entropies)


def _tokens(hidden: Tensor, head: OutputHead, labels: Tensor, objective: Objective) -> Replayed:
    return Replayed(*tokens_from_hidden(hidden, head, labels.long(), objective.answer_temperature))


def _soft_steps(
    columns: Tensor,
    ids: Tensor,
    scores: Tensor,
    support: Tensor,
    objective: Objective,
    edge: float,
    embedding_noise: Tensor | None,
    embed: Callable[[Tensor], Tensor] | None,
) -> Replayed:
    logits = columns / objective.temperature
    entropies = densities.support_entropy(logits, support)
    if objective.density == "embedding_gaussian":
        if embedding_noise is None or embed is None:
            raise ValueError("density 'embedding_gaussian' needs embedding_noise and embed")
        with torch.no_grad():
            embeddings = embed(ids.long())
        logps = densities.embedding_gaussian(
            logits,
            scores,
            support,
            embedding_noise,
            embeddings,
            objective.sigma,
            objective.reduction,
        )
    else:
        logps = objective.log_density(logits, scores, support, edge)
    return Replayed(logps, entropies)
