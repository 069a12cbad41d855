"""The authors' own functions, in values and gradients, on their recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgrpo.replay import logps_from_hidden, logps_from_logits
from softgrpo.thinking import ThinkingConfig, draw_step
from tests.helpers import golden

NAMES = ["small", "wide", "peaked"]
NOISES = ["gumbel", "dirichlet", "gaussian"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("name", NAMES)
def test_draw_step_is_the_authors_sampler(name):
    v = golden(name)
    config = ThinkingConfig(
        policy="gumbel",
        **{k: v[f"sampler/in/{k}"] for k in ("temperature", "top_k", "top_p", "min_p")},
        tau=v["sampler/in/tau"].item(),
    )
    step = draw_step(v["sampler/in/logits"], config, noise=v["sampler/in/exponential"])
    torch.testing.assert_close(step.weights, v["sampler/out/weights"], **CLOSE)
    assert (step.support.sum(-1) == (v["sampler/out/support_probs"] > 0).sum(-1)).all()
    on = step.support
    assert (step.ids[on] == v["sampler/out/ids"][on]).all()
    torch.testing.assert_close(step.scores[on], v["sampler/out/perturbed"][on], **CLOSE)


def _recorded(v, noise):
    ids = v["logdensity/in/ids"]
    return {
        "ids": ids,
        "scores": v[f"logdensity/{noise}/values"],
        "support": torch.ones_like(ids, dtype=torch.bool),
        "is_soft": v["logdensity/in/is_soft"],
        "density": noise,
        "reduction": "masked_mean",
    }


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_masked_mean_is_the_authors_log_density_and_gradient(name, noise):
    v = golden(name)
    logits = v["logdensity/in/logits"].requires_grad_()
    logps = logps_from_logits(logits, **_recorded(v, noise))
    (logps * v["logdensity/in/upstream"]).sum().backward()
    torch.testing.assert_close(logps, v[f"logdensity/{noise}/out"], **CLOSE)
    torch.testing.assert_close(logits.grad, v[f"logdensity/{noise}/grad"], **CLOSE)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_k_columns_of_a_head_give_the_authors_log_density_and_gradient(name, noise):
    """hidden = logits and an identity head: the same numbers without [N, V] logits."""
    v = golden(name)
    hidden = v["logdensity/in/logits"].requires_grad_()
    head = nn.Linear(hidden.shape[1], hidden.shape[1], bias=False)
    nn.init.eye_(head.weight)
    logps = logps_from_hidden(hidden, head, **_recorded(v, noise))
    (logps * v["logdensity/in/upstream"]).sum().backward()
    torch.testing.assert_close(logps, v[f"logdensity/{noise}/out"], **CLOSE)
    torch.testing.assert_close(hidden.grad, v[f"logdensity/{noise}/grad"], **CLOSE)


@pytest.mark.parametrize("noise", NOISES)
def test_a_flat_distribution_over_30_columns_is_finite(noise):
    """No column passes the authors' threshold: their code divides by zero ([9])."""
    logits = torch.zeros(2, 64, requires_grad=True)
    config = ThinkingConfig(policy=noise, top_k=30, top_p=1.0)
    step = draw_step(logits.detach(), config)
    logps = logps_from_logits(
        logits, step.ids, step.scores, step.support, torch.ones(2, dtype=torch.bool), density=noise
    )
    logps.sum().backward()
    assert torch.isfinite(logps).all() and torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0
