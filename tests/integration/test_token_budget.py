"""Passes within a budget of tokens have the gradient, and the loss, of the whole micro-batch."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from softgrpo.replay.packing import pack
from tests.helpers import (
    TRAIN_PROMPTS,
    assert_same,
    gradients,
    make_trainer,
    parameters,
    tiny_model,
    train_config,
)

SETTINGS = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "kl, old": {"beta": 0.05, "num_iterations": 2},
    "marker forced": {"max_think_tokens": 3},
    "discrete": {"policy": "discrete", "top_k": None},
}
LOSSES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo")


def _trainer(folder, attention="sdpa", **settings):
    return make_trainer(tiny_model(attention=attention), train_config(folder, **settings))


def _inputs(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": prompt} for prompt in TRAIN_PROMPTS[:2] for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


def _step(trainer, inputs, budget):
    """Loss and gradients, and the shapes of the passes through the model."""
    shapes = []
    handle = trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    trainer.args.train_batch_tokens = budget
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    trainer.accelerator.backward(loss)
    handle.remove()
    return gradients(trainer.model) | {"loss": loss.detach()}, shapes


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_that_of_the_whole(setting, share_prompts, tmp_path):
    trainer = _trainer(tmp_path, share_prompts=share_prompts, **SETTINGS[setting])
    inputs = _inputs(trainer)
    whole, shapes = _step(trainer, inputs, None)
    assert len(shapes) == 1
    for budget in (1, 25):
        parts, shapes = _step(trainer, inputs, budget)
        assert sum(rows for rows, _ in shapes) == 8 and len(shapes) > 1
        assert_same(parts, whole, 1e-5)
    assert whole["model.embed_tokens.weight"].abs().max() > 1e-4


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("limit", [20, 2], ids=["some truncated", "all truncated"])
def test_passes_may_have_no_completion_at_all(limit, loss_type, share_prompts, tmp_path):
    """TRL masks truncated completions whole; of a sequence its prompt remains."""
    settings = SETTINGS[loss_type] | {"beta": 0.05, "num_iterations": 2, "seed": 6}
    trainer = _trainer(
        tmp_path, share_prompts=share_prompts, mask_truncated_completions=True,
        max_completion_length=limit, **settings,
    )  # fmt: skip
    inputs = _inputs(trainer)
    is_masked = inputs["completion_mask"].sum(1) == 0
    assert is_masked.any() and bool(is_masked.all()) == (limit == 2)
    whole, _ = _step(trainer, inputs, None)
    for budget in (1, 4, 25):
        parts, shapes = _step(trainer, inputs, budget)
        assert sum(rows for rows, _ in shapes) == 8 and (len(shapes) > 1 or budget == 25)
        assert_same(parts, whole, 1e-5)
    assert (whole["model.embed_tokens.weight"].abs().max() > 1e-4) == (limit == 20)


@pytest.mark.parametrize("wanted", ["auto", True, False])
def test_what_is_set_is_checkpointed_and_by_itself_a_sequence_over_the_budget(wanted, tmp_path):
    trainer = _trainer(tmp_path, gradient_checkpointing=wanted)
    assert trainer.args.gradient_checkpointing is bool(wanted)
    inputs = _inputs(trainer)
    trainer.model.gradient_checkpointing_enable()
    layer = trainer.model.model.layers[0]
    calls = []
    original = layer._gradient_checkpointing_func
    layer._gradient_checkpointing_func = lambda *args: calls.append(1) or original(*args)
    if not wanted:  # as train() leaves it
        trainer.model.gradient_checkpointing_disable()
    whole, _ = _step(trainer, inputs, None)
    assert len(calls) == bool(wanted)
    lengths = inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)
    budget = int(lengths.max()) - 1
    calls.clear()
    parts, shapes = _step(trainer, inputs, budget)
    num_long = int((lengths > budget).sum())
    assert 0 < num_long < len(shapes)
    assert len(calls) == {"auto": num_long, True: len(shapes), False: 0}[wanted]
    assert layer.gradient_checkpointing is bool(wanted)
    assert_same(parts, whole, 1e-5)


def test_a_run_with_a_budget_is_the_run_without(tmp_path):
    settings = {"max_steps": 2, "learning_rate": 1e-3}
    runs = []
    for budget in (None, 20):
        trainer = _trainer(tmp_path / str(budget), train_batch_tokens=budget, **settings)
        trainer.train()
        runs.append(parameters(trainer.model))
    assert_same(runs[1], runs[0], 1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "bnpo"}, {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.1}],
    ids=["bnpo", "top_entropy", "entropy_bonus"],
)
def test_a_loss_that_is_no_sum_over_sequences_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="train_batch_tokens"):
        _trainer(tmp_path, train_batch_tokens=100, **settings)


@pytest.mark.parametrize("name", ["train_batch_tokens", "rollout_batch_tokens"])
def test_a_budget_of_nothing_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=name):
        train_config(tmp_path, **{name: 0})


def test_the_rollouts_budget_reaches_the_engine(tmp_path):
    trainer = _trainer(tmp_path, rollout_batch_tokens=40)
    assert trainer.engine.max_batch_tokens == 40
    with pytest.raises(ValueError, match="rollout_batch_tokens"):
        train_config(tmp_path, rollout_batch_tokens=40, engine="vllm")
    small = _trainer(tmp_path, rollout_batch_tokens=3)
    with pytest.raises(ValueError, match="max_batch_tokens=3 cannot hold one sequence"):
        small.train()


def _count_tokens(model, counts):
    """Keep the tokens of every forward of a model that replays: of its one row, or its padded rows.

    That of a single sequence, which may be over the budget, is not kept.
    """

    def look(module, _, kwargs):
        ids, mask, trace = (kwargs.get(name) for name in ("input_ids", "attention_mask", "trace"))
        if trace is None:  # generation
            return
        if len(ids) > 1:
            counts.append((len(pack(ids, mask, trace.num_steps).source), ids.numel()))

    return model.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_every_pass_through_a_model_keeps_to_the_budget(share_prompts, tmp_path):
    """The old policy's, the reference's, the trained ones and evaluation's: the same numbers."""
    settings = {
        "share_prompts": share_prompts, "num_iterations": 2, "beta": 0.05, "learning_rate": 0.0,
        "mask_truncated_completions": True, "per_device_eval_batch_size": 8, "seed": 6,
        "num_generations_eval": 4, "max_completion_length": 12, "eval_strategy": "steps",
        "eval_steps": 1,
    }  # fmt: skip
    found = {}
    for budget in (None, 14, 24):
        trainer = make_trainer(
            tiny_model(attention="sdpa"),
            train_config(tmp_path / str(budget), train_batch_tokens=budget, **settings),
            eval_dataset=Dataset.from_dict({"prompt": TRAIN_PROMPTS[:4]}),
        )
        counts = {"policy": [], "reference": []}
        _count_tokens(trainer.model, counts["policy"])
        _count_tokens(trainer.ref_model, counts["reference"])
        trainer.train()
        largest = {name: max(c[not share_prompts] for c in kept) for name, kept in counts.items()}
        inputs = _inputs(trainer)
        assert (inputs["completion_mask"].sum(1) == 0).any()
        found[budget] = {k: inputs[k] for k in ("old_per_token_logps", "ref_per_token_logps")}
        (log,) = (log for log in trainer.state.log_history if "eval_loss" in log)
        found[budget] |= {k: torch.tensor(log[k]) for k in ("eval_loss", "eval_kl", "eval_entropy")}
        if budget is None:
            assert min(largest.values()) > 24
        else:
            assert max(largest.values()) <= budget
            assert_same(found[budget], found[None], 1e-5)
