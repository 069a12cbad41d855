"""What is counted on the meta device is what a real model has, and what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from softgrpo.planning.shapes import shape_of
from softgrpo.rollout.cache import SlotCache, bytes_of_a_token
from softgrpo.training.freezing import freeze_input_embedding

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "tied llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "untied qwen2": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "gemma2": Gemma2Config(**SIZES, head_dim=16),
}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def real(config, dtype=torch.float32, lora=None):
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return (model if lora is None else get_peft_model(model, lora).get_base_model()).train()


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_a_real_model(name, lora):
    shape, model = shape_of(CONFIGS[name], lora=lora), real(CONFIGS[name], lora=lora)
    assert shape.parameters + shape.adapters == sum(p.numel() for p in model.parameters())
    assert shape.weight_bytes == sum(p.nbytes for p in model.parameters())
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert shape.packed == sum(weight.numel() for weight in linears)
    assert shape.head == model.get_output_embeddings().weight.numel()
    freeze_input_embedding(model)
    assert shape.trained_bytes == sum(p.nbytes for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_is_there_has_the_shape_of_its_config(name, lora):
    model = real(CONFIGS[name], lora=lora)
    assert shape_of(CONFIGS[name], lora=lora, model=model) == shape_of(CONFIGS[name], lora=lora)


@pytest.mark.parametrize(
    "where", [{"layers_to_transform": [1]}, {"rank_pattern": {"layers.2.self_attn.q_proj": 16}}]
)
def test_adapters_of_some_layers_are_those_of_no_others(where):
    config = CONFIGS["tied llama"]
    each = shape_of(config, lora=LoraConfig(r=4, target_modules=["q_proj"]))
    some = shape_of(config, lora=LoraConfig(r=4, target_modules=["q_proj"], **where))
    assert some.adapters != each.adapters and some.kept_bytes != each.kept_bytes


def test_ordinary_tokens_train_the_embedding_that_soft_ones_freeze():
    config = CONFIGS["untied llama"]
    frozen, learning = shape_of(config), shape_of(config, embeds_learn=True)
    assert learning.trained - frozen.trained == config.vocab_size * config.hidden_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_is_the_slot_caches(name, dtype):
    config = CONFIGS[name]
    shape = shape_of(config, dtype=dtype)
    assert shape.cache_bytes == bytes_of_a_token(config, dtype)
    cache = SlotCache(config, slots=2, capacity=5)
    states = torch.zeros(2, shape.kv_heads, 1, shape.head_dim, dtype=dtype)
    for layer in cache.layers:
        layer.update(states, states)
    made = sum(buffer.nbytes for layer in cache.layers for buffer in layer.buffers)
    assert made == 2 * 5 * shape.cache_bytes


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("name", ["untied llama", "tied qwen2"])
def test_what_is_kept_is_what_autograd_keeps(name, lora, autocast):
    config = CONFIGS[name]
    shape, model = shape_of(config, lora=lora, autocast=autocast), real(config, lora=lora)
    rows, length = 3, 40
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :5] = 0  # or no mask would be made
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    inputs = torch.randn(rows, length, config.hidden_size)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        model.base_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
    found = sum(storage.nbytes() for storage in kept.values())
    masks = config.num_hidden_layers * rows * length**2 * shape.bytes_of_products
    expected = rows * length * shape.kept_bytes + shape.casts_bytes + masks
    assert found == pytest.approx(expected, rel=0.03)


def test_checkpointing_is_counted_from_a_layer():
    deep = LlamaConfig(**(SIZES | {"num_hidden_layers": 6}))
    one, two = shape_of(CONFIGS["untied llama"]), shape_of(deep)
    assert two.kept_bytes == pytest.approx(2 * one.kept_bytes, rel=0.05)
    assert two.largest_layer == one.largest_layer


def test_half_precision_halves_the_weights():
    config = CONFIGS["tied llama"]
    single, half = shape_of(config), shape_of(config, dtype=torch.bfloat16)
    assert replace(half, bytes_of_weights=4).weight_bytes == single.weight_bytes
    assert 2 * half.weight_bytes == single.weight_bytes


def test_a_config_that_is_no_causal_lm_is_refused_by_name():
    from transformers import T5Config

    with pytest.raises(ValueError, match="T5Config cannot be looked through"):
        shape_of(T5Config(num_layers=1))
