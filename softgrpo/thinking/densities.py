"""Log-densities of a recorded soft step: formulas, equation numbers, and nothing else.

Every function takes the recorded columns' logits already divided by the temperature. A density is
one of the recorded scores, with respect to Lebesgue measure on the support's scores unless it says
otherwise; terms without theta are dropped only where the docstring says so. The authors' variants
(``masked_mean``) are not densities: they are means of per-column log-densities, kept because the
published results were made with them. [1]-[4], [9]: see docs/paper_index.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from softgrpo.thinking.config import ThinkingConfig

DensityName = Literal[
    "gumbel",
    "concrete",
    "argmax",
    "censored",
    "dirichlet",
    "gaussian",
    "embedding_gaussian",
    "none",
    "token",
]
Reduction = Literal["masked_mean", "sum"]

LOG_PROB_THRESHOLD = -3.0  # [1] Gumbel: columns that count have log p above this
PROB_THRESHOLD = 0.05  # the same for the Dirichlet and Gaussian noises
SCORE_RANGE = (-5.0, 3.0)  # the authors clamp a Gamma log-density to this


def clamp_edge(dtype: torch.dtype) -> float:
    """How far rounding may move d = g' - log p, for logits that were computed in a dtype.

    In bfloat16 .25. Measured with a model of 135M parameters: replays of the same 4,700 columns
    under autocast and in float32 differ by .03 in the root mean square and by .22 at the most. In
    float32 1e-5, far below a step of training.
    """
    return max(1e-5, 32 * torch.finfo(dtype).eps)


def gumbel_masked_mean(
    logits: Tensor,
    scores: Tensor,
    noise_clamp: tuple[float, float] | None = ThinkingConfig.noise_clamp,
    prob_floor: float = ThinkingConfig.prob_floor,
    edge: float = clamp_edge(torch.float32),
) -> Tensor:
    """The authors' objective: a clamped, masked mean of Gumbel log-densities, the default.

        mean over {i : log p_i > -3} of  -d_i - exp(-d_i),  d_i = clamp(g'_i - log p_i)

    with p renormalised over all K recorded ids [4], log(p + prob_floor) [3], d clamped [2] and the
    mean over [1]. Where no column passes -3 the authors divide by zero [9]; here all K count.

    A draw that was clamped lies on the very edge of the clamp here, where rounding would decide
    whether it has a gradient: within ``edge`` of the range it has one, as it has on it. Without
    noise_clamp nothing bounds the terms of columns outside the support.
    """
    probs = torch.softmax(logits, dim=-1) + prob_floor
    log_probs = torch.log(probs.clamp_min(torch.finfo(probs.dtype).tiny))
    d = scores.to(logits.dtype) - log_probs
    if noise_clamp is not None:
        low, high = noise_clamp
        has_gradient = (d > low - edge) & (d < high + edge)
        d = torch.where(has_gradient, d, d.detach())
        d = d + (d.clamp(low, high) - d).detach()
    return _masked_mean(-d - torch.exp(-d), log_probs > LOG_PROB_THRESHOLD)


def gumbel_sum(logits: Tensor, scores: Tensor, support: Tensor) -> Tensor:
    """Eq. 11-12 on the recorded support: sum_i [-d_i - exp(-d_i)], d_i = g'_i - log p_i.

    The density of g' when the noise was not clamped.
    """
    d = scores.to(logits.dtype) - log_support(logits, support)
    return _sum_support(-d - torch.exp(-d), support)


def concrete(logits: Tensor, scores: Tensor, support: Tensor) -> Tensor:
    """Density of the weights themselves (Maddison et al. 1611.00712, Eq. 6), on the simplex.

        sum_i log p_i - n log sum_i p_i exp(-g'_i),   n = |S|

    up to terms without theta. tau cancels: tau log w_i = g'_i - const, and a constant added to all
    g' moves this by a constant. Its score is E[score of gumbel_sum | w], a Rao-Blackwellisation:
    same expectation, never more variance.
    """
    log_probs = log_support(logits, support)
    terms = torch.where(support, log_probs - scores.to(logits.dtype), -torch.inf)
    return _sum_support(log_probs, support) - support.sum(-1) * torch.logsumexp(terms, dim=-1)


def censored(
    logits: Tensor, scores: Tensor, support: Tensor, tau: float, min_weight: float
) -> Tensor:
    """Density of a mixture whose weights below min_weight times the largest were cut.

        sum_{i in S} log p_i - n log [ sum_{i in S} p_i exp(-g'_i) + exp(-c) sum_{j not in S} p_j ]
        S = {i : g'_i >= c},   c = max g' + tau log(min_weight),   n = |S|

    up to terms without theta. A column that stays has its Gumbel density, one that went the
    probability of lying below c, and the common shift of all g', which no weight depends on, is
    integrated out. So it is the likelihood of what is fed, and of nothing else, whatever
    min_weight is: its score has never more variance than that of ``concrete``, which it is at 0.
    At 1 only the reported token stays, and it is ``argmax`` up to a constant. Ours.
    """
    log_probs = log_support(logits, support)
    scores = scores.to(logits.dtype)
    # At min_weight 0 the edge is at -inf and nothing lies below it: inf times nothing.
    edge = _edge(scores, support, tau, min_weight)
    stays = support & (scores >= edge)
    terms = log_probs - torch.where(stays, scores, edge)
    shift = torch.logsumexp(torch.where(support, terms, -torch.inf), dim=-1)
    return _sum_support(log_probs, stays) - stays.sum(-1) * shift


def heavy_columns(scores: Tensor, support: Tensor, tau: float, min_weight: float) -> Tensor:
    """[N, K] bool, the columns whose weight is at least min_weight times the largest.

    Weights are softmax(g' / tau), so that the scores alone tell, in a rollout and again in its
    replay.
    """
    if not min_weight:  # as published: a step has nothing to launch for it
        return support
    return support & (scores >= _edge(scores, support, tau, min_weight))


def _edge(scores: Tensor, support: Tensor, tau: float, min_weight: float) -> Tensor:
    """[N, 1], the least score of a column that stays; -inf where min_weight is 0."""
    largest = scores.masked_fill(~support, -torch.inf).amax(-1, keepdim=True)
    return largest + tau * (math.log(min_weight) if min_weight else -math.inf)


def argmax(logits: Tensor, scores: Tensor, support: Tensor) -> Tensor:
    """log p of the reported token over the support: exactly log P(argmax w = i) by Gumbel-max.

    A probability mass, not a density; the weights beyond their argmax are not credited, so the
    gradient is slightly biased for a return that depends on them, and far less noisy.
    """
    reported = scores.masked_fill(~support, -torch.inf).argmax(-1, keepdim=True)
    return log_support(logits, support).gather(-1, reported).squeeze(-1)


def dirichlet_masked_mean(
    logits: Tensor, scores: Tensor, alpha: float = ThinkingConfig.alpha
) -> Tensor:
    """The authors' Dirichlet objective: mean over {i : p_i > .05} of clamped Gamma log-densities.

    clamp(log Gamma(x_i; alpha p_i, 1), -5, 3),  p renormalised over all K recorded ids
    """
    probs = torch.softmax(logits, dim=-1)
    counts = _or_all(probs > PROB_THRESHOLD)
    values = _gamma_log_prob(torch.where(counts, probs, 1.0) * alpha, scores)
    return _masked_mean(values.clamp(*SCORE_RANGE), counts)


def dirichlet_sum(
    logits: Tensor, scores: Tensor, support: Tensor, alpha: float = ThinkingConfig.alpha
) -> Tensor:
    """Joint density of the Gamma draws on the support: sum_i log Gamma(x_i; alpha p_i, 1)."""
    probs = torch.where(support, torch.exp(log_support(logits, support)), 1.0)
    return _sum_support(_gamma_log_prob(probs.clamp_min(1e-30) * alpha, scores), support)


def gaussian_masked_mean(
    logits: Tensor, scores: Tensor, sigma: float = ThinkingConfig.sigma
) -> Tensor:
    """The authors' Gaussian objective: mean over {i : p_i > .05} of normal log-densities.

    N(v_i; p_i, sigma^2) with v_i - p_i clamped to 3 sigma, p renormalised over all K recorded ids.
    """
    probs = torch.softmax(logits, dim=-1)
    d = (scores.to(logits.dtype) - probs).clamp(-3 * sigma, 3 * sigma)
    return _masked_mean(_normal_log_prob(d, sigma), probs > PROB_THRESHOLD)


def gaussian_sum(
    logits: Tensor, scores: Tensor, support: Tensor, sigma: float = ThinkingConfig.sigma
) -> Tensor:
    """Density of the noisy probabilities on the support: sum_i log N(v_i; p_i, sigma^2)."""
    probs = torch.exp(log_support(logits, support))
    return _sum_support(_normal_log_prob(scores.to(logits.dtype) - probs, sigma), support)


def embedding_gaussian(
    logits: Tensor,
    scores: Tensor,
    support: Tensor,
    embedding_noise: Tensor,
    embeddings: Tensor,
    sigma: float,
    reduction: Reduction = "sum",
) -> Tensor:
    """Density of the noisy embedding: log N(s; sum_i p_i E_i, sigma^2 I), on R^D.

    Args:
        logits, scores, support: [N, K] as in Objective.log_density; scores are the
            mixture's weights.
        embedding_noise: [N, D] float, what was added to the mixture.
        embeddings: [N, K, D] float, the recorded columns' embeddings, detached: the mixing is the
            environment's, so s - mean is noise + sum_i (w_i - p_i) E_i.
        sigma: Standard deviation of an entry.
        reduction: ``sum`` is the density; ``masked_mean`` divides it by D, which keeps a ratio of
            two densities in R^D within reach of a clip range.

    Returns:
        [N], nats.
    """
    moved = scores.to(logits.dtype) - torch.exp(log_support(logits, support))
    moved = torch.where(support, moved, 0.0)
    d = embedding_noise + torch.einsum("nk,nkd->nd", moved, embeddings.to(moved.dtype))
    values = _normal_log_prob(d, sigma)
    return values.sum(-1) if reduction == "sum" else values.mean(-1)


def support_entropy(logits: Tensor, support: Tensor) -> Tensor:
    """[N] entropy (nats) of the support's distribution at a soft step, with gradient."""
    log_probs = log_support(logits, support)
    return -_sum_support(torch.exp(log_probs) * log_probs, support)


def log_support(logits: Tensor, support: Tensor) -> Tensor:
    """[N, K] log p renormalised over the support; 0 outside it, where it must not be used."""
    log_probs = torch.log_softmax(logits.masked_fill(~support, -torch.inf), dim=-1)
    return torch.where(support, log_probs, 0.0)


def _sum_support(values: Tensor, support: Tensor) -> Tensor:
    return torch.where(support, values, 0.0).sum(-1)


def _or_all(counts: Tensor) -> Tensor:
    """The mask of columns that count, or all columns where none does [9]."""
    return counts | ~counts.any(-1, keepdim=True)


def _masked_mean(values: Tensor, counts: Tensor) -> Tensor:
    counts = _or_all(counts)
    return torch.where(counts, values, 0.0).sum(-1) / counts.sum(-1)


def _gamma_log_prob(concentration: Tensor, x: Tensor) -> Tensor:
    x = x.to(concentration.dtype).clamp_min(1e-30)
    return (concentration - 1) * torch.log(x) - x - torch.lgamma(concentration)


def _normal_log_prob(d: Tensor, sigma: float) -> Tensor:
    return -0.5 * (d / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
