"""One step: the order of its columns, and the limits in which it is a step already known."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from softgrpo.thinking import ThinkingConfig, draw_step
from softgrpo.thinking.blocks import row_blocks

LOGITS = torch.randn(8, 20, generator=torch.Generator().manual_seed(4))


def _noise(width):
    return torch.empty(8, width).exponential_(generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", ["soft", "gumbel", "dirichlet", "gaussian"])
def test_columns_fall_in_weight_and_the_support_comes_first(policy):
    step = draw_step(LOGITS, ThinkingConfig(policy=policy, top_p=0.7), noise=_noise(5))
    on = step.support.int()
    assert (on.diff(dim=-1) <= 0).all()
    falls = (step.weights.diff(dim=-1) <= 0) | (on[:, 1:] == 0)
    assert falls.all()


def test_a_small_tau_is_one_hot_on_the_largest_score():
    step = draw_step(LOGITS, ThinkingConfig(tau=1e-4), noise=_noise(5))
    largest = step.scores.masked_fill(~step.support, -torch.inf).argmax(-1)
    assert (largest == 0).all()
    torch.testing.assert_close(step.weights[:, 0], torch.ones(8))


@pytest.mark.parametrize("policy", ["soft", "gumbel", "dirichlet", "gaussian"])
def test_one_column_is_the_greedy_token(policy):
    step = draw_step(LOGITS, ThinkingConfig(policy=policy, top_k=1), noise=_noise(1))
    assert (step.ids[:, 0] == LOGITS.argmax(-1)).all()
    torch.testing.assert_close(step.weights, torch.ones(8, 1))


def test_a_constant_added_to_the_logits_changes_nothing():
    a, b = (draw_step(x, ThinkingConfig(), noise=_noise(5)) for x in (LOGITS, LOGITS + 7))
    assert (a.ids == b.ids).all()
    torch.testing.assert_close(a.weights, b.weights, rtol=1e-4, atol=1e-5)


def test_settings_by_row_are_the_rows_settings():
    taus = torch.linspace(0.1, 1, 8)
    together = draw_step(LOGITS, ThinkingConfig(tau=taus), noise=_noise(5))
    for i in range(8):
        row = slice(i, i + 1)
        alone = draw_step(LOGITS[row], ThinkingConfig(tau=taus[i].item()), noise=_noise(5)[row])
        torch.testing.assert_close(together.weights[row], alone.weights)


def test_settings_by_row_are_the_rows_settings_in_every_block_of_rows():
    logits = torch.randn(8, 80_000, generator=torch.Generator().manual_seed(0))
    assert len(list(row_blocks(logits))) == 3
    rows = {"temperature": torch.linspace(0.5, 2, 8), "min_p": torch.linspace(0, 0.3, 8)}
    config = ThinkingConfig(policy="discrete", top_p=1.0, **rows)
    together = draw_step(logits, config, noise=_noise(1))
    for i in range(8):
        row = slice(i, i + 1)
        settings = {name: values[i].item() for name, values in rows.items()}
        config = ThinkingConfig(policy="discrete", top_p=1.0, **settings)
        alone = draw_step(logits[row], config, noise=_noise(1)[row])
        assert torch.equal(together.ids[row], alone.ids)
        torch.testing.assert_close(together.entropy[row], alone.entropy)


@pytest.mark.parametrize("config", [ThinkingConfig(), ThinkingConfig(policy="discrete")])
def test_a_generator_reproduces_a_step(config):
    a, b = (draw_step(LOGITS, config, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert (a.ids == b.ids).all() and (a.weights == b.weights).all()


def test_the_entropy_is_the_supports_before_the_noise():
    step = draw_step(LOGITS, ThinkingConfig(top_k=20, top_p=1.0, temperature=0.7), noise=_noise(20))
    torch.testing.assert_close(step.entropy, Categorical(logits=LOGITS / 0.7).entropy())


@pytest.mark.parametrize("exponential", [0.0, 1e-30, 40.0, 100.0])
def test_an_extreme_draw_never_samples_a_token_without_probability(exponential):
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [3, 500]] = 0.0
    noise = torch.tensor([[exponential]], dtype=torch.float64)
    step = draw_step(logits, ThinkingConfig(policy="discrete"), noise=noise)
    assert step.ids.item() in (3, 500)


@pytest.mark.parametrize(
    ("config", "width"), [(ThinkingConfig(), 4), (ThinkingConfig(policy="discrete"), 5)]
)
def test_noise_of_another_width_is_refused(config, width):
    with pytest.raises(ValueError, match="noise has shape"):
        draw_step(LOGITS, config, noise=_noise(width))


def test_embedding_noise_must_be_given():
    with pytest.raises(ValueError, match="embedding_gaussian"):
        draw_step(LOGITS, ThinkingConfig(policy="embedding_gaussian"))
