"""One row for a whole micro-batch, every token once: prompts that begin alike are computed once.

The G samples of a prompt, and few-shot examples in front of every question, make most tokens of a
GRPO micro-batch copies. Here the prompts become a tree whose leaves the completions hang on, laid
out in one row; a mask lets each token attend to its ancestors alone, so the result is that of the
padded batch, at the price of its distinct tokens and without its padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Packed(NamedTuple):
    """A micro-batch as one row of S tokens.

    Attributes:
        source: [S] int64, index of each token in the flattened [B * L] batch.
        positions: [S] int64, its position in its own sequence.
        mask: [S, S] bool, True where the row's token attends to the column's.
        predictor: [N] int64, for each completion token of the batch (in row-major order of its
            mask), the packed token whose hidden state predicts it.
    """

    source: Tensor
    positions: Tensor
    mask: Tensor
    predictor: Tensor


def pack(input_ids: Tensor, attention_mask: Tensor, num_steps: int) -> Packed:
    """Lay a left-padded batch out as a tree of its prompts with its completions.

    Args:
        input_ids: [B, P + T] int64; the last ``num_steps`` columns are completions, which are never
            shared (a soft step's input is not its token's).
        attention_mask: [B, P + T].
        num_steps: T.
    """
    ids, present = input_ids.tolist(), attention_mask.bool().tolist()
    length = input_ids.shape[1]
    children: dict[tuple[int, int], int] = {}
    source: list[int] = []
    parents: list[int] = []
    predictor: list[int] = []
    for row in range(len(ids)):
        node = -1
        for column in range(length):
            if not present[row][column]:
                continue
            is_prompt = column < length - num_steps
            edge = (node, ids[row][column])
            if is_prompt and edge in children:
                node = children[edge]
                continue
            if not is_prompt:
                predictor.append(node)
            parents.append(node)
            node = len(source)
            source.append(row * length + column)
            if is_prompt:
                children[edge] = node
    mask = np.zeros((len(source), len(source)), dtype=bool)
    positions = np.zeros(len(source), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] = mask[parent]
            positions[node] = positions[parent] + 1
        mask[node, node] = True
    device = input_ids.device
    return Packed(
        source=torch.tensor(source, device=device),
        positions=torch.from_numpy(positions).to(device),
        mask=torch.from_numpy(mask).to(device),
        predictor=torch.tensor(predictor, dtype=torch.long, device=device),
    )


def as_attention_mask(packed: Packed, model: Any, dtype: torch.dtype) -> Tensor:
    """[1, 1, S, S] as the model's attention takes it: bool (sdpa), added to scores (eager)."""
    mask = packed.mask[None, None]
    if model.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )


def check_packing(model: Any) -> None:
    """Refuse a model whose attention cannot be given an arbitrary mask.

    Raises:
        ValueError: Names the attention implementation or the kind of layer.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"share_prompts: attention {implementation!r} takes no mask of ancestors; load the "
            "model with attn_implementation sdpa or eager, or set share_prompts: false"
        )
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None):
        raise ValueError(
            f"share_prompts: {type(model).__name__} has layers other than full attention "
            f"({sorted(kinds) or 'sliding window'}): set share_prompts: false"
        )
