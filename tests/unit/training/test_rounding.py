"""What rounding would take away is kept, or the trainer says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from peft import LoraConfig
from trl import GRPOTrainer

from softgrpo.training import SofTGRPOTrainer
from softgrpo.training.rounding import keep_results, largest_that_moves, lost_updates
from tests.helpers import make_trainer, tiny_model, train_config


@pytest.fixture
def plugin():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision("bf16")
    return plugin


def test_a_trainers_fsdp2_returns_what_it_computed(plugin, monkeypatch):
    def create(self):
        self.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))

    monkeypatch.setattr(GRPOTrainer, "create_accelerator_and_postprocess", create)
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16
    trainer = SofTGRPOTrainer.__new__(SofTGRPOTrainer)
    trainer.create_accelerator_and_postprocess()
    policy = plugin.mixed_precision_policy
    assert policy.output_dtype is None and policy.param_dtype == torch.bfloat16


def test_without_fsdp2_or_mixed_precision_nothing_is_changed():
    keep_results(None)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    keep_results(plugin)
    assert plugin.mixed_precision_policy is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_weight_above_the_bound_ever_moves_and_in_float32_all_do(dtype):
    torch.manual_seed(0)
    weights = (torch.randn(5000) * 0.02).to(dtype)
    gradient = torch.randn(5000).sign()  # each update is the learning rate, as Adam's nearly are
    bound = largest_that_moves(2**-20, dtype)
    moved = {}
    for kind in (dtype, torch.float32):
        parameter = torch.nn.Parameter(weights.to(kind, copy=True))
        optimizer = torch.optim.SGD([parameter], lr=2**-20)
        for _ in range(100):
            parameter.grad = gradient.to(kind)
            optimizer.step()
        moved[kind] = parameter.detach() != weights.to(kind)
    assert moved[torch.float32].all()
    is_above = weights.abs() > bound
    assert is_above.any() and not moved[dtype][is_above].any()
    assert moved[dtype][weights.abs() < bound / 2].all()  # the bound is as low as it can be


def test_only_what_is_trained_counts():
    low = tiny_model(dtype=torch.bfloat16)
    assert "bfloat16" in lost_updates(low.parameters(), 1e-6)
    for parameter in low.parameters():
        parameter.requires_grad_(False)
    adapter = torch.nn.Parameter(torch.zeros(2))
    assert lost_updates([*low.parameters(), adapter], 1e-6) is None
    assert lost_updates(tiny_model().parameters(), 1e-6) is None


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_trainer_says_that_updates_will_be_lost(dtype, lora, tmp_path, caplog):
    """PEFT's adapters are float32 on a base of any precision."""
    adapters = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    args = train_config(tmp_path, learning_rate=1e-6)
    make_trainer(tiny_model(dtype=dtype), args, peft_config=adapters)
    said = [record.message for record in caplog.records if "lost" in record.message]
    assert len(said) == (dtype == torch.bfloat16 and not lora)
    for line in said:
        for part in ("bfloat16", "learning_rate=1e-06", "0.00195", "0.000512", "bf16: true"):
            assert part in line
