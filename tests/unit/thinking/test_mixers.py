"""Policies: what is drawn has the distribution its docstring names; weights follow from scores."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from softgrpo.thinking import MIXERS, ThinkingConfig, check_density, draw_step
from softgrpo.thinking.mixers import with_mass

LOGITS = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
DRAWS = 4000
MIXING = ["soft", "gumbel", "dirichlet", "gaussian"]


def _draw(policy, **settings):
    config = ThinkingConfig(policy=policy, **({"top_k": 4, "top_p": 1.0} | settings))
    generator = torch.Generator().manual_seed(0)
    return draw_step(LOGITS.expand(DRAWS, -1), config, generator=generator), config


def _by_token(step, values):
    return torch.zeros(DRAWS, 5, dtype=values.dtype).scatter(1, step.ids, values)


PROBS = torch.softmax(LOGITS[:4], -1)


def test_gumbel_scores_are_log_p_plus_gumbel_noise():
    step, _ = _draw("gumbel", noise_clamp=None, prob_floor=0.0)
    noise = _by_token(step, step.scores)[:, :4] - PROBS.log()
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_clamped_gumbel_noise_stays_in_its_range():
    step, _ = _draw("gumbel", noise_clamp=(-0.5, 1.0), prob_floor=0.0)
    noise = _by_token(step, step.scores)[:, :4] - PROBS.log()
    assert noise.min().item() == pytest.approx(-0.5) and noise.max().item() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_dirichlet_weights_have_beta_marginals(alpha):
    step, _ = _draw("dirichlet", alpha=alpha)
    weights = _by_token(step, step.weights)
    for i, p in enumerate(PROBS.tolist()):
        marginal = stats.beta(alpha * p, alpha * (1 - p))
        assert stats.kstest(weights[:, i].numpy(), marginal.cdf).pvalue > 1e-3


def test_gaussian_scores_are_p_plus_normal_noise():
    step, _ = _draw("gaussian", sigma=0.05)
    noise = (_by_token(step, step.scores)[:, :4] - PROBS) / 0.05
    assert stats.kstest(noise.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3


def test_soft_weights_are_the_probabilities():
    step, _ = _draw("soft")
    torch.testing.assert_close(step.weights, PROBS.expand(DRAWS, -1))


def test_embedding_noise_is_normal_with_sigma():
    config = ThinkingConfig(policy="embedding_gaussian", sigma=0.3, top_k=4)
    noise = torch.empty(500, 16).exponential_()
    step = draw_step(LOGITS.expand(500, -1), config, noise=noise)
    drawn = step.embedding_noise.flatten().numpy() / 0.3
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("policy", MIXING)
def test_recorded_scores_give_the_drawn_weights_again(policy):
    step, config = _draw(policy, top_p=0.8)
    again = MIXERS[policy].weights(step.scores, step.support, config)
    torch.testing.assert_close(again, step.weights)
    torch.testing.assert_close(again.sum(-1), torch.ones(DRAWS, dtype=again.dtype))
    assert (again[~step.support] == 0).all()


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_light_weights_are_cut_and_the_others_keep_their_ratios(tau):
    whole, _ = _draw("gumbel", tau=tau, top_p=0.8)
    cut, _ = _draw("gumbel", tau=tau, top_p=0.8, min_weight=0.2)
    least = 0.2 * whole.weights[:, :1]
    by_token = _by_token(cut, cut.weights)
    kept = _by_token(whole, whole.weights.masked_fill(whole.weights < least, 0.0))
    assert ((kept > 0).sum(-1) < whole.support.sum(-1)).any()
    torch.testing.assert_close(by_token, kept / kept.sum(-1, keepdim=True))
    # Of which the likelihood is made: columns that were cut are recorded as well.
    torch.testing.assert_close(_by_token(cut, cut.scores), _by_token(whole, whole.scores))
    torch.testing.assert_close(cut.support, whole.support)


def test_at_min_weight_1_a_thought_is_its_reported_token():
    step, _ = _draw("gumbel", tau=2.0, min_weight=1.0)
    assert (step.weights[:, 0] == 1).all() and (step.weights[:, 1:] == 0).all()


def test_a_density_of_another_policy_is_refused_by_name():
    assert check_density("gumbel", None) == "gumbel"
    with pytest.raises(ValueError, match="density='concrete': policy 'dirichlet'"):
        check_density("dirichlet", "concrete")


def test_a_column_without_mass_is_never_drawn():
    """Running sums as a parallel scan may round them: the third grows, though its mass is 0."""
    probs, sums = torch.tensor([[0.25, 0.25, 0.0, 0.5]]), [0.25, 0.5 - 2.0**-25, 0.5, 1.0]
    found = torch.searchsorted(torch.tensor([sums]), torch.tensor([[sums[1]]]), right=True)
    assert found.tolist() == [[2]]
    assert with_mass(probs, found).tolist() == [[3]]
    for column in (0, 1, 3):
        assert with_mass(probs, torch.tensor([[column]])).item() == column
