"""Intervals that cover, and p-values against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from softgrpo.evaluation.statistics import _student, bootstrap, compare_paired, share


def test_a_constant_has_no_width():
    estimate = bootstrap([0.5] * 20)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).random(80)
    wanted = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    found = bootstrap(values.tolist())
    assert (found.low, found.high) == pytest.approx(wanted, abs=3e-3)


def test_the_interval_covers_the_truth_95_times_in_100():
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        estimate = bootstrap((generator.random(60) < 0.3).tolist(), num_resamples=1000)
        hits += estimate.low <= 0.3 <= estimate.high
    # 95% less the percentile method's known shortfall at 60 problems; error of the count .013.
    assert 0.90 < hits / 300 < 0.985


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


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(4).random(50).tolist()
    assert bootstrap(values) == bootstrap(values)


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
