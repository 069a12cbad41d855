"""A benchmark's numbers from its records, by hand."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from softgrpo.evaluation import Results, describe
from softgrpo.evaluation.results import vote
from softgrpo.thinking import MIXERS, MixerName, ThinkingConfig, draw_step
from tests.unit.evaluation.test_records import _record


def _results(rows) -> Results:
    records = [
        _record(problem, i, correct=bool(right), answer=answer, num_tokens=tokens, sequence=i)
        for i, (problem, right, answer, tokens) in enumerate(rows)
    ]
    return Results({}, records)


ROWS = [("a", 1, "7", 4), ("a", 1, "7", 6), ("b", 1, "8", 8), ("b", 0, "9", 10)]


def test_by_hand():
    results = _results([*ROWS, ("c", 0, None, 12), ("c", 0, "5", 14)])
    assert results.pass_at(1) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert results.pass_at(2) == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert results.first(1) == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert results.maj_at(2) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert results.mean_tokens == 9 and results.mean_tokens_of_correct == 6
    # Problem means 1, .5, 0: deviation .5 over the root of three problems, not of six samples.
    assert results.standard_error == pytest.approx(0.5 / math.sqrt(3))
    summary = results.summary()
    assert (summary["pass_at_1"], summary["num_problems"], summary["num_samples"]) == (0.5, 3, 6)


def test_the_order_in_which_samples_ended_does_not_matter():
    results = _results(ROWS)
    shuffled = Results({}, list(results.records)[::-1])
    assert shuffled.first(1) == results.first(1) and shuffled.maj_at(2) == results.maj_at(2)


def test_one_problem_has_no_error_and_no_right_sample_no_tokens():
    results = _results([("a", 0, None, 4)])
    assert math.isnan(results.standard_error) and math.isnan(results.mean_tokens_of_correct)
    assert not results.can_vote


def test_share_closed():
    records = list(_results(ROWS).records)
    open_ended = replace(records[0], thinking_ended_by=None)
    assert Results({}, [open_ended, *records[1:]]).share_closed == 0.75


@pytest.mark.parametrize("think_end", [[], ()])
def test_nothing_closes_where_no_marker_ends_the_thinking(think_end):
    results = Results({"thinking": {"think_end": think_end}}, _results(ROWS).records)
    assert math.isnan(results.share_closed)


@pytest.mark.parametrize("policy", get_args(MixerName))
def test_a_caption_has_the_fields_that_the_policy_reads(policy):
    """A field is read by a policy if another value of it makes another step."""
    config = ThinkingConfig(policy=policy)
    caption = describe({"thinking": config.to_dict()})
    assert caption.startswith(f"{policy}, temperature 1.0, ")
    for name in ("tau", "alpha", "sigma"):
        other = replace(config, **{name: 0.7})
        is_read = not torch.equal(_fed(config), _fed(other))
        assert (f", {name} " in caption) == is_read, name


def _fed(config: ThinkingConfig) -> torch.Tensor:
    """What a step of these settings feeds a model of five tokens and five dimensions."""
    width = MIXERS[config.policy].noise_width(5, 5)
    noise = torch.empty(1, width).exponential_(generator=torch.Generator().manual_seed(0))
    step = draw_step(torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0]]), config, noise=noise)
    return step.weights if step.embedding_noise is None else step.weights + step.embedding_noise


@pytest.mark.parametrize(
    "one, other",
    [
        ("1,234", "1234"),
        (" 18 ", "18.0"),
        ("$\\frac{1}{2}$", "\\dfrac{1}{2}"),
        ("\\left( 3, 4 \\right)", "(3,4)"),
        ("$5", "5"),
    ],
)
def test_votes_that_look_different_and_are_the_same(one, other):
    assert vote(one) == vote(other)


@pytest.mark.parametrize("one, other", [("1", "2"), ("1e5", "100000.5"), ("", "0"), ("x", "y")])
def test_votes_that_differ(one, other):
    assert vote(one) != vote(other)


def test_a_vote_of_any_text_is_quick():
    assert vote("9" * 1_000_000) and vote("\\left" * 100_000) == ""
