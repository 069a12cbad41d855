"""Linear layers with laid out weights are the same linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgrpo.rollout.prepacked import prepacked
from tests.helpers import PROMPTS, roll_out, thinking, tiny_model

MANY, FEW = 10_000, 1


# What a processor has no instructions for is not laid out.
DTYPES = [torch.float32] + [torch.bfloat16] * torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3)])
def test_it_is_the_same_product(dtype, bias, shape):
    layer = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(*shape, 24, dtype=dtype)
    with torch.no_grad():
        wanted = layer(x)
        with prepacked(nn.ModuleList([layer]), MANY):
            assert "forward" in layer.__dict__
            found = layer(x)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_layers_are_themselves_again_after_an_error():
    model = tiny_model()
    with pytest.raises(RuntimeError), prepacked(model, MANY):
        assert "forward" in model.get_output_embeddings().__dict__
        raise RuntimeError
    assert not any("forward" in layer.__dict__ for layer in model.modules())


def test_weights_are_read_anew_each_time():
    layer = nn.Linear(3, 2, bias=False)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for _ in range(2):
            layer.weight.copy_(torch.randn(2, 3))
            with prepacked(nn.ModuleList([layer]), MANY):
                torch.testing.assert_close(layer(x), x @ layer.weight.T)


class _Special(nn.Linear):
    pass


def test_what_is_no_plain_linear_layer_is_left_alone():
    patched = nn.Linear(3, 2)
    patched.forward = lambda x: x
    layers = [_Special(3, 2), patched, nn.Linear(3, 2, dtype=torch.float64)]
    with prepacked(nn.ModuleList(layers), MANY):
        assert "forward" not in layers[0].__dict__ and "forward" not in layers[2].__dict__
        assert patched(5) == 5
    assert patched(5) == 5


def test_few_tokens_and_autocast_leave_the_layers_alone():
    layer = nn.ModuleList([nn.Linear(3, 2)])
    with prepacked(layer, FEW):
        assert "forward" not in layer[0].__dict__
    with torch.autocast("cpu", torch.bfloat16), prepacked(layer, MANY):
        assert "forward" not in layer[0].__dict__


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_rollouts_are_the_same(model):
    """Of many sequences, for which the weights are laid out, and of the first few of them."""
    model, is_packed = tiny_model(model), []

    def note(*_):
        is_packed.append("forward" in model.get_output_embeddings().__dict__)

    many, few = (
        roll_out(model, thinking("gumbel"), prompts=PROMPTS[:1], num_generations=count,
                 max_new_tokens=12, on_finished=note)
        for count in (50, 8)
    )  # fmt: skip
    assert is_packed == [True] * 50 + [False] * 8
    for packed, plain in zip(many[:8], few, strict=True):
        assert packed.token_ids == plain.token_ids
        torch.testing.assert_close(packed.trace.scores, plain.trace.scores, rtol=1e-4, atol=1e-4)
