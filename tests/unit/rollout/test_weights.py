"""What engines are handed: the plain model's weights, whole, with LoRA folded in."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config

from softgrpo.replay import add_replay
from softgrpo.rollout.weights import shapes, walk
from softgrpo.thinking import Objective
from tests.helpers import VOCAB_SIZE, run_processes, thinking, tiny_model

ATTENTION = ["q_proj", "v_proj"]
ADAPTED = ["q_proj", "lm_head"]
# model, and the fields of LoraConfig
ADAPTERS = [
    ("tied", {"target_modules": ATTENTION}),
    ("tied", {"target_modules": "all-linear", "use_rslora": True}),
    ("untied", {"target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"]}),
    ("untied", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    ("bias", {"target_modules": "all-linear"}),
    ("conv1d", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
]


def _model(name, dtype=torch.float32):
    if name != "conv1d":
        return tiny_model(name, dtype=dtype)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=32, n_embd=32, n_layer=2, n_head=2,
        tie_word_embeddings=False, initializer_range=0.25,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(dtype)


def _adapted(name, dtype=torch.float32, **fields):
    """A model with LoRA whose every trained parameter has moved from where it began."""
    adapted = get_peft_model(_model(name, dtype), LoraConfig(r=4, lora_alpha=6, **fields))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return adapted


@pytest.mark.parametrize(("name", "fields"), ADAPTERS)
def test_lora_is_folded_as_peft_merges_it(name, fields):
    adapted = _adapted(name, **fields)
    merged = copy.deepcopy(adapted).merge_and_unload()
    found, wanted = dict(walk(adapted.get_base_model())), dict(merged.named_parameters())
    assert list(found) == list(wanted) == [n for n, _ in _model(name).named_parameters()]
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    plain = dict(_model(name).named_parameters())
    assert any(not torch.equal(found[n], plain[n]) for n in wanted)


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_a_fold_in_bfloat16_is_rounded_once(adapters):
    adapted = _adapted("untied", torch.bfloat16, target_modules=ADAPTED)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapters)
    exact = copy.deepcopy(adapted).float().merge_and_unload()
    found = dict(walk(adapted.get_base_model()))
    for name, parameter in exact.named_parameters():
        assert torch.equal(found[name], parameter.to(torch.bfloat16))


def test_the_base_is_the_same_bits_after_a_thousand_walks():
    adapted = _adapted("untied", torch.bfloat16, target_modules=ATTENTION)
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    first = dict(walk(adapted.get_base_model()))
    for _ in range(1000):
        last = dict(walk(adapted.get_base_model()))
    assert all(torch.equal(p, before[n]) for n, p in adapted.named_parameters())
    assert all(torch.equal(last[n], first[n]) for n in first)


def test_what_wraps_a_model_or_its_layers_is_no_part_of_a_name():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny_model("tied")
    names = [name for name, _ in model.named_parameters()]
    add_replay(model, Objective(thinking(), "gumbel"))
    model.model.layers[1] = checkpoint_wrapper(model.model.layers[1])
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp)
    found = dict(walk(model))
    assert list(found) == names
    # No copy where nothing is folded; of tied weights the first name.
    assert found["model.embed_tokens.weight"].data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("untied", {"use_dora": True, "target_modules": ATTENTION}, "q_proj: Dora.*cannot be fold"),
        ("bias", {"lora_bias": True, "target_modules": ATTENTION}, "q_proj: lora_bias=True"),
        ("untied", {"target_modules": ATTENTION, "trainable_token_indices": [3]}, "embed_tokens: "),
        ("tied", {"target_modules": ["embed_tokens"]}, "tie_word_embeddings"),
        ("tied", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}, "tie_word_embedd"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(name, fields, said):
    model = get_peft_model(_model(name), LoraConfig(r=4, **fields)).get_base_model()
    with pytest.raises(ValueError, match=said):
        shapes(model)
    with pytest.raises(ValueError, match=said):
        dict(walk(model))


SHARD = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from softgrpo.rollout.weights import walk
from tests.unit.rollout.test_weights import ADAPTED, _adapted, tiny_model
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
models = {"tied": tiny_model("tied"), "lora": _adapted("untied", target_modules=ADAPTED)}
found = {}
for name, model in models.items():
    base = model.get_base_model() if name == "lora" else model
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(base, mesh=mesh)
    found[name] = list(walk(base))
torch.save(found, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def test_every_process_walks_a_sharded_model_in_one_order_and_meets_it_whole(tmp_path):
    run_processes(SHARD, str(tmp_path), processes=2, timeout=100)
    lora = _adapted("untied", target_modules=ADAPTED)
    wanted = {"tied": tiny_model("tied"), "lora": lora.merge_and_unload()}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, model in wanted.items():
            parameters = dict(model.named_parameters())
            assert [n for n, _ in found[name]] == list(parameters)
            for n, weight in found[name]:
                torch.testing.assert_close(weight, parameters[n], rtol=0, atol=1e-6)
