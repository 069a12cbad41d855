"""The censored density is the likelihood of the cut mixture: identities, in float64.

The policy: a Gumbel-Softmax mixture whose weights below min_weight times the largest are cut.
"""

from __future__ import annotations

import math

import pytest
import torch

from softgrpo.thinking.densities import argmax, censored, concrete, gumbel_sum, heavy_columns

NUM_DRAWS = 50_000
FLAT, PEAKED = [0.3, 0.1, 0.0, -0.2], [4.0, 1.0, 0.0, -3.0]
STEPS = {
    "the note's": [1.2, 0.4, 0.0, -0.9],
    "flat": FLAT,
    "peaked": PEAKED,
    "30 columns": torch.linspace(2, -4, 30).tolist(),
    "one column": [0.7],
}
STEP_NAMES = pytest.mark.parametrize("name", STEPS)
CUTS = pytest.mark.parametrize(("tau", "min_weight"), [(0.1, 0.01), (0.5, 0.1), (2.0, 0.3)])


def _draw(name, num_draws=NUM_DRAWS, seed=0):
    """Logits that want a gradient, scores g' = log p + noise, and the full support."""
    logits = torch.tensor(STEPS[name], dtype=torch.float64).expand(num_draws, -1)
    noise = torch.empty_like(logits, memory_format=torch.contiguous_format)
    noise.exponential_(generator=torch.Generator().manual_seed(seed))
    scores = torch.log_softmax(logits, -1) - noise.log()
    return logits.clone().requires_grad_(), scores, torch.ones_like(scores, dtype=torch.bool)


def _score(density, logits):
    """[draws, K] gradient of each draw's log-density."""
    [gradient] = torch.autograd.grad(density.sum(), logits)
    return gradient


def _cut_weights(scores, tau, min_weight):
    stays = heavy_columns(scores, torch.ones_like(scores, dtype=torch.bool), tau, min_weight)
    return torch.softmax((scores / tau).masked_fill(~stays, -torch.inf), -1)


def _value(weights):
    """A return that sees the mixture: smooth, and not linear."""
    values = torch.linspace(1, -0.5, weights.shape[-1], dtype=weights.dtype)
    return torch.sin(3 * (weights * values).sum(-1)) + weights.square().sum(-1)


@STEP_NAMES
def test_at_1_it_is_argmax_up_to_a_constant_of_the_draw(name):
    logits, scores, support = _draw(name, 200)
    cut, reported = censored(logits, scores, support, 0.5, 1.0), argmax(logits, scores, support)
    torch.testing.assert_close(cut, reported + scores.amax(-1))
    torch.testing.assert_close(_score(cut, logits), _score(reported, logits))


@STEP_NAMES
def test_at_0_it_is_concrete(name):
    logits, scores, support = _draw(name, 200)
    cut, whole = censored(logits, scores, support, 0.5, 0.0), concrete(logits, scores, support)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(_score(cut, logits), _score(whole, logits))


def test_columns_outside_the_support_change_nothing():
    logits, scores, support = _draw("the note's", 200)
    wider = torch.cat([logits.detach(), torch.full((200, 1), 9.0)], -1).requires_grad_()
    found = censored(
        wider,
        torch.cat([scores, torch.full((200, 1), 99.0)], -1),
        torch.cat([support, torch.zeros(200, 1, dtype=torch.bool)], -1),
        0.5,
        0.1,
    )
    torch.testing.assert_close(found, censored(logits, scores, support, 0.5, 0.1))
    assert (_score(found, wider)[:, -1] == 0).all()


def test_it_depends_on_the_draw_through_the_mixture_alone():
    logits, scores, support = _draw("the note's", 200)
    light = ~heavy_columns(scores, support, 0.5, 0.1)
    other = torch.where(light, scores - 3.0, scores) + 1.7  # the same mixture
    torch.testing.assert_close(
        _score(censored(logits, other, support, 0.5, 0.1), logits),
        _score(censored(logits, scores, support, 0.5, 0.1), logits),
    )
    assert light.any()


@CUTS
@STEP_NAMES
def test_the_mean_score_is_zero(name, tau, min_weight):
    logits, scores, support = _draw(name)
    score = _score(censored(logits, scores, support, tau, min_weight), logits)
    error = score.std(0) / NUM_DRAWS**0.5
    assert (score.mean(0).abs() <= 4.5 * error + 1e-12).all()


@CUTS
@pytest.mark.parametrize("name", ["the note's", "flat", "peaked"])
def test_score_times_return_is_the_gradient_of_the_cut_policy_s_return(name, tau, min_weight):
    """By finite differences of the logits with common random numbers."""
    logits, scores, support = _draw(name)
    score = _score(censored(logits, scores, support, tau, min_weight), logits)
    value = _value(_cut_weights(scores, tau, min_weight))
    found = score * (value - value.mean())[:, None]
    log_probs = torch.log_softmax(logits.detach(), -1)
    noise, width = scores - log_probs, 0.05

    def moved(by):
        return _value(_cut_weights(torch.log_softmax(logits + by, -1) + noise, tau, min_weight))

    moves = width * torch.eye(logits.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.stack([(moved(by) - moved(-by)) / (2 * width) for by in moves], -1)
    error = ((found.var(0) + wanted.var(0)) / NUM_DRAWS).sqrt()
    assert ((found.mean(0) - wanted.mean(0)).abs() < 4.5 * error + width**2).all()


@CUTS
@STEP_NAMES
def test_its_score_has_never_more_variance_than_those_of_concrete_and_gumbel(name, tau, min_weight):
    logits, scores, support = _draw(name)
    value = _value(_cut_weights(scores, tau, min_weight))
    value = (value - value.mean())[:, None]
    variances = [
        (_score(density, logits) * value).var(0).sum().item()
        for density in (
            censored(logits, scores, support, tau, min_weight),
            concrete(logits, scores, support),
            gumbel_sum(logits, scores, support),
        )
    ]
    assert variances[0] <= variances[1] * 1.02 + 1e-12
    assert variances[1] <= variances[2] * 1.02 + 1e-12


@CUTS
@pytest.mark.parametrize("name", ["the note's", "flat", "peaked", "30 columns"])
def test_ratios_of_two_policies_average_to_one(name, tau, min_weight):
    logits, scores, support = _draw(name)
    move = torch.linspace(-0.2, 0.2, logits.shape[-1], dtype=torch.float64)
    old = censored(logits, scores, support, tau, min_weight)
    ratio = torch.exp(censored(logits + move, scores, support, tau, min_weight) - old).detach()
    assert abs(ratio.mean().item() - 1) < 4.5 * ratio.std().item() / math.sqrt(NUM_DRAWS)


def test_argmax_is_biased_where_the_return_feels_the_weights_and_censored_is_not():
    """A flat step at tau 1: more draws, since the bias is small."""
    num_draws, tau, min_weight = 400_000, 1.0, 0.1
    logits, scores, support = _draw("the note's", num_draws)
    value = _value(_cut_weights(scores, tau, min_weight))
    value = (value - value.mean())[:, None]
    exact = _score(concrete(logits, scores, support), logits) * value
    for density, is_biased in (
        (censored(logits, scores, support, tau, min_weight), False),
        (argmax(logits, scores, support), True),
    ):
        difference = _score(density, logits) * value - exact  # paired: the same draws
        apart = difference.mean(0).abs() / (difference.std(0) / num_draws**0.5)
        assert (apart.max().item() > 8) == is_biased
