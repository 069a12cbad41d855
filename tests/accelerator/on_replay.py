"""The replay on an accelerator: values and gradients of the CPU's, padded and packed."""

from __future__ import annotations

import pytest
import torch

from softgrpo.replay import check_model, check_packing, replay
from softgrpo.thinking import Objective
from tests.accelerator.pretend import DEVICE
from tests.helpers import (
    MODELS,
    POLICY_DENSITIES,
    assert_same,
    batch_of,
    gradients,
    roll_out,
    thinking,
    tiny_model,
)

# GPT-J knows no sdpa.
MODELS_ATTENDING = [(name, "eager") for name in MODELS]
MODELS_ATTENDING += [(name, "sdpa") for name in MODELS if name != "bias_gptj"]
TRAINED = [case for case in POLICY_DENSITIES if case[1] != "none"]


def _learn(model, batch, config, objective, share_prompts):
    """Values and gradients of a weighted sum of log-densities and entropies."""
    ids, mask, trace = (x.to(model.device) for x in batch)
    model.train()
    logps, entropies = replay(model, ids, mask, trace, objective, share_prompts)
    upstream = torch.linspace(-1, 1, logps.numel(), device=logps.device).view_as(logps)
    ((logps + 0.3 * entropies) * upstream).sum().backward()
    values = gradients(model) | {"logps": logps.detach(), "entropies": entropies.detach()}
    return {name: value.cpu() for name, value in values.items()}


def _assert_same(config, objective, share_prompts, name="tied", attention="sdpa"):
    models = tiny_model(name, attention=attention), tiny_model(name, attention=attention).to(DEVICE)
    rollouts = roll_out(models[0], config, max_new_tokens=10)
    batch = batch_of(rollouts)[:3]
    wanted, found = (_learn(m, batch, config, objective, share_prompts) for m in models)
    assert_same(found, wanted, 1e-4)
    assert wanted["logps"].abs().max() > 0.1


@pytest.mark.parametrize("share_prompts", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("policy", "density", "reduction"), TRAINED)
def test_every_density(policy, density, reduction, share_prompts):
    config = thinking(policy, max_think_tokens=5)
    _assert_same(config, Objective(config, density, reduction), share_prompts)


@pytest.mark.parametrize(
    ("name", "attention", "share_prompts"),
    [(*model, False) for model in MODELS_ATTENDING]
    # One has a window.
    + [(*m, True) for m in MODELS_ATTENDING if m[1] == "sdpa" and m[0] != "softcap"],
)
def test_every_model(name, attention, share_prompts):
    config = thinking()
    _assert_same(config, Objective(config, "concrete"), share_prompts, name, attention)


@pytest.mark.parametrize(("name", "attention"), MODELS_ATTENDING)
def test_models_are_checked(name, attention):
    model = tiny_model(name, attention=attention).to(DEVICE)
    check_model(model)
    if name != "softcap" and attention == "sdpa":
        check_packing(model)
