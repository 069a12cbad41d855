"""Densities: against torch.distributions, finite differences, and the integrals they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Gamma, Gumbel, Normal, RelaxedOneHotCategorical

from softgrpo.thinking import ThinkingConfig, densities, draw_step
from softgrpo.thinking.objective import log_density

N, K = 6, 5
SUPPORT = torch.arange(K) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
NAMES = [
    ("gumbel", "masked_mean"), ("gumbel", "sum"), ("concrete", "sum"), ("argmax", "sum"),
    ("dirichlet", "masked_mean"), ("dirichlet", "sum"),
    ("gaussian", "masked_mean"), ("gaussian", "sum"),
]  # fmt: skip
DENSITIES = [("gumbel", "sum"), ("dirichlet", "sum"), ("gaussian", "sum")]


@pytest.fixture
def logits():
    return torch.randn(N, K, dtype=torch.float64)


def _probs(logits, support=SUPPORT):
    return torch.softmax(logits.masked_fill(~support, -torch.inf), -1)


def _scores(density, logits):
    """Positive scores at which no clamp of the authors is active and no two are tied."""
    probs = torch.softmax(logits, -1)
    if density in ("gumbel", "concrete", "argmax"):
        return torch.log(probs) + torch.rand_like(probs) * 3 - 1
    return probs + 0.1 * torch.rand_like(probs)


@pytest.mark.parametrize(
    ("density", "distribution"),
    [
        ("gumbel", lambda p: Gumbel(torch.log(p), 1.0)),
        ("dirichlet", lambda p: Gamma(p * 0.7, 1.0)),
        ("gaussian", lambda p: Normal(p, 0.2)),
    ],
)
def test_a_sum_is_the_joint_density_on_the_support(logits, density, distribution):
    scores = _scores(density, logits)
    found = log_density(
        logits, scores, SUPPORT, density=density, reduction="sum", alpha=0.7, sigma=0.2
    )
    for i in range(N):
        n = int(SUPPORT[i].sum())
        wanted = distribution(_probs(logits)[i, :n]).log_prob(scores[i, :n]).sum()
        torch.testing.assert_close(found[i], wanted)


def test_embedding_gaussian_is_the_normal_density_of_the_noisy_embedding(logits):
    embeddings, noise = torch.randn(N, K, 7, dtype=torch.float64), torch.randn(N, 7).double()
    drawn_with = _probs(torch.randn_like(logits))
    noisy = torch.einsum("nk,nkd->nd", drawn_with, embeddings) + noise
    mean = torch.einsum("nk,nkd->nd", _probs(logits), embeddings)
    wanted = Normal(mean, 0.3).log_prob(noisy).sum(-1)
    arguments = (logits, drawn_with, SUPPORT, noise, embeddings, 0.3)
    torch.testing.assert_close(densities.embedding_gaussian(*arguments), wanted)
    torch.testing.assert_close(
        densities.embedding_gaussian(*arguments, reduction="masked_mean"), wanted / 7
    )


def test_concrete_is_maddisons_density_up_to_terms_without_theta(logits):
    tau, everywhere = 0.6, torch.ones_like(SUPPORT)
    weights = torch.softmax(torch.randn(N, K, dtype=torch.float64), -1)
    full = RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=logits)
    dropped = math.lgamma(K) + (K - 1) * math.log(tau) - (tau + 1) * weights.log().sum(-1)
    found = densities.concrete(logits, tau * weights.log(), everywhere)
    torch.testing.assert_close(found + dropped, full.log_prob(weights))


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_concrete_integrates_to_one(tau):
    """n = 2, with its dropped constant tau / (w1 w2)^(tau + 1), over w1 = sigmoid(x)."""
    x = torch.linspace(-30 / tau, 30 / tau, 200_001, dtype=torch.float64)
    log_w = torch.stack([torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)], -1)
    logits = torch.tensor([0.3, -1.1], dtype=torch.float64).expand(len(x), 2)
    log_density_w = densities.concrete(logits, tau * log_w, torch.ones(len(x), 2, dtype=torch.bool))
    log_density_x = log_density_w + math.log(tau) - tau * log_w.sum(-1)  # dw = w1 w2 dx
    assert torch.trapezoid(log_density_x.exp(), x).item() == pytest.approx(1, abs=1e-6)


def test_concrete_does_not_see_a_constant_added_to_every_score(logits):
    scores = _scores("concrete", logits).requires_grad_(False)
    a = logits.clone().requires_grad_()
    b = logits.clone().requires_grad_()
    densities.concrete(a, scores, SUPPORT).sum().backward()
    densities.concrete(b, scores + 3.7, SUPPORT).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_the_concrete_score_is_the_gumbel_score_averaged_given_the_weights(logits):
    """Given w, u = sum_i p_i exp(-g'_i) ~ Gamma(n, 1) and the Gumbel score is linear in u, so its
    conditional mean is its value at E[u] = n: Rao-Blackwell, exactly."""
    scores = _scores("gumbel", logits)
    u = torch.where(SUPPORT, _probs(logits) * torch.exp(-scores), 0.0).sum(-1, keepdim=True)
    at_mean = scores + torch.log(u / SUPPORT.sum(-1, keepdim=True))
    gumbel, concrete = (logits.clone().requires_grad_() for _ in range(2))
    densities.gumbel_sum(gumbel, at_mean, SUPPORT).sum().backward()
    densities.concrete(concrete, scores, SUPPORT).sum().backward()
    torch.testing.assert_close(gumbel.grad, concrete.grad)


def test_argmax_sums_to_one_over_the_tokens_of_the_support(logits):
    total = torch.zeros(N, dtype=torch.float64)
    for k in range(K):
        scores = torch.zeros(N, K).scatter(1, torch.full((N, 1), k), 1.0)
        total += torch.where(SUPPORT[:, k], densities.argmax(logits, scores, SUPPORT).exp(), 0.0)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("density", "reduction"), NAMES)
def test_gradients_are_finite_differences(logits, density, reduction):
    scores = _scores(density, logits)

    def function(x):
        return log_density(
            x, scores, SUPPORT, density=density, reduction=reduction, noise_clamp=None, sigma=0.2
        )

    assert torch.autograd.gradcheck(function, logits.requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(("density", "reduction"), NAMES)
def test_a_softmax_gradient_sums_to_zero(logits, density, reduction):
    """A constant added to all logits changes no policy."""
    logits.requires_grad_()
    scores = _scores(density, logits.detach())
    log_density(logits, scores, SUPPORT, density=density, reduction=reduction).sum().backward()
    assert logits.grad.sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("density", "reduction"), [*DENSITIES, ("concrete", "sum"), ("argmax", "sum")]
)
def test_columns_outside_the_support_do_not_exist(logits, density, reduction):
    scores = _scores(density, logits)
    options = {"density": density, "reduction": reduction}
    here = logits.clone().requires_grad_()
    value = log_density(here, scores, SUPPORT, **options)
    value.sum().backward()
    other = torch.where(SUPPORT, logits, logits + 5)
    torch.testing.assert_close(
        log_density(other, torch.where(SUPPORT, scores, 9.0), SUPPORT, **options), value
    )
    assert (here.grad[~SUPPORT] == 0).all()


@pytest.mark.parametrize("density", ["gumbel", "dirichlet", "gaussian"])
def test_masked_mean_over_columns_that_all_count_is_the_sum_divided_by_k(density):
    logits = torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64)
    scores, everywhere = _scores(density, logits), torch.ones(1, 3, dtype=torch.bool)
    options = {"density": density, "prob_floor": 0.0, "sigma": 0.2}
    mean = log_density(logits, scores, everywhere, reduction="masked_mean", **options)
    total = log_density(logits, scores, everywhere, reduction="sum", **options)
    torch.testing.assert_close(mean, total / 3)


@pytest.mark.parametrize("reduction", ["masked_mean", "sum"])
def test_rounding_does_not_decide_the_gradient_of_a_drawn_step(reduction):
    """On policy a clamped draw sits exactly on the edge of the density's clamp: on one side of it
    the column has a gradient, on the other none."""
    rows = torch.randn(2000, 5)
    step = draw_step(rows, ThinkingConfig(policy="gumbel", top_p=1.0))
    columns, found = rows.gather(1, step.ids), []
    for noise in (0.0, 1e-6):
        logits = (columns + noise * torch.randn_like(columns)).requires_grad_()
        log_density(
            logits, step.scores, step.support, density="gumbel", reduction=reduction
        ).sum().backward()
        found.append(logits.grad)
    changed = ((found[0] - found[1]).abs() > 1e-3).any(-1).float().mean().item()
    assert changed == 0, f"the gradient of {changed:.1%} of the steps"


# How far d of a column was moved between a rollout in bfloat16 and its replays: see clamp_edge.
MEASURED = {"rms": 0.03, "most": 0.22}


def test_nor_does_that_of_bfloat16():
    """Every column that counts has a gradient at the weights it was drawn with, wherever rounding
    puts it; with the edge of float32 it takes the gradient from some, and not the same ones twice.
    """
    rows = torch.randn(4000, 5)
    step = draw_step(rows, ThinkingConfig(policy="gumbel", top_p=1.0))
    columns = rows.gather(1, step.ids)
    counts = torch.log_softmax(columns, -1) > densities.LOG_PROB_THRESHOLD + MEASURED["most"]

    def without_gradient(edge):
        moved = MEASURED["rms"] * torch.randn_like(columns)
        moved = moved.clamp(-MEASURED["most"] / 2, MEASURED["most"] / 2)  # p moves by as much again
        scores = step.scores.clone().requires_grad_()
        densities.gumbel_masked_mean(columns + moved, scores, edge=edge).sum().backward()
        return (scores.grad == 0)[counts]

    for dtype, share in ((torch.bfloat16, 0), (torch.float32, 0.015)):
        once, again = (without_gradient(densities.clamp_edge(dtype)) for _ in range(2))
        assert once.float().mean() >= share and (once != again).float().mean() >= share
        assert once.any() == again.any() == bool(share)


def test_the_edge_is_small_beside_the_clamp_and_that_of_float32_is_what_it_was():
    edges = {d: densities.clamp_edge(d) for d in (torch.float64, torch.float32, torch.float16)}
    assert edges == {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 0.03125}
    assert MEASURED["most"] < densities.clamp_edge(torch.bfloat16) == 0.25


def test_masked_mean_is_finite_where_a_probability_underflows_and_there_is_no_floor():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    densities.gumbel_masked_mean(logits, torch.zeros(1, 2), prob_floor=0.0).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("density", "reduction"), NAMES)
@pytest.mark.parametrize("gap", [20.0, 60.0, 150.0])
def test_a_peaked_step_has_a_finite_value_and_gradient(density, reduction, gap):
    """float32, every column in the support, probabilities down to 0."""
    logits = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    scores = torch.tensor([[0.9, 1e-3, 1e-4]])
    value = log_density(
        logits, scores, torch.ones(1, 3, dtype=torch.bool), density=density, reduction=reduction
    )
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


def test_support_entropy_is_the_categoricals(logits):
    found = densities.support_entropy(logits, SUPPORT)
    wanted = torch.stack([Categorical(p[p > 0]).entropy() for p in _probs(logits)])
    torch.testing.assert_close(found, wanted)


def test_an_unknown_name_is_refused():
    arguments = torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="density='token'"):
        log_density(*arguments, density="token")
    with pytest.raises(ValueError, match="reduction='mean'"):
        log_density(*arguments, density="gumbel", reduction="mean")


def test_none_is_the_constant_of_a_step_at_which_nothing_was_drawn(logits):
    value = log_density(logits.requires_grad_(), logits.detach(), SUPPORT, density="none")
    assert np.array_equal(value.numpy(force=True), np.zeros(N))
