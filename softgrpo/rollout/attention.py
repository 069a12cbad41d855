"""Decode attention that does not copy the cache.

transformers' sdpa attention repeats the keys and values of a group for each of its heads whenever
there is a mask, as there is for prompts of different lengths, and leaves it to torch's own grouping
where there is none, which is slow on a CPU: with a cache that is most of a decoding step. Here the
heads of a group are the rows of one query block over the same keys. It is the same function of the
same numbers; prefill and everything else go to transformers' own.

Rows that came later see nothing of the oldest one's columns. On a CPU, which would multiply them
all the same, rows of a model that attends by sdpa do so in a few blocks, each from its own first
column on; the cache keeps old rows before young ones (SlotCache.order_without), so that a block's
rows begin close to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softgrpo.replay.kernels import without_cudnn
from softgrpo.replay.layouts import attend_in_groups

# Rows of a block on a CPU; blocks are worth their calls where they leave out this share of all.
BLOCK, _MIN_SAVED = 16, 0.15
_NAME = "softgrpo_grouped_sdpa"
_BLOCKS = "softgrpo_blocks"  # attribute of a mask


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
    blocks = getattr(attention_mask, _BLOCKS, [])
    needs_nothing = heads == key.shape[1] and not blocks
    if not is_plain or needs_nothing or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    outputs = [
        attend_in_groups(
            query[rows],
            key[rows, :, columns],
            value[rows, :, columns],
            None if attention_mask is None else attention_mask[rows, ..., columns],
            scale=scaling,
        )
        for rows, columns in blocks or [(slice(None), slice(None))]
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.transpose(1, 2), None


def blocked_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask for sdpa; that of a decoding step says in which blocks to attend.

    A decoding step brings a padding mask only where there is padding, so nobody need look for it,
    which a GPU would wait for.
    """
    if kwargs["q_length"] == 1 and kwargs.get("attention_mask") is not None:
        kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(*args, **kwargs)
    if mask is not None and mask.device.type == "cpu" and mask.shape[2] == 1:
        setattr(mask, _BLOCKS, _blocks(mask[:, 0, 0]))
    return mask


def rows_of_a_block(model: Any) -> int | None:
    """How many rows attend together while decoding; None: all of them."""
    attends_in_blocks = model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    return BLOCK if attends_in_blocks else None


def _blocks(visible: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of each block of a mask [rows, columns]; none where they do not pay."""
    first = visible.int().argmax(dim=1).split(BLOCK)
    columns = [int(starts.min()) for starts in first]
    left_out = sum(column * len(starts) for column, starts in zip(columns, first, strict=True))
    if left_out < _MIN_SAVED * visible.numel():
        return []
    return [
        (slice(BLOCK * i, BLOCK * (i + 1)), slice(column, None)) for i, column in enumerate(columns)
    ]


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
AttentionMaskInterface.register(_NAME, blocked_mask)
