"""TRL's evaluation decodes as many sequences together as it is told, and scores few at a time."""

from __future__ import annotations

import pytest
from datasets import Dataset

from tests.helpers import TRAIN_PROMPTS, make_trainer, tiny_model, train_config


def _evaluate(folder, train_size):
    """Metrics, the sequences of each rollout, and the rows of each pass of the replay."""
    args = train_config(
        folder, per_device_train_batch_size=train_size, per_device_eval_batch_size=16,
        num_generations=2, generation_batch_size=8, beta=0.05,
    )  # fmt: skip
    held_out = Dataset.from_dict({"prompt": TRAIN_PROMPTS})
    trainer = make_trainer(tiny_model(attention="sdpa"), args, eval_dataset=held_out)
    rollouts, rows, original = [], [], trainer.engine.generate
    trainer.engine.generate = lambda ids, *a, **k: (
        rollouts.append(len(ids)) or original(ids, *a, **k)
    )

    def count(module, args, kwargs):
        if kwargs.get("trace") is not None:
            rows.append(len(kwargs["input_ids"]))

    for model in (trainer.model, trainer.ref_model):
        model.register_forward_pre_hook(count, with_kwargs=True)
    return trainer.evaluate(), rollouts, rows


def test_a_large_batch_is_decoded_at_once_and_scored_in_the_size_of_a_training_pass(tmp_path):
    wanted, *_ = _evaluate(tmp_path / "8", 8)
    found, rollouts, rows = _evaluate(tmp_path / "2", 2)
    assert rollouts == [16]
    assert set(rows) == {2} and sum(rows) == 3 * 16  # for the old ones, the reference, the loss
    for name in ("eval_loss", "eval_reward", "eval_entropy", "eval_soft/share_of_steps"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-7)
