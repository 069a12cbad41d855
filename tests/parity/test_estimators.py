"""Score-function gradients against the reparameterised one, by Monte Carlo with error bars.

E[return(w)], w = softmax(g' / tau), has the pathwise gradient through g' = log p + noise. The score
times the return must have the same mean (algorithm.md, "Estimators that go past the paper").
"""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from softgrpo.replay import logps_from_logits
from softgrpo.thinking import ThinkingConfig, draw_step
from softgrpo.thinking.objective import log_density

NUM_DRAWS = 100_000
LOGITS = torch.tensor([1.2, 0.4, 0.0, -0.9], dtype=torch.float64)
EXACT = ThinkingConfig(
    policy="gumbel", top_k=4, top_p=1.0, tau=0.5, noise_clamp=None, prob_floor=0.0
)


def _draw(config=EXACT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = LOGITS.expand(NUM_DRAWS, -1)
    noise = torch.empty(NUM_DRAWS, 4, dtype=torch.float64).exponential_(generator=generator)
    return draw_step(rows, config, noise=noise)


def _smooth_return(weights):
    """Of the weights by token, smooth and not linear."""
    values = torch.tensor([1.0, -0.5, 0.7, 0.2], dtype=weights.dtype)
    return torch.sin(3 * (weights * values).sum(-1)) + weights.square().sum(-1)


def _by_token(step, values):
    return torch.zeros_like(values).scatter(1, step.ids, values)


def _score_gradients(density, baseline=0.0):
    """[draws, 4] per-draw score times return, by logit."""
    step = _draw()
    weights, scores = _by_token(step, step.weights), _by_token(step, step.scores)
    logits = LOGITS.expand(NUM_DRAWS, -1).clone().requires_grad_()
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    log_density(logits, scores, everywhere, density=density, reduction="sum").sum().backward()
    return logits.grad * (_smooth_return(weights)[:, None] - baseline)


def _pathwise_gradients():
    noise = torch.empty(NUM_DRAWS, 4, dtype=torch.float64).exponential_(
        generator=torch.Generator().manual_seed(1)
    )
    logits = LOGITS.expand(NUM_DRAWS, -1).clone().requires_grad_()
    scores = torch.log_softmax(logits, -1) - noise.log()
    _smooth_return(torch.softmax(scores / EXACT.tau, -1)).sum().backward()
    return logits.grad


def _errors_apart(a, b):
    """Largest difference of two Monte Carlo means, in its standard errors."""
    error = ((a.var(0) + b.var(0)) / NUM_DRAWS).sqrt()
    return ((a.mean(0) - b.mean(0)).abs() / error).max().item()


@pytest.mark.parametrize("density", ["gumbel", "concrete"])
def test_score_times_return_has_the_reparameterised_gradient_as_its_mean(density):
    score, pathwise = _score_gradients(density), _pathwise_gradients()
    assert pathwise.mean(0).abs().max() > 20 * (pathwise.std(0) / NUM_DRAWS**0.5).max()
    assert _errors_apart(score, pathwise) < 4


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_the_variance_of_concrete_is_below_that_of_the_gumbel_sum(baseline):
    gumbel = _score_gradients("gumbel", baseline).var(0)
    concrete = _score_gradients("concrete", baseline).var(0)
    assert (concrete < gumbel).all()
    assert concrete.sum() < 0.9 * gumbel.sum()


@pytest.mark.parametrize("density", ["gumbel", "concrete", "argmax"])
def test_the_mean_score_is_zero(density):
    step = _draw()
    logits = LOGITS.expand(NUM_DRAWS, -1).clone().requires_grad_()
    scores = _by_token(step, step.scores)
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    log_density(logits, scores, everywhere, density=density, reduction="sum").sum().backward()
    mean, error = logits.grad.mean(0), logits.grad.std(0) / NUM_DRAWS**0.5
    assert (mean.abs() < 4 * error).all()


@pytest.mark.parametrize(
    "config",
    [
        EXACT,
        ThinkingConfig(policy="discrete"),
        ThinkingConfig(policy="discrete", top_k=4),
        ThinkingConfig(policy="discrete", min_p=0.01),
    ],
    ids=["gumbel_max", "discrete", "discrete_top_k", "discrete_min_p"],
)
def test_reported_tokens_have_the_softmax_frequencies(config):
    generator = torch.Generator().manual_seed(5)
    step = draw_step(LOGITS.float().expand(NUM_DRAWS, -1), config, generator=generator)
    counts = torch.bincount(step.ids[:, 0], minlength=4).numpy()
    expected = torch.softmax(LOGITS, -1).numpy() * NUM_DRAWS
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_the_entropy_of_discrete_is_the_mean_of_minus_its_log_density():
    config = ThinkingConfig(policy="discrete", temperature=0.7)
    logits = LOGITS.float().expand(NUM_DRAWS, -1)
    step = draw_step(logits, config, generator=torch.Generator().manual_seed(2))
    surprise = -logps_from_logits(
        logits, step.ids, step.scores, step.support, torch.zeros(NUM_DRAWS, dtype=torch.bool),
        temperature=0.7, density="token",
    )  # fmt: skip
    error = surprise.std().item() / NUM_DRAWS**0.5
    assert surprise.mean().item() == pytest.approx(step.entropy[0].item(), abs=4 * error)
