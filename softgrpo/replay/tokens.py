"""Log-probabilities and entropies of ordinary tokens from logits, by blocks of rows.

Written with torch's own operations, a dozen tensors as large as the logits would come and go, and
on a CPU their memory traffic costs more than the head's product. Here a block of rows at a time
goes through all of the arithmetic while it is in cache, forward and backward; what is kept for the
backward pass are the logits themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from softgrpo.thinking.blocks import row_blocks

# exp of it is 0, as is that of -inf; but 0 times it is 0 as well.
_FAR = -1e4


def token_logps(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) of a label, and the entropy of that softmax, by row.

    Differentiable once, by ``backward`` or ``torch.autograd.grad``.

    Args:
        logits: [N, V] float, with gradient.
        labels: [N] int64.
        temperature: > 0.

    Returns:
        Log-probabilities [N] and entropies [N] in nats, float32 at least, both with gradient.
    """
    return _TokenLogps.apply(logits, labels, temperature)


class _TokenLogps(Function):
    """With p = softmax(z), z = logits / temperature and H = -sum p log p:

    d log p_label / dz = onehot(label) - p,  dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> tuple:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_sums, logps, entropies = logits.new_empty(3, len(logits), dtype=dtype)
        for rows in row_blocks(logits):
            z = logits[rows].to(dtype) / temperature
            highest = z.amax(dim=-1, keepdim=True)
            z -= highest
            chosen = z.gather(-1, labels[rows, None])[:, 0]
            weights = torch.exp(z)
            total = weights.sum(dim=-1)
            log_total = torch.log(total)
            log_sums[rows] = log_total + highest[:, 0]
            logps[rows] = chosen - log_total
            weights *= z.clamp_min_(_FAR)
            entropies[rows] = log_total - weights.sum(dim=-1) / total
        ctx.save_for_backward(logits, labels, log_sums, entropies)
        ctx.temperature = temperature
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_entropies: Tensor) -> tuple:
        logits, labels, log_sums, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in row_blocks(logits):
            logp = logits[rows].to(log_sums.dtype) / ctx.temperature - log_sums[rows, None]
            to_entropy = grad_entropies[rows, None]
            slope = torch.exp(logp)
            logp.clamp_min_(_FAR).add_(entropies[rows, None]).mul_(-to_entropy)
            slope *= logp.sub_(grad_logps[rows, None])
            slope.scatter_add_(-1, labels[rows, None], grad_logps[rows, None])
            grad[rows] = slope / ctx.temperature
        return grad, None, None
