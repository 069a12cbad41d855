"""The inputs of a replay: mixtures of embeddings, detached; tokens with gradient for discrete."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softgrpo.modeling.inputs import mix
from softgrpo.replay import build_inputs_embeds
from softgrpo.thinking import MIXERS
from tests.helpers import batch_of, roll_out, thinking, tiny_model

POLICY_NAMES = ["soft", "gumbel", "dirichlet", "gaussian", "embedding_gaussian"]


def _inputs(policy, name="tied"):
    model, config = tiny_model(name), thinking(policy, max_think_tokens=6)
    ids, _, trace, _ = batch_of(roll_out(model, config))
    return build_inputs_embeds(ids, trace, model.get_input_embeddings(), config), ids, trace, model


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_soft_step_feeds_its_mixture_and_all_else_its_token(policy):
    inputs, ids, trace, model = _inputs(policy)
    matrix = model.get_input_embeddings().weight.detach()
    wanted = matrix[ids]
    start = ids.shape[1] - trace.num_steps
    for b, t in trace.is_soft.nonzero().tolist():
        weights = MIXERS[policy].weights(trace.scores[b, t], trace.support[b, t], thinking(policy))
        wanted[b, start + t] = weights @ matrix[trace.ids[b, t].long()]
        if trace.embedding_noise is not None:
            wanted[b, start + t] += trace.embedding_noise[b, t]
    assert trace.is_soft.any() and not trace.is_soft.all()
    torch.testing.assert_close(inputs, wanted)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_mixing_belongs_to_the_environment(policy):
    assert not _inputs(policy)[0].requires_grad


def test_the_tokens_of_discrete_keep_their_gradient():
    inputs, ids, _, model = _inputs("discrete")
    inputs.sum().backward()
    used = model.get_input_embeddings().weight.grad.abs().sum(-1) > 0
    assert set(used.nonzero().flatten().tolist()) >= set(ids.flatten().tolist()) - {0}


def test_other_settings_are_refused():
    model, config = tiny_model(), thinking()
    ids, _, trace, _ = batch_of(roll_out(model, config))
    with pytest.raises(ValueError, match="tau"):
        build_inputs_embeds(ids, trace, model.get_input_embeddings(), replace(config, tau=0.2))


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_autocast_changes_no_input(policy):
    """A rollout mixes outside of it, a replay inside."""
    model, config = tiny_model(), thinking(policy, max_think_tokens=6)
    ids, _, trace, _ = batch_of(roll_out(model, config))

    def inputs():
        return build_inputs_embeds(ids, trace, model.get_input_embeddings(), config)

    wanted = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inputs(), wanted)


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_the_embedding_is_called_as_often_whatever_was_soft(count):
    """Where it is sharded every call is a collective, in which all processes meet."""
    embedding, calls = torch.nn.Embedding(11, 3), []
    handle = embedding.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
    ids, weights = torch.randint(11, (count, 2)), torch.rand(count, 2)
    found = mix(embedding, ids, weights)
    handle.remove()
    assert calls == [(count,)] * 2
    torch.testing.assert_close(found, (embedding(ids) * weights[..., None]).sum(1))
