"""One thinking step: logits in, the recorded step out. Pure; knows no model and no sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgrpo.thinking.blocks import row_blocks
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import MIXERS, EmbeddingGaussian, invert_cdf
from softgrpo.thinking.support import Support, by_columns, cut_support, select_support


@dataclass(frozen=True)
class SoftStep:
    """What a step drew. Columns in order of falling weight; column 0 is the reported token.

    Attributes:
        ids: [N, K] int64 token ids.
        scores: [N, K] float, what was drawn (see the mixers). Recorded for the replay.
        weights: [N, K] float, the mixture; sums to 1, 0 outside the support.
        support: [N, K] bool.
        entropy: [N] float, nats, of the support's distribution (not of the drawn weights).
        embedding_noise: [N, D] float32 for policy ``embedding_gaussian``, else None.
    """

    ids: Tensor
    scores: Tensor
    weights: Tensor
    support: Tensor
    entropy: Tensor
    embedding_noise: Tensor | None = None


def draw_step(
    logits: Tensor,
    config: ThinkingConfig,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SoftStep:
    """Draw one step of every row (Eq. 9 for policy ``gumbel``).

    Args:
        logits: [N, V] float, raw logits of the next token.
        config: The way to mix and its sampling; values may be tensors [N].
        noise: Exponential(1) draws: [N, K] for the columns in order of falling probability;
            [N, 1] for policy ``discrete``; [N, D] for ``embedding_gaussian``, D the hidden size.
            None draws it here.
        generator: Source of the draws when noise is None.

    Returns:
        A SoftStep; K is the largest top_k (1 for policy ``discrete``).

    Raises:
        ValueError: noise has the wrong width, or is missing for ``embedding_gaussian``.
    """
    mixer, config = MIXERS[config.policy], by_columns(config, logits)
    if config.policy == "discrete":
        return draw_token(logits, config, _noise(noise, (len(logits), 1), logits, generator))[0]
    support = select_support(logits, config)
    embedding_noise = None
    if isinstance(mixer, EmbeddingGaussian):
        if noise is None:
            raise ValueError("policy 'embedding_gaussian' needs noise [N, D], D the hidden size")
        embedding_noise = mixer.embedding_noise(noise, config)
    else:
        noise = _noise(noise, support.ids.shape, logits, generator).to(support.probs.dtype)
    scores = mixer.draw(support, noise, config)
    weights = mixer.weights(scores, support.mask, config)
    # Stable, and by weight alone, as the authors sort: ties (weights of 0) keep probability order.
    # The support goes first even where a weight of it underflows or (Gaussian) is negative.
    by_weight = torch.argsort(
        torch.where(support.mask, weights, -torch.inf), dim=-1, descending=True, stable=True
    )
    return SoftStep(
        ids=support.ids.gather(-1, by_weight),
        scores=scores.gather(-1, by_weight),
        weights=weights.gather(-1, by_weight),
        support=support.mask.gather(-1, by_weight),
        entropy=support.entropy,
        embedding_noise=embedding_noise,
    )


def draw_token(
    logits: Tensor, config: ThinkingConfig, noise: Tensor, num_columns: int | None = None
) -> tuple[SoftStep, Tensor | None]:
    """Sample an ordinary token of every row.

    Args:
        logits: [N, V] float.
        config: Its temperature, top_k, top_p and min_p, plain or ``by_columns``.
        noise: [N, 1] Exponential(1) draws.
        num_columns: Of how many of the likeliest columns to cut a nucleus of the vocabulary; None:
            of all. Sorting all of them takes as long as the model does.

    Returns:
        The step, of one column; and [N] bool, the rows whose columns did not hold top_p of the
        mass, so that what they drew means nothing. None: there can be none.
    """
    top_p, some = config.top_p, num_columns or logits.shape[-1]
    if config.top_k is not None or isinstance(top_p, Tensor):
        return _token_of(select_support(logits, config), noise), None
    if top_p == 1:
        return _token_step(*_draw_from_vocabulary(logits, config, noise)), None
    if some >= logits.shape[-1]:
        return _token_of(select_support(logits, config), noise), None
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / config.temperature
    values, ids = logits.topk(some, dim=-1)
    probs = torch.exp(values - torch.logsumexp(logits, dim=-1, keepdim=True))
    support = cut_support(ids, probs, torch.ones_like(ids, dtype=torch.bool), config)
    assert top_p is not None, "ThinkingConfig fills it in"
    # Where the sum is not finite, more columns would not make a number of it.
    return _token_of(support, noise), probs.sum(-1) <= top_p


def _token_of(support: Support, noise: Tensor) -> SoftStep:
    ids = support.ids.gather(-1, invert_cdf(support.probs, noise))
    return _token_step(ids, support.entropy)


def _token_step(ids: Tensor, entropy: Tensor) -> SoftStep:
    one = torch.ones_like(ids, dtype=entropy.dtype)
    return SoftStep(ids, torch.zeros_like(one), one, one.bool(), entropy)


def _draw_from_vocabulary(
    logits: Tensor, config: ThinkingConfig, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids [N, 1] and entropies [N], drawn from all columns that pass min-p."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    ids = torch.empty_like(noise, dtype=torch.long)
    entropy = noise.new_empty(len(noise), dtype=dtype)
    for rows in row_blocks(logits):
        temperature, min_p = _at(config.temperature, rows), _at(config.min_p, rows)
        probs = torch.softmax(logits[rows].to(dtype) / temperature, dim=-1)
        if isinstance(min_p, Tensor) or min_p > 0:
            low = probs.amax(-1, keepdim=True) * min_p
            probs = probs.masked_fill(probs < low, 0.0)
        ids[rows] = invert_cdf(probs, noise[rows])
        # As xlogy gives it, in less than half the time.
        entropy[rows] = -probs.clamp_min(torch.finfo(dtype).tiny).log_().mul_(probs).sum(-1)
    return ids, entropy


def _at(value: float | Tensor, rows: slice) -> float | Tensor:
    """A setting of some rows; a number is every row's."""
    return value[rows] if isinstance(value, Tensor) else value


def _noise(
    noise: Tensor | None,
    shape: tuple[int, ...],
    logits: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    if noise is None:
        draws = torch.empty(shape, dtype=torch.float32, device=logits.device)
        return draws.exponential_(generator=generator)
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {list(noise.shape)}, this step needs {list(shape)}")
    return noise.to(logits.device)
