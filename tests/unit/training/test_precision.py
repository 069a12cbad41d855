"""Number formats of a run: what the trainer changes in the libraries' choice, and what it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from trl import GRPOTrainer

from softgrpo.training import SofTGRPOTrainer
from softgrpo.training.precision import keep_results


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
