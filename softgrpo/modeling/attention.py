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

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softgrpo.modeling.kernels import without_cudnn

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


def decoding_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask for sdpa, which is not asked whether it masks anything.

    A decoding step brings a padding mask only where there is padding, so nobody need look for it,
    which a GPU would wait for.
    """
    if kwargs["q_length"] == 1 and kwargs.get("attention_mask") is not None:
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


def attend_in_groups(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """F.scaled_dot_product_attention with the heads of a group as rows of one query block.

    Keys and values are not repeated for each head; torch's own grouping is slow on a CPU.

    Args:
        query: [B, H, L, D].
        key, value: [B, H', S, D], H a multiple of H'.
        mask: [B, 1, L, S] or None.
        options: dropout_p and scale.

    Returns:
        [B, H, L, D of the values].
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    if mask is not None and length > 1:  # a single row broadcasts
        mask = mask.repeat(1, 1, heads // groups, 1)
    output = F.scaled_dot_product_attention(
        query.reshape(batch, groups, heads // groups * length, size),
        key,
        value,
        attn_mask=mask,
        **options,
    )
    return output.reshape(batch, heads, length, value.shape[-1])


def narrow_layers(config: Any) -> str:
    """The kinds of layer that do not attend to every earlier token; empty where all do.

    Args:
        config: The text model's.
    """
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds or not getattr(config, "sliding_window", None):
        return ", ".join(sorted(kinds))
    return "sliding window"


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let a model that attends by sdpa or flash attention do so in groups while decoding.

    With a padding mask transformers' flash attention would copy the whole cache at every step.
    """
    config = model.config
    own = config._attn_implementation
    caps = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    is_same = own == "sdpa" or own.startswith("flash_attention") and caps is None
    with without_cudnn():
        if not is_same:
            yield
            return
        config._attn_implementation = _NAME
        try:
            yield
        finally:
            config._attn_implementation = own


AttentionInterface.register(_NAME, grouped_sdpa)
AttentionMaskInterface.register(_NAME, decoding_mask)
