"""Intervals that cover, and p-values against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from softgrpo.evaluation.statistics import _student, compare_paired, mean_difference, share


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0] * 8, 0, 0.412), ([1.0] * 8, 0.588, 1), ([0.5] * 8, 0.179, 0.821), ([1.0], 0.006, 1)],
    ids=["none", "all", "half of each", "one problem"],
)
def test_a_share_of_few_problems_is_not_known_exactly(values, low, high):
    estimate = share(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.002)
    assert estimate.low <= estimate.mean <= estimate.high


def test_independent_tosses_are_wilsons():
    values = [1.0] * 300 + [0.0] * 700
    wanted = stats.binomtest(300, 1000).proportion_ci(method="wilson")
    found = share(values)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=2e-4)


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize(
    ("problems", "a", "b"), [(8, 0.5, 0.5), (8, 20, 1), (30, 2, 2), (30, 1, 20), (200, 20, 1)]
)
def test_the_interval_of_a_share_holds_the_truth(problems, a, b, samples):
    """Problems of Beta(a, b) difficulty; resampling them holds it 34 to 96 times in 100."""
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        values = generator.binomial(samples, generator.beta(a, b, problems)) / samples
        estimate = share(values.tolist())
        hits += estimate.low <= a / (a + b) <= estimate.high
    assert hits / 400 > 0.92


def test_several_groups_weigh_the_same():
    estimate = share([0.0, 1.0, 0.0, 1.0], [1.0] * 100)
    assert estimate.mean == 0.75
    assert estimate.low < 0.6 and estimate.high > 0.85  # four problems are half of it


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 30, 200])
def test_students_quantile(degrees):
    assert _student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


@pytest.mark.parametrize("groups", [(), ([],), ([1.0], [])])
def test_no_problem_has_no_share(groups):
    with pytest.raises(ValueError, match="there is no problem"):
        share(*groups)


@pytest.mark.parametrize(("gained", "lost", "same"), [(12, 4, 184), (3, 0, 197), (0, 0, 200)])
def test_one_sample_each_is_agresti_and_mins(gained, lost, same):
    # Theirs by hand: half a pair in each cell, N = n + 2, Wald's variance of (c - b) / N.
    total = gained + lost + same + 2
    middle = (gained - lost) / total
    variance = (gained + lost + 1 - (gained - lost) ** 2 / total) / total**2
    half = 1.96 * variance**0.5
    found = mean_difference([1.0] * gained + [-1.0] * lost + [0.0] * same)
    assert found.mean == pytest.approx((gained - lost) / 200)
    # Student's quantile and n + 1 for n + 2 make it a hundredth wider.
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0] * 2, -1, 1), ([0.0] * 8, -0.249, 0.249), ([1.0] * 8, 0.398, 1), ([0.25], -1, 1)],
    ids=["two problems", "none of eight", "all of eight", "one problem"],
)
def test_a_difference_of_few_problems_is_not_known_exactly(values, low, high):
    found = mean_difference(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("problems", [2, 4, 8, 30, 100])
@pytest.mark.parametrize(
    ("a", "b", "step", "jump"),
    [
        (2, 2, 0, 0),
        (20, 1, -1, 0),
        (1, 9, 2, 0),
        (2, 98, 0, 0.02),
        (1, 19, 0, 0.1),
        (1, 19, 0, 0.95),
    ],
    ids=["nothing", "worse near 1", "better near 0", "one in fifty", "one in ten", "nearly all"],
)
def test_the_interval_of_a_difference_holds_the_truth(problems, samples, a, b, step, jump):
    """Problems of Beta(a, b) difficulty, moved by `step` logits; a share `jump` is solved instead.

    Resampling the problems holds it 7 to 97 times in 100, Student's interval 11 to 97: least
    where few problems differ.
    """

    def draw(count):
        before = generator.beta(a, b, count).clip(1e-9, 1 - 1e-9)
        moved = 1 / (1 + (1 / before - 1) * np.exp(-step))
        return before, np.where(generator.random(count) < jump, 1.0, moved)

    generator = np.random.default_rng(3)
    before, after = draw(200_000)
    truth = (after - before).mean()
    hits = 0
    for _ in range(300):
        first, second = (generator.binomial(samples, rate) / samples for rate in draw(problems))
        found = mean_difference(second - first)
        hits += found.low <= truth <= found.high
    assert hits / 300 > 0.9


def test_no_problem_has_no_difference():
    with pytest.raises(ValueError, match="there is no problem"):
        compare_paired([], [])


def test_three_problems_by_hand():
    # Eight assignments of signs to 1, 1, 1: only +++ and --- are as extreme.
    result = compare_paired([0, 0, 0], [1, 1, 1])
    assert result.p_value == pytest.approx(2 / 8)
    assert result.difference.mean == 1.0 and result.num_problems == 3


def test_no_difference_is_no_evidence():
    assert compare_paired([0.5] * 9, [0.5] * 9).p_value == 1.0


def test_the_direction_is_second_minus_first():
    assert compare_paired([1, 1], [0, 0]).difference.mean == -1.0


@pytest.mark.parametrize("count", [10, 60])
def test_the_p_value_is_scipys(count):
    generator = np.random.default_rng(count)
    a, b = generator.random(count), generator.random(count) + 0.12
    wanted = stats.permutation_test(
        (b - a,),
        np.sum,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).pvalue
    assert compare_paired(a.tolist(), b.tolist()).p_value == pytest.approx(wanted, abs=0.015)


def test_the_p_value_is_uniform_where_nothing_differs():
    generator = np.random.default_rng(6)
    p_values = [
        compare_paired(generator.random(30).tolist(), generator.random(30).tolist(), 500).p_value
        for _ in range(300)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
