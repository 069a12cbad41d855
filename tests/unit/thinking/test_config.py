"""ThinkingConfig: the published defaults, and a wrong value named with what would do."""

from __future__ import annotations

import pytest
import torch

from softgrpo.thinking import ThinkingConfig


def test_defaults_are_the_published_settings():
    config = ThinkingConfig()
    assert (config.policy, config.temperature, config.top_p, config.top_k, config.tau) == (
        "gumbel", 1.0, 0.95, 5, 0.1
    )  # fmt: skip
    assert (config.prob_floor, config.noise_clamp) == (1e-6, (-1.5, 3.0))


def test_discrete_samples_the_whole_vocabulary_unless_told_otherwise():
    config = ThinkingConfig(policy="discrete")
    assert (config.top_k, config.top_p) == (None, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "noisy"), ("temperature", 0.0), ("answer_temperature", -1.0), ("top_k", 0),
        ("answer_top_k", 0), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.0), ("min_p", -0.1),
        ("tau", 0.0), ("tau", float("nan")), ("alpha", 0.0), ("sigma", -1.0), ("prob_floor", 1.0),
        ("noise_clamp", (3.0, -1.5)), ("cold_stop_steps", 0), ("max_think_tokens", 0),
        ("cold_stop_entropy", 0.0), ("think_end", ("",)), ("think_end", (1,)), ("think_end", None),
        ("top_k", 1.5), ("top_k", "5"), ("tau", None), ("sigma", {}), ("noise_clamp", [1.0]),
        ("noise_clamp", "ab"), ("tau", torch.tensor([0.1, torch.inf])),
        ("top_p", torch.tensor([0.5, 2.0])),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        ThinkingConfig(**{field: value})


def test_a_budget_without_a_marker_is_refused():
    with pytest.raises(ValueError, match="think_end"):
        ThinkingConfig(think_end=(), max_think_tokens=4)


@pytest.mark.parametrize("field", ["top_k", "answer_top_k"])
def test_a_top_k_over_the_vocabulary_is_refused(field):
    ThinkingConfig(**{field: 97}).check_vocabulary(97)
    with pytest.raises(ValueError, match=f"{field}=98"):
        ThinkingConfig(**{field: 98}).check_vocabulary(97)


def test_the_answer_is_the_discrete_policy_under_its_own_sampling():
    config = ThinkingConfig(answer_temperature=0.6, answer_top_k=30, answer_top_p=0.9)
    answer = config.answer
    assert answer.policy == "discrete"
    assert (answer.temperature, answer.top_k, answer.top_p) == (0.6, 30, 0.9)


def test_a_trace_cannot_record_one_value_a_row():
    with pytest.raises(ValueError, match="tau"):
        ThinkingConfig(tau=torch.tensor([0.1, 0.2])).replay_settings()
