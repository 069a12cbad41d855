"""The loss as a function of the weights: finite differences, accumulation, and what it is at 0."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import (
    POLICY_DENSITIES,
    TRAIN_PROMPTS,
    assert_same,
    gradients,
    make_trainer,
    parameters,
    tiny_model,
    train_config,
)

TRAINED = [row for row in POLICY_DENSITIES if row[1] != "none"]


def _trainer_and_batch(folder, model, **settings):
    trainer = make_trainer(model, train_config(folder, **settings))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": p} for p in TRAIN_PROMPTS[:2] for _ in range(4)]
    return trainer, trainer._generate_and_score_completions(rows)


def _settings(policy, density, reduction):
    """noise_clamp None: the surrogate has no kinks but PPO's clips."""
    settings = {"policy": policy, "density": density, "reduction": reduction, "noise_clamp": None}
    return settings | ({"top_k": None} if policy == "discrete" else {})


@pytest.mark.parametrize(("policy", "density", "reduction"), TRAINED)
def test_the_gradient_of_the_clipped_surrogate_is_its_finite_difference(
    policy, density, reduction, tmp_path
):
    """float64, off-policy with clipped and dual-clipped ratios, KL to a reference. The inputs'
    embeddings are the environment's, so they stay put (all but discrete's)."""
    model = tiny_model("bias", dtype=torch.float64, attention="sdpa")
    trainer, inputs = _trainer_and_batch(
        tmp_path, model, num_iterations=2, beta=0.05, **_settings(policy, density, reduction)
    )
    old = inputs["old_per_token_logps"]
    inputs["old_per_token_logps"] = old + 0.5 * torch.randn(old.shape).double()
    inputs["ref_per_token_logps"] = old + 0.1 * torch.randn(old.shape).double()
    trainer._compute_loss(trainer.model, inputs).backward()
    moved = [
        p for n, p in trainer.model.named_parameters()
        if p.grad is not None and (policy == "discrete" or "embed_tokens" not in n)
    ]  # fmt: skip
    direction = [torch.randn_like(p) for p in moved]
    if policy == "discrete":  # torch gives the padding token's embedding no gradient
        direction[0][trainer.model.config.pad_token_id] = 0
    analytic = sum((p.grad * d).sum() for p, d in zip(moved, direction, strict=True))

    def loss_at(step):
        with torch.no_grad():
            for p, d in zip(moved, direction, strict=True):
                p.add_(d, alpha=step)
            loss = trainer._compute_loss(trainer.model, inputs)
            for p, d in zip(moved, direction, strict=True):
                p.sub_(d, alpha=step)
        return loss

    h = 1e-6
    numeric = (loss_at(h) - loss_at(-h)) / (2 * h)
    assert numeric.abs() > 1e-3
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("policy", "density", "reduction"), TRAINED)
def test_on_policy_the_gradient_is_minus_advantage_times_score(
    policy, density, reduction, tmp_path
):
    """GRPO's first step is REINFORCE on the replayed densities."""
    trainer, inputs = _trainer_and_batch(
        tmp_path, "untied", loss_type="grpo", **_settings(policy, density, reduction)
    )
    trainer._compute_loss(trainer.model, inputs).backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    scores = trainer._replay(trainer.model, inputs).logps
    steps = inputs["completion_mask"]
    by_sequence = (scores * steps).sum(-1) / steps.sum(-1)
    (-inputs["advantages"] * by_sequence).mean().backward()
    assert_same(found, gradients(trainer.model), 1e-5)


def _losses(trainer, key="loss"):
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@pytest.mark.parametrize("steps", [1, 2])
def test_accumulating_two_by_four_is_one_by_eight(loss_type, steps, tmp_path):
    """Loss, gradient norm and updated parameters, forced markers (not in the loss) included."""
    runs = []
    for size, accumulation in ((8, 1), (2, 4)):
        args = train_config(
            tmp_path / str(size), per_device_train_batch_size=size, loss_type=loss_type,
            gradient_accumulation_steps=accumulation, max_steps=steps, optim="sgd",
            learning_rate=0.1, max_grad_norm=0.0, max_think_tokens=4, reduction="sum",
        )  # fmt: skip
        trainer = make_trainer("tied", args)
        trainer.train()
        runs.append(trainer)
    whole, parts = runs
    assert _losses(parts) == pytest.approx(_losses(whole), abs=1e-4)
    before = parameters(tiny_model())
    assert max((p - before[n]).abs().max() for n, p in parameters(whole.model).items()) > 1e-3
    assert_same(parameters(parts.model), parameters(whole.model), 1e-5)
