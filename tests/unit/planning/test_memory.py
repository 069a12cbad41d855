"""Bytes of phases: identities with what the trainer holds, and what must grow with what."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from torch.optim import AdamW

from softgrpo.planning import memory as counted
from softgrpo.planning.job import Job
from softgrpo.planning.memory import (
    activation_bytes,
    gradient_bytes,
    hole_bytes,
    memory,
    peak,
    shard,
    trained_bytes,
)
from softgrpo.planning.shapes import shape_of
from softgrpo.replay import layouts
from softgrpo.rollout import cache
from softgrpo.rollout.cache import cache_size
from softgrpo.rollout.prefill import Prefill
from softgrpo.training.freezing import freeze_input_embedding
from softgrpo.training.memory import gradient_bytes as real_gradient_bytes
from softgrpo.training.memory import moment_bytes
from tests.unit.planning.test_shapes import CONFIGS, LORA, real

SHAPE = shape_of(CONFIGS["untied llama"])
ADAPTED = shape_of(CONFIGS["untied llama"], lora=LORA)
JOB = Job(updates=2, sequences=16, group=4, micro_batch=8, micro_batches=2, eval_sequences=32,
          evaluations=2, reference="model")  # fmt: skip


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_moments_and_gradients_are_the_optimizers(name, lora):
    model = real(CONFIGS[name], lora=lora)
    freeze_input_embedding(model)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad])
    step = memory(shape_of(CONFIGS[name], lora=lora), JOB)["optimizer step"]
    assert step["moments"] == moment_bytes(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    assert step["gradients"] == real_gradient_bytes(optimizer)


@pytest.mark.parametrize("sequences", [1, 7, 16, 40])
@pytest.mark.parametrize("limit", [None, 384, 1000, 5000, 10**6])
def test_the_cache_has_the_engines_size(sequences, limit):
    job = replace(JOB, rollout_batch_size=16, rollout_batch_tokens=limit)
    assert job.cache_shape(sequences) == cache_size([job.length] * sequences, 16, limit)


def test_what_is_known_of_replay_and_rollout_is_theirs():
    defaults = [inspect.signature(f).parameters for f in (layouts.in_blocks, Prefill)]
    assert (layouts._LONG, defaults[0]["block"].default) == (counted._LONG, counted._BLOCK)
    assert defaults[1]["max_tokens"].default == counted._PREFILL_TOKENS
    assert counted._CACHE_SHARE == cache._CACHE_SHARE


def test_shards_add_up():
    sharded = replace(JOB, processes=7, is_sharded=True)
    whole = trained_bytes(SHAPE, JOB)
    assert 0 <= 7 * trained_bytes(SHAPE, sharded) - whole < 7
    assert 0 <= 7 * shard(SHAPE.weight_bytes, sharded) - SHAPE.weight_bytes < 7
    assert shard(SHAPE.weight_bytes, replace(sharded, is_sharded=False)) == SHAPE.weight_bytes


def test_ddp_exchanges_gradients_in_buckets_as_large():
    assert gradient_bytes(SHAPE, replace(JOB, processes=2)) == 2 * gradient_bytes(SHAPE, JOB)


@pytest.mark.parametrize("field", ["sequences", "prompt_tokens", "completion_tokens", "columns"])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("is_cpu", [False, True])
def test_more_of_anything_takes_no_less(field, shares, is_cpu):
    job, before = replace(JOB, shares_prompts=shares, is_cpu=is_cpu), None
    for factor in (1, 2, 3):
        phases = memory(SHAPE, replace(job, **{field: factor * getattr(job, field)}))
        totals = {phase: sum(kinds.values()) for phase, kinds in phases.items()}
        assert before is None or all(totals[phase] >= before[phase] for phase in totals)
        before = totals


def test_each_remedy_takes_less():
    plain = activation_bytes(SHAPE, JOB, 8)
    assert activation_bytes(SHAPE, replace(JOB, checkpointing="all"), 8) < plain
    assert activation_bytes(SHAPE, JOB, 4) < plain
    assert gradient_bytes(ADAPTED, JOB) < gradient_bytes(SHAPE, JOB)
    shared = replace(JOB, shares_prompts=False)
    assert activation_bytes(SHAPE, JOB, 8) < activation_bytes(SHAPE, shared, 8)


def test_holes_are_a_cpus_heaps_between_blocks_that_it_holds():
    tall = shape_of(CONFIGS["untied llama"], lora=LoraConfig(r=8, target_modules="all-linear"))
    assert hole_bytes(tall, JOB, 8) == hole_bytes(ADAPTED, JOB, 8) > hole_bytes(SHAPE, JOB, 8) > 0
    assert hole_bytes(ADAPTED, replace(JOB, checkpointing="all"), 8) < hole_bytes(ADAPTED, JOB, 8)
    assert hole_bytes(ADAPTED, replace(JOB, is_cpu=False), 8) == 0
    large = replace(JOB, shares_prompts=False, completion_tokens=2**20)
    assert hole_bytes(ADAPTED, large, 8) == 0  # glibc maps blocks of 32 MiB and more by themselves


def test_adapted_features_are_those_that_layers_with_adapters_put_out():
    model, seen = real(CONFIGS["untied llama"], lora=LORA), []
    for module in model.modules():
        if module.__class__.__module__.startswith("peft") and hasattr(module, "base_layer"):
            module.register_forward_hook(lambda m, given, out: seen.append(out.shape[-1]))
    model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    assert ADAPTED.adapted == sum(seen) > 0 == SHAPE.adapted


def test_passes_stay_within_their_budget_unless_a_sequence_is_longer():
    for budget in (400, 1000, 1500, 10**6):
        job = replace(JOB, train_batch_tokens=budget)
        assert job.tokens_of(job.pass_rows) <= budget
        assert job.pass_rows == 8 or job.tokens_of(job.pass_rows + 1) > budget
    long = replace(JOB, train_batch_tokens=100, checkpointing="long")
    assert long.pass_rows == 1 and long.is_checkpointed
    assert not replace(long, train_batch_tokens=400).is_checkpointed


def test_packed_passes_count_each_prompt_once():
    job = replace(JOB, common_tokens=100)
    assert job.tokens_of(8) == 100 + 2 * 28 + 8 * 256  # two prompts of four samples
    assert replace(job, shares_prompts=False).tokens_of(8) == 8 * (128 + 256)


def test_gradients_of_a_single_pass_come_as_activations_go():
    single = replace(JOB, micro_batches=1)
    head = SHAPE.head * SHAPE.bytes_of_weights
    assert memory(SHAPE, single)["update"]["gradients"] == head
    assert memory(SHAPE, single)["optimizer step"]["gradients"] == gradient_bytes(SHAPE, JOB)
    assert memory(SHAPE, JOB)["update"]["gradients"] == gradient_bytes(SHAPE, JOB)


def test_the_first_update_has_no_moments_yet():
    once = memory(SHAPE, replace(JOB, updates=1))
    assert "moments" not in once["update"] and "moments" in once["optimizer step"]
    assert "moments" in memory(SHAPE, JOB)["update"]


def test_the_peak_is_the_largest_phase():
    phases = memory(SHAPE, JOB)
    name, most = peak(phases)
    assert sum(phases[name].values()) == most
    assert most == max(sum(kinds.values()) for kinds in phases.values())


def test_a_cache_without_a_limit_takes_its_share_of_what_a_gpu_has_free():
    job = replace(JOB, is_cpu=False, sequences=10**6, rollout_batch_size=10**6)
    device = 2 * 2**30
    held = memory(SHAPE, job, device)["rollout"]
    assert 0 < held["cache"] < 0.7 * device
    assert memory(SHAPE, job)["rollout"]["cache"] == 10**6 * job.length * SHAPE.cache_bytes


def test_what_makes_the_rollouts_decides_what_they_take():
    server = memory(SHAPE, replace(JOB, engine="vllm-server"))["rollout"]
    assert "cache" not in server
    inside = memory(SHAPE, replace(JOB, engine="vllm", vllm_share=0.25), 4000)
    assert {kinds["vLLM"] for kinds in inside.values()} == {1000}
    on_gpu = replace(JOB, engine="vllm", vllm_share=0.25, is_cpu=False, evaluations=1)
    awake = {phase for phase, kinds in memory(SHAPE, on_gpu, 4000).items() if "vLLM" in kinds}
    assert awake == {"rollout", "evaluation"}  # it sleeps while the model learns
    assert "cache" not in inside["rollout"]
    packed = memory(SHAPE, replace(JOB, is_prepacked=True))["rollout"]
    assert packed["prepacked"] == SHAPE.packed * SHAPE.bytes_of_weights
    copied = memory(SHAPE, replace(JOB, rollout_copy_bytes=2))["rollout"]
    assert copied["rollout copy"] == 2 * SHAPE.parameters
