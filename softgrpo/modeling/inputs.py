"""What a causal LM is fed: a mixture of its embeddings, and where each token stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mix(
    embedding: Callable[[Tensor], Tensor],
    ids: Tensor,
    weights: Tensor,
    embedding_noise: Tensor | None = None,
) -> Tensor:
    """s = sum_i w_i E[i] (+ noise): [N, D] in the embedding's dtype.

    Summed in float32 at least and rounded once, whatever autocast says: a rollout and its replay
    run under different ones, and must feed the model the same. Column by column: no [N, K, D] is
    made, and the module is called K times whatever N is (where it is sharded, every process must
    call it as often).

    Args:
        embedding: The model's input embedding module (so that one that scales is included).
        ids: [N, K] int.
        weights: [N, K] float.
        embedding_noise: [N, D] or None.
    """
    columns = ids.long().unbind(1)
    first = embedding(columns[0])
    dtype = torch.promote_types(first.dtype, torch.float32)
    shares = weights.to(dtype)[..., None].unbind(1)
    mixture = first.to(dtype) * shares[0]
    for column, share in zip(columns[1:], shares[1:], strict=True):
        mixture.addcmul_(embedding(column).to(dtype), share)
    if embedding_noise is not None:
        mixture += embedding_noise
    return mixture.to(first.dtype)


def position_ids(attention_mask: Tensor) -> Tensor:
    """[B, L] positions that count tokens only, so that left padding does not shift them."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
