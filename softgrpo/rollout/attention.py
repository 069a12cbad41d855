"""Decode attention that does not copy the cache.

transformers' sdpa attention repeats the keys and values of a group for each of its heads whenever
there is a mask, as there is for prompts of different lengths, and leaves it to torch's own grouping
where there is none, which is slow on a CPU: with a cache that is most of a decoding step. Here the
heads of a group are the rows of one query block over the same keys. It is the same function of the
same numbers; prefill and everything else go to transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softgrpo.replay.ancestors import attend_in_groups

_NAME = "softgrpo_grouped_sdpa"


def grouped_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; query [B, heads, L, D], keys and values [B, groups, S, D].

    Returns:
        [B, L, heads, D] and no attention weights.
    """
    heads, length = query.shape[1:3]
    # Without a mask a single query sees every key.
    is_plain = length == 1 and (attention_mask is None or attention_mask.shape[1] == 1)
    if not is_plain or heads == key.shape[1] or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    output = attend_in_groups(query, key, value, attention_mask, scale=scaling)
    return output.transpose(1, 2), None


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let a model that attends by sdpa do so in groups while decoding."""
    config = model.config
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


AttentionInterface.register(_NAME, grouped_sdpa)
AttentionMaskInterface.register(_NAME, sdpa_mask)
