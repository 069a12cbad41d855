"""Rollouts compute as training does: LoRA or not, under autocast or in a copy's own dtype."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from tests.helpers import make_trainer, tiny_model, train_config

LORA = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def _first_rollouts(folder, lora=False, **settings):
    """The first rollout's scores, the dtype in which a layer computed, and the gap to training."""
    model = tiny_model(attention="sdpa")
    dtypes = set()
    layer = model.model.layers[0].mlp.gate_proj  # no adapter is put on it
    layer.register_forward_hook(lambda _, args, out: dtypes.add(out.dtype))
    args = train_config(folder, **settings)
    trainer = make_trainer(model, args, peft_config=LoraConfig(**LORA) if lora else None)
    seen, original = [], trainer.engine.generate

    def generate(*args, **kwargs):
        dtypes.clear()
        rollouts = original(*args, **kwargs)
        seen.append((rollouts, set(dtypes)))
        return rollouts

    trainer.engine.generate = generate
    trainer.train()
    rollouts, computed_in = seen[0]
    gap = next(log["soft/logp_gap_max"] for log in trainer.state.log_history)
    return [rollout.trace.scores for rollout in rollouts], computed_in, gap


def test_an_adapter_that_does_nothing_yet_draws_what_the_model_draws(tmp_path):
    """accelerate puts autocast on PEFT's forward, and rollouts call the model inside it."""
    plain, plain_dtypes, plain_gap = _first_rollouts(tmp_path, bf16=True)
    found, dtypes, gap = _first_rollouts(tmp_path, lora=True, bf16=True)
    assert dtypes == plain_dtypes == {torch.bfloat16}
    for mine, other in zip(found, plain, strict=True):
        assert torch.equal(mine, other)
    assert gap == pytest.approx(plain_gap, abs=1e-6)


def test_a_copy_computes_in_its_own_dtype(tmp_path):
    """Also one in float32 beside training in bfloat16."""
    wanted, *_ = _first_rollouts(tmp_path, bf16=False)
    for settings in ({"rollout_dtype": "float32"}, {"rollout_dtype": "float32", "lora": True}):
        found, *_ = _first_rollouts(tmp_path, bf16=True, **settings)
        assert _difference(found, wanted) < 1e-5
    control, *_ = _first_rollouts(tmp_path, bf16=True, rollout_dtype="bfloat16")
    assert _difference(control, wanted) > 1e-3


def _difference(found, wanted):
    """In the first step's scores: what is drawn later depends on it."""
    pairs = zip(found, wanted, strict=True)
    return max(float((mine[:, 0] - other[:, 0]).abs().max()) for mine, other in pairs)
