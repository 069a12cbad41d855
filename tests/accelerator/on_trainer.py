"""Updates and evaluations on an accelerator are the CPU's: losses, gradient norms, weights."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import training_args

from tests.accelerator.pretend import DEVICE
from tests.helpers import (
    TRAIN_PROMPTS,
    assert_same,
    make_trainer,
    parameters,
    tiny_model,
    train_config,
)

SETTINGS = {
    "kl": {"beta": 0.05, "num_iterations": 2, "density": "concrete"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "passes": {"loss_type": "grpo", "train_batch_tokens": 20},
    "budget": {"max_think_tokens": 3, "loss_type": "grpo"},
    "padded": {"share_prompts": False, "old_logps": "rollout"},
    "by default": {"share_prompts": None},
    "discrete": {"policy": "discrete", "top_k": None},
    "rollout copy": {"rollout_dtype": "bfloat16"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's logs and weights, on the CPU or on the device."""

    def on(device: str, attention="sdpa", options=dict, **settings):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
        # SGD moves by the gradient; the others would hide a gradient that is too large.
        defaults = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1,
                    "use_cpu": device == "cpu", "share_prompts": attention == "sdpa"}  # fmt: skip
        args = train_config(tmp_path / device[:3], **defaults | settings)
        trainer = make_trainer(tiny_model("tied", attention=attention), args, **options())
        assert trainer.accelerator.device == torch.device(device)
        shares = settings.get("share_prompts", attention == "sdpa")
        assert trainer._shares_prompts == (device == "cpu" if shares is None else shares)
        before = parameters(trainer.model)
        trainer.train()
        after = {name: value.cpu() for name, value in parameters(trainer.model).items()}
        moved = [name for name in after if not torch.equal(after[name], before[name].cpu())]
        assert moved
        numbers = {
            f"{step}.{name}": torch.tensor(value, dtype=torch.float64)
            for step, log in enumerate(trainer.state.log_history)
            for name, value in log.items()
            if isinstance(value, float) and "time" not in name and "per_second" not in name
            and "runtime" not in name and "logp_gap" not in name  # rounding, and no more
        }  # fmt: skip
        return after | numbers

    yield on
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("setting", "attention"),
    [*((name, "sdpa") for name in SETTINGS), ("checkpointing", "eager")],
)
def test_updates(setting, attention, run):
    wanted, found = (run(d, attention, **SETTINGS[setting]) for d in ("cpu", str(DEVICE)))
    assert {"0.loss", "0.grad_norm", "1.loss"} <= wanted.keys()
    assert_same(found, wanted, 1e-4)


def test_updates_of_an_adapter(run):
    from peft import LoraConfig

    def options():
        return {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0)}

    wanted, found = (run(d, options=options, beta=0.05) for d in ("cpu", str(DEVICE)))
    assert_same(found, wanted, 1e-4)


@pytest.mark.parametrize(("rollouts", "on_cpu"), [("model", "model"), ("auto", "bfloat16")])
def test_updates_under_autocast(rollouts, on_cpu, run, monkeypatch):
    """By itself an accelerator decodes float32 weights from a copy in bfloat16."""
    # transformers asks whether CUDA has bfloat16, and refuses any other accelerator.
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    settings = {"bf16": True, "max_steps": 1}
    wanted = run("cpu", "eager", rollout_dtype=on_cpu, **settings)
    found = run(str(DEVICE), "eager", rollout_dtype=rollouts, **settings)
    exact = run("cpu", "eager", max_steps=1)
    norm, name = "0.grad_norm", "model.embed_tokens.weight"
    assert float(found.pop(norm)) == pytest.approx(float(wanted.pop(norm)), rel=3e-3)
    assert_same(found, wanted, 3e-4)
    assert (exact[name] - wanted[name]).abs().max() > 6e-4


def test_evaluations(run):
    def options():
        return {"eval_dataset": Dataset.from_dict({"prompt": TRAIN_PROMPTS[:4]})}

    settings = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8,
                "num_generations_eval": 4}  # fmt: skip
    wanted, found = (run(d, options=options, **settings) for d in ("cpu", str(DEVICE)))
    assert sum("eval_reward" in name for name in wanted) >= 2
    assert_same(found, wanted, 1e-4)
