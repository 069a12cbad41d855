"""Blocks of rows give the log-softmax, its entropy, and their gradients."""

from __future__ import annotations

import pytest
import torch

from softgrpo.replay import OutputHead
from softgrpo.replay.tokens import token_logps, tokens_from_hidden
from softgrpo.thinking.blocks import row_blocks
from tests.helpers import VOCAB_SIZE, assert_same, gradients, tiny_model

LABELS = torch.tensor([3, 0, 10, 7, 7, 1, 2])
WEIGHTS = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _logits(dtype=torch.float64, vocab_size=11):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, vocab_size, dtype=torch.float64, generator=generator)
    return (5 * values).to(dtype).requires_grad_()


def _plain(logits, temperature):
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    logps = log_probs.gather(-1, LABELS[:, None])[:, 0]
    return logps, -(log_probs.exp() * log_probs).sum(-1)


# Blocks of all rows, of two, and of one.
SIZES = pytest.mark.parametrize("vocab_size", [11, 100_000, 2**18 + 1])


@SIZES
def test_finite_differences(vocab_size):
    logits = _logits(vocab_size=vocab_size)
    assert len(list(row_blocks(logits))) == {11: 1, 100_000: 4, 2**18 + 1: 7}[vocab_size]
    is_large = vocab_size > 11  # then along random directions alone
    assert torch.autograd.gradcheck(
        lambda x: token_logps(x, LABELS, 0.7), logits, fast_mode=is_large
    )


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS * torch.tensor([[1.0], [0.0]])],
                         ids=["both", "log-probabilities alone"])  # fmt: skip
def test_it_is_the_log_softmax(dtype, weights, vocab_size):
    logits = _logits(dtype, vocab_size)
    found, exact = token_logps(logits, LABELS, 0.7), logits.detach().double().requires_grad_()
    wanted = _plain(exact, 0.7)
    for a, b, weight in zip(found, wanted, weights, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-5)
        (a * weight.float()).sum().backward(retain_graph=True)
        (b * weight).sum().backward(retain_graph=True)
    assert logits.grad is not None and logits.grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # both backward passes are rounded
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("hidden", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_column_that_is_masked_out_has_no_gradient(hidden):
    logits = _logits(torch.float32).detach()
    shown = logits[:, :-1].clone().requires_grad_()
    logits[:, -1] = hidden
    logits.requires_grad_()
    labels = LABELS.remainder(10)
    found, wanted = token_logps(logits, labels, 0.6), token_logps(shown, labels, 0.6)
    torch.testing.assert_close(found, wanted)
    (found[0] + found[1]).sum().backward()
    (wanted[0] + wanted[1]).sum().backward()
    torch.testing.assert_close(logits.grad[:, :-1], shown.grad)
    assert not logits.grad[:, -1].any()


def test_far_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-3e38, 0.0, 1.0]], requires_grad=True)
    logps, entropies = token_logps(logits, torch.tensor([0, 2]), 1.0)
    torch.testing.assert_close(
        logps, torch.log_softmax(logits, -1).gather(1, torch.tensor([[0], [2]]))[:, 0]
    )
    (logps + entropies).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["tied", "bias", "scale_divides", "softcap"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_chunks_from_hidden_states_are_the_whole_in_values_and_gradients(name, kind):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = tiny_model(name, dtype=dtype)
    hidden = torch.randn(23, 32, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, VOCAB_SIZE, (23,))

    def run(chunk):
        model.zero_grad()
        hidden.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            outputs = tokens_from_hidden(hidden, OutputHead.of(model), labels, 0.7, chunk)
        (outputs[0] + 0.3 * outputs[1]).sum().backward()
        names = dict(zip(("logps", "entropies"), outputs, strict=True))
        return names | gradients(model) | {"hidden": hidden.grad}

    whole, chunked = run(2**24), run(5 * VOCAB_SIZE)
    assert_same(chunked, whole, 1e-5 if kind == "float32" else 0.05)
