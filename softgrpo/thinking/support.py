"""Logits -> the support of a step: temperature, top-k, top-p, min-p, in the authors' order.

It does not sample. The softmax is taken over the top-k columns only: renormalising cancels the
rest of the vocabulary, so no [N, V] softmax is ever needed where top_k is set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softgrpo.thinking.config import BY_ROW, ThinkingConfig


@dataclass(frozen=True)
class Support:
    """The columns a step may mix, in order of falling probability."""

    ids: Tensor  # [N, K] int64, token ids; outside the support the next most likely ones
    probs: Tensor  # [N, K] float, renormalised over the support; 0 outside it
    mask: Tensor  # [N, K] bool, the support

    @property
    def entropy(self) -> Tensor:
        """[N] entropy of the support's distribution, in nats."""
        return -torch.special.xlogy(self.probs, self.probs).sum(-1)


def by_columns(config: ThinkingConfig, logits: Tensor) -> ThinkingConfig:
    """A config with values a row, tensors [N], as columns [N, 1]; one of plain values as it is.

    Such values are converted here and nowhere else: afterwards everything broadcasts.
    """
    given = {name: value for name in BY_ROW if isinstance(value := getattr(config, name), Tensor)}
    if not given:
        return config
    dtype = torch.promote_types(logits.dtype, torch.float32)
    columns: dict[str, Any] = {
        name: value.to(logits.device, dtype if value.is_floating_point() else value.dtype)[:, None]
        for name, value in given.items()
    }
    return replace(config, **columns)


def select_support(logits: Tensor, config: ThinkingConfig) -> Support:
    """Keep the top-k, of those the top-p nucleus, of those what passes min-p.

    Args:
        logits: [N, V] float, raw logits of the step.
        config: Its temperature, top_k, top_p and min_p, plain or ``by_columns``; top_k None keeps V
            columns.

    Returns:
        A Support with K = the largest top_k columns.
    """
    top_k = logits.shape[-1] if config.top_k is None else config.top_k
    num_columns = int(top_k.max()) if isinstance(top_k, Tensor) else top_k
    values, ids = torch.topk(logits, num_columns, dim=-1)
    scaled = values.to(torch.promote_types(values.dtype, torch.float32)) / config.temperature
    if isinstance(top_k, Tensor):
        in_top_k = torch.arange(num_columns, device=logits.device) < top_k
    else:
        in_top_k = torch.ones_like(scaled, dtype=torch.bool)
    probs = torch.softmax(scaled.masked_fill(~in_top_k, -torch.inf), dim=-1)
    return cut_support(ids, probs, in_top_k, config)


def cut_support(ids: Tensor, probs: Tensor, mask: Tensor, config: ThinkingConfig) -> Support:
    """Of these columns keep the top-p nucleus, of that what passes min-p.

    Args:
        ids: [N, K] int64, in order of falling probability.
        probs: [N, K] float, of the distribution that top_p is a share of.
        mask: [N, K] bool, the columns that may be kept.
        config: Its top_p and min_p, plain or ``by_columns``.
    """
    top_p, min_p = config.top_p, config.min_p
    assert top_p is not None, "ThinkingConfig fills it in"
    before = probs.cumsum(-1) - probs
    # At top_p = 1 nothing is cut: rounding may carry the running sum past 1.
    mask = mask & ((before <= top_p) | (top_p >= 1))
    probs = probs.masked_fill(~mask, 0.0)

    mask = mask & (probs >= probs[..., :1] * min_p)
    probs = probs.masked_fill(~mask, 0.0)
    return Support(ids=ids, probs=probs / probs.sum(-1, keepdim=True), mask=mask)
