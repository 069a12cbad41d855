"""With policy "discrete" the trainer is TRL's GRPOTrainer: log-probs, loss, every gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.helpers import (
    TRAIN_PROMPTS,
    assert_same,
    give_home,
    gradients,
    letter_reward,
    make_trainer,
    tiny_model,
    train_config,
    word_tokenizer,
)

LOSSES = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "temperature": 0.7},
    "cispo": {"loss_type": "cispo", "epsilon_high": 2.0},
    "sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "kl": {"beta": 0.1},
    "old": {"num_iterations": 2, "beta": 0.1},
}


def _batch(trainer):
    """One batch of rollouts as the trainer makes it in training."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": p} for p in TRAIN_PROMPTS[:2] for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


def _trls(model, args):
    """TRL's own trainer with every setting that GRPOConfig knows."""
    names = {f.name for f in dataclasses.fields(GRPOConfig) if f.init}
    ours = {n: getattr(args, n) for n in names if n not in ("top_k", "generation_batch_size")}
    if args.beta:
        give_home(model, Path(args.output_dir) / "base")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=letter_reward,
        args=GRPOConfig(**ours),
        train_dataset=Dataset.from_dict({"prompt": TRAIN_PROMPTS}),
        processing_class=word_tokenizer(),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(params=["tied", "untied", "bias", "scale_divides", "scale_multiplies"])
def name(request):
    return request.param


def _both(name, folder, **settings):
    args = train_config(folder, policy="discrete", top_k=None, **settings)
    ours = make_trainer(name, args)
    inputs = _batch(ours)
    for key in {"old_per_token_logps", "ref_per_token_logps"} & inputs.keys():
        # As after an update: some ratios are clipped, and there is a KL.
        inputs[key] = inputs[key] + 0.3 * torch.randn(inputs[key].shape)
    plain = {k: v for k, v in inputs.items() if not k.startswith("trace_")}
    return (ours, inputs), (_trls(tiny_model(name), args), plain)


@pytest.mark.parametrize("setting", LOSSES)
def test_loss_and_every_gradient(name, setting, tmp_path):
    results = []
    for trainer, inputs in _both(name, tmp_path, **LOSSES[setting]):
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        results.append(gradients(trainer.model) | {"loss": loss.detach()})
    ours, trls = results
    assert trls["model.embed_tokens.weight"].abs().max() > 1e-4
    assert_same(ours, trls, 1e-5)


def test_log_probs_and_entropies(name, tmp_path):
    """In one pass with a gradient, and in three passes of other widths without."""
    (ours, inputs), (trls, plain) = _both(name, tmp_path)
    ids = torch.cat([plain["prompt_ids"], plain["completion_ids"]], 1)
    mask = torch.cat([plain["prompt_mask"], plain["completion_mask"]], 1)
    wanted = trls._get_per_token_logps_and_entropies(
        trls.model, ids, mask, plain["completion_ids"].shape[1], compute_entropy=True
    )[:2]
    ours.args.per_device_train_batch_size = 3
    found = [ours._replay(ours.model, inputs)]
    with torch.no_grad():
        found.append(ours._replay(ours.model, inputs))
    where = inputs["completion_mask"].bool()
    for replayed in found:
        for a, b in zip(replayed, wanted, strict=True):
            torch.testing.assert_close(a[where], b[where], rtol=1e-5, atol=1e-5)


def test_the_reference_and_the_old_log_probs_are_trls(tmp_path):
    """beta > 0 and num_iterations 2: both passes see the trace, and see it in order."""
    args = train_config(tmp_path, policy="discrete", top_k=None, num_iterations=2, beta=0.1)
    plain = _batch(make_trainer("tied", args))
    trls = _trls(tiny_model("tied"), args)
    ids = torch.cat([plain["prompt_ids"], plain["completion_ids"]], 1)
    mask = torch.cat([plain["prompt_mask"], plain["completion_mask"]], 1)
    where = plain["completion_mask"].bool()
    for key, model in (("ref", trls.ref_model), ("old", trls.model)):
        with torch.no_grad():
            wanted, _, _ = trls._get_per_token_logps_and_entropies(
                model, ids, mask, plain["completion_ids"].shape[1]
            )
        found = plain[f"{key}_per_token_logps"]
        torch.testing.assert_close(found[where], wanted[where], rtol=1e-5, atol=1e-5)
