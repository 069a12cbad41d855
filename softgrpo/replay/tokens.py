"""Log-probabilities and entropies of ordinary tokens, from logits or from hidden states.

torch's own operations would make a dozen tensors as large as the logits, and on a CPU that memory
traffic costs more than the head's product. Here all of the arithmetic is done for one block of rows
at a time, while it is in cache, forward and backward. The logits are kept for the backward pass or,
where they are many, the hidden states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from softgrpo.modeling.kernels import product_dtype
from softgrpo.replay.head import OutputHead
from softgrpo.thinking.blocks import row_blocks, spans

# Stands for -inf: its exp is 0 too, but 0 * _FAR is 0 and not NaN.
_FAR = -1e4


def tokens_from_hidden(
    hidden: Tensor, head: OutputHead, labels: Tensor, temperature: float, chunk: int = 2**24
) -> tuple[Tensor, Tensor]:
    """``token_logps`` of the head's logits, of which a chunk is made at a time.

    Args:
        hidden: [N, D] float, with gradient.
        head: The output head.
        labels: [N] int64.
        temperature: > 0.
        chunk: Logits made at a time, 64 MiB in float32. If there are no more than twice as many,
            they are kept for the backward pass; else it makes them again.
    """
    if len(hidden) * head.weight.shape[0] <= 2 * chunk:
        return token_logps(head.logits(hidden), labels, temperature)
    return _ChunkedTokens.apply(hidden, head.weight, head.bias, head, labels, temperature, chunk)


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


class _ChunkedTokens(Function):
    """token_logps(head.logits(hidden)) in chunks of rows, made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        labels: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple:
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.finish, ctx.temperature, ctx.chunk = head.finish, temperature, chunk
        ctx.dtype = product_dtype(hidden.device, hidden.dtype)
        weight = weight.to(ctx.dtype)
        parts = [
            token_logps(
                head.finish(_product(hidden[rows], weight, bias)), labels[rows], temperature
            )
            for rows in spans(len(hidden), chunk // len(weight))
        ]
        logps, entropies = zip(*parts, strict=True)
        return torch.cat(logps), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_entropies: Tensor) -> tuple:
        hidden, weight, bias, labels = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        weight = weight.to(ctx.dtype)
        for rows in spans(len(hidden), ctx.chunk // len(weight)):
            product = _product(hidden[rows], weight, bias).requires_grad_()
            with torch.enable_grad():
                outputs = token_logps(ctx.finish(product), labels[rows], ctx.temperature)
            upstream = grad_logps[rows], grad_entropies[rows]
            (grad,) = torch.autograd.grad(outputs, product, upstream)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad @ weight).to(hidden.dtype)
            if grad_weight is not None:
                states = hidden[rows].to(ctx.dtype)
                for words in spans(len(weight), ctx.chunk // weight.shape[1]):
                    grad_weight[words] += grad[:, words].T @ states
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer's, in the dtype of ``weight``."""
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if bias is None else bias.to(weight.dtype)
        return F.linear(hidden.to(weight.dtype), weight, bias)
