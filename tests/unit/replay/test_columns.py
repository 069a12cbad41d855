"""Some columns of a product, block by block: the columns of the whole, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from softgrpo.replay import OutputHead
from softgrpo.replay.columns import column_logits
from softgrpo.replay.tokens import tokens_from_hidden

N, K, V, D = 9, 4, 6, 5


def _inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float64, generator=generator)
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator)
    ids = torch.randint(V, (N, K), generator=generator)  # some twice in a row, and in many rows
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


@pytest.mark.parametrize("block", [2**23, 3 * K * D, 1], ids=["one", "three steps", "one step"])
def test_it_is_the_product_and_has_its_gradients(block):
    hidden, weight, ids = _inputs()
    torch.testing.assert_close(
        column_logits(hidden, weight, ids, block)[0], (hidden @ weight.T).gather(1, ids)
    )
    assert torch.autograd.gradcheck(lambda *x: column_logits(*x, ids, block)[0], (hidden, weight))


@pytest.mark.parametrize("used", ["both", "columns", "rest", "none"])
def test_the_weight_has_the_gradients_of_all_its_uses(used):
    hidden, weight, ids = _inputs()

    def total(weight, columns, rest):
        logits, again = columns(hidden, weight)
        value = hidden.sum() * 0 + weight.sum() * 0
        if used in ("both", "columns"):
            value = value + logits.square().sum()
        return value + rest(again) if used in ("both", "rest") else value

    def rest(w):
        return (hidden @ w.T).exp().sum()

    found, wanted = (
        torch.autograd.grad(total(weight, columns, rest), (hidden, weight))
        for columns in (
            lambda h, w: column_logits(h, w, ids),
            lambda h, w: ((h @ w.T).gather(1, ids), w),
        )
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [2**24, 40], ids=["kept logits", "chunks"])
def test_soft_steps_and_tokens_share_one_gradient_of_the_head(chunk):
    """As large as the head itself, it must not be held twice."""
    hidden, weight, ids = _inputs()
    made = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **kwargs or {})
            if isinstance(result, torch.Tensor) and result.shape == weight.shape:
                made.add(result.untyped_storage().data_ptr())
            return result

    columns, head = OutputHead(weight).columns(hidden, ids)
    logps, _ = tokens_from_hidden(hidden, head, ids[:, 0], 1.0, chunk)
    total = columns.sum() + logps.sum()
    with Watch():
        total.backward()
    assert len(made - {weight.untyped_storage().data_ptr()}) == 1
    assert made >= {weight.grad.untyped_storage().data_ptr()}


def test_a_frozen_head_gets_no_gradient_and_a_frozen_model_none_either():
    hidden, weight, ids = _inputs()
    column_logits(hidden, weight.detach(), ids)[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
    column_logits(hidden.detach(), weight, ids)[0].sum().backward()
    assert weight.grad is not None


def test_no_use_of_a_frozen_head_makes_a_gradient_of_it():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(30, 8)
    assert not column_logits(hidden, weight, torch.zeros(4, 2, dtype=torch.long))[1].requires_grad


def test_a_rows_gradient_is_rounded_once():
    """Four thousand small numbers in bfloat16: one after the other they stop to count at 256."""
    count = 4096
    hidden = torch.ones(count, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    column_logits(hidden, weight, torch.ones(count, 1, dtype=torch.long))[0].sum().backward()
    assert weight.grad.tolist() == [[0.0], [count]]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    """Nothing larger than weight, gradient and [steps, D] is ever made."""
    hidden = torch.randn(2048, 512, requires_grad=True)
    weight = torch.randn(1000, 512, requires_grad=True)
    ids = torch.randint(1000, (2048, 32))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **kwargs or {})
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        column_logits(hidden, weight, ids, block=2**18)[0].sum().backward()
    assert largest <= hidden.numel() < ids.numel() * 512 / 16
