"""Some columns of a product with a vocabulary: logits [N, K] of hidden [N, D] and ids [N, K].

Gathered at once, a head's columns would be [N, K, D]: 16 GB in float32 for 64 thoughts of 8,192
steps. Here they are gathered and multiplied for a block of steps at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from softgrpo.thinking.blocks import spans


def column_logits(
    hidden: Tensor, weight: Tensor, ids: Tensor, block: int = 2**23
) -> tuple[Tensor, Tensor]:
    """hidden @ weight^T at some columns; differentiable once, by hidden and by weight.

    Products and sums are float32 at least, elementwise, so that neither autocast nor a matrix
    product's TF32 rounds them. The gradient of a weight's row is summed before it is rounded.

    Args:
        hidden: [N, D] float.
        weight: [V, D] float.
        ids: [N, K] int64.
        block: Numbers of a block [steps, K, D], 32 MiB in float32; about three are alive at a time.

    Returns:
        The logits [N, K], float32 at least; and the weight again. Whatever else is computed with
        the weight should use the returned one: the gradient of that use then passes through here,
        and this product's is added to it in place, without a second [V, D].
    """
    return _ColumnLogits.apply(hidden, weight, ids, block)


class _ColumnLogits(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, block: int) -> tuple:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.set_materialize_grads(False)
        ctx.block = block
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.new_empty(ids.shape, dtype=dtype)
        for rows in _blocks(ids, weight, block):
            columns = F.embedding(ids[rows], weight).to(dtype)
            logits[rows] = columns.mul_(hidden[rows, None]).sum(-1)
        passed = weight.view_as(weight)
        if not ctx.needs_input_grad[1]:
            # Or it would have a gradient as hidden has one, and whatever uses it make a [V, D].
            ctx.mark_non_differentiable(passed)
        return logits, passed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_weight: Tensor | None) -> tuple:
        hidden, weight, ids = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        if grad is None:
            return None, grad_weight, None, None
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        if grad_hidden is not None:
            for rows in _blocks(ids, weight, ctx.block):
                columns = F.embedding(ids[rows], weight).to(grad.dtype)
                grad_hidden[rows] = columns.mul_(grad[rows, :, None]).sum(1).to(hidden.dtype)
        if needs_weight and grad_weight is not None:
            _add_outer_products(grad_weight, grad, hidden, ids, ctx.block)
        return grad_hidden, grad_weight, None, None


def _add_outer_products(out: Tensor, grad: Tensor, hidden: Tensor, ids: Tensor, block: int) -> None:
    """out[ids[n, k]] += grad[n, k] * hidden[n], for all n and k.

    Ids are sorted, so that the products for a row of ``out`` are summed in float32 first. Added one
    by one to a number in bfloat16, thousands of small ones would be rounded away.
    """
    num_columns = ids.shape[1]
    targets, order = ids.flatten().sort()
    for part in spans(len(order), block // hidden.shape[1]):
        places, rows = order[part], targets[part]
        products = hidden[places // num_columns].to(grad.dtype)
        products.mul_(grad.flatten()[places][:, None])
        # Which of the block's distinct rows a product belongs to, from 0. The other sums stay 0.
        run = F.pad((rows[1:] != rows[:-1]).long().cumsum(0), (1, 0))
        sums = torch.zeros_like(products).index_add_(0, run, products)
        out.index_add_(0, torch.zeros_like(rows).scatter_(0, run, rows), sums.to(out.dtype))


def _blocks(ids: Tensor, weight: Tensor, block: int) -> Iterator[slice]:
    return spans(len(ids), block // (ids.shape[1] * weight.shape[1]))
