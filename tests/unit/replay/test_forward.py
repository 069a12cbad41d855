"""The replay inside forward: an ordinary model where nothing is soft, and blind to padding."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from softgrpo.replay import add_replay, replay
from softgrpo.thinking import Objective, ThinkingConfig, from_tokens
from tests.helpers import MODELS, batch_of, replay_rollouts, roll_out, thinking, tiny_model

OBJECTIVE = Objective(thinking(), "concrete", "sum")


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_tokens_are_replayed_as_the_model_scores_them(name):
    model = tiny_model(name)
    config = ThinkingConfig(policy="discrete", temperature=0.7, answer_temperature=0.7)
    prompt, completion = torch.tensor([[5, 6, 7]]), [8, 9, 3, 4]
    ids = torch.cat([prompt, torch.tensor([completion])], dim=1)
    objective = Objective(config, "token")
    trace = from_tokens([completion], config)
    found = replay(model, ids, torch.ones_like(ids), trace, objective)
    scores = Categorical(logits=model(input_ids=ids).logits[0, 2:-1] / 0.7)
    torch.testing.assert_close(found.logps[0], scores.log_prob(torch.tensor(completion)))
    torch.testing.assert_close(found.entropies[0], scores.entropy())


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_either_side_changes_nothing(name):
    """Replayed together, left-padded and of mixed lengths, or alone: the same numbers."""
    model, config = tiny_model(name), thinking()
    rollouts = roll_out(model, config, num_generations=12)
    assert len({len(r.token_ids) for r in rollouts}) > 1
    together, _, _ = replay_rollouts(model, rollouts, config, OBJECTIVE)
    for i, rollout in enumerate(rollouts):
        alone, _, mask = replay_rollouts(model, [rollout], config, OBJECTIVE)
        steps = mask.shape[1]
        assert (alone.logps[0] - together.logps[i, :steps]).abs().max() < 1e-4
        assert (together.logps[i, steps:] == 0).all()


def test_forward_without_a_trace_is_the_models_own():
    model, patched = tiny_model(), tiny_model()
    add_replay(patched, OBJECTIVE)
    ids = torch.arange(3, 9)[None]
    assert torch.equal(patched(input_ids=ids).logits, model(input_ids=ids).logits)


def test_forward_with_a_trace_is_the_replay():
    model, config = tiny_model(), thinking()
    ids, mask, trace, _ = batch_of(roll_out(model, config))
    wanted = replay(model, ids, mask, trace, OBJECTIVE)
    add_replay(model, OBJECTIVE)
    found = model(input_ids=ids, attention_mask=mask, trace=trace)
    assert torch.equal(found["logps"], wanted.logps)
    assert torch.equal(found["entropies"], wanted.entropies)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    config = thinking()
    plain, checkpointed = tiny_model("untied").train(), tiny_model("untied").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    ids, mask, trace, _ = batch_of(roll_out(plain, config))
    for model in (plain, checkpointed):
        replay(model, ids, mask, trace, OBJECTIVE).logps.sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if a.grad is not None or b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_a_truncated_row_is_masked_whole():
    model, config = tiny_model(), thinking()
    ids, mask, trace, _ = batch_of(roll_out(model, config))
    full = replay(model, ids, mask, trace, OBJECTIVE).logps
    mask[0, -trace.num_steps :] = 0
    masked = replay(model, ids, mask, trace, OBJECTIVE).logps
    assert (masked[0] == 0).all()
    torch.testing.assert_close(masked[1:], full[1:], rtol=1e-4, atol=1e-5)
