"""Attention in groups over the cache is transformers' own attention."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from softgrpo.modeling.attention import grouped_attention, grouped_sdpa
from softgrpo.rollout import TransformersEngine
from tests.helpers import PROMPTS, thinking, tiny_model, word_tokenizer


class _Module(torch.nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("length", [1, 3], ids=["decode", "prefill"])
@pytest.mark.parametrize("heads", [2, 6], ids=["one head a group", "three"])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("is_padded", [True, False])
def test_it_is_the_same_function(length, heads, scaling, is_padded):
    query = torch.randn(4, heads, length, 8)
    key, value = torch.randn(4, 2, 5, 8), torch.randn(4, 2, 5, 8)
    mask = torch.ones(4, 1, length, 5, dtype=torch.bool)
    mask[1, ..., :2] = False  # left padding
    if not is_padded:
        mask = None
    module = _Module(heads // 2)
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    found, _ = grouped_sdpa(module, query, key, value, mask, scaling=scaling)
    assert found.shape == (4, length, heads, 8)
    torch.testing.assert_close(found, wanted)


def test_the_model_gets_its_own_attention_back():
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError), grouped_attention(model):
        assert model.config._attn_implementation != "sdpa"
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"


def _generate(engine):
    return [r.token_ids for r in engine.generate(PROMPTS, thinking(), max_new_tokens=12, seed=7)]


def test_cudnn_is_left_out_while_decoding():
    engine = TransformersEngine(tiny_model(attention="sdpa"), word_tokenizer())
    seen = []
    engine.model.base_model.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    _generate(engine)
    assert torch.backends.cuda.cudnn_sdp_enabled() and seen and not any(seen)


def test_a_model_with_flash_attention_decodes_as_with_sdpa():
    """Its own decoding, which is not installed here, would copy the cache at every step."""
    engine = TransformersEngine(tiny_model(attention="sdpa"), word_tokenizer())
    wanted = _generate(engine)
    engine.model.config._attn_implementation = "flash_attention_2"
    assert _generate(engine) == wanted
    assert engine.model.config._attn_implementation == "flash_attention_2"


def test_under_autocast_the_cache_holds_what_attention_would_cast_it_to():
    """RoPE makes float32 of bfloat16 keys: all of them would be cast again at every step."""
    engine, layers = TransformersEngine(tiny_model(attention="sdpa"), word_tokenizer()), []
    engine.model.base_model.register_forward_hook(
        lambda _, args, kwargs, output: layers.extend(kwargs["past_key_values"].layers),
        with_kwargs=True,
    )
    with torch.autocast("cpu", torch.bfloat16):
        _generate(engine)
    assert {x.dtype for layer in layers for x in layer.buffers} == {torch.bfloat16}
