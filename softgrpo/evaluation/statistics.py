"""Intervals and paired tests over problems, since samples of one problem are not independent.

Every random number comes from a fixed seed: the same results give the same table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SEED = 0
_CHUNK = 1000  # draws held in memory at a time
_EXACT_SIGNS = 14  # up to so many differing problems all sign flips are counted, not drawn


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same problems: `b` minus `a`, by problem."""

    difference: Estimate  # mean difference with its 95% interval
    p_value: float  # two-sided, of the sign-flip permutation test
    num_problems: int  # that both runs have


def share(*groups: Sequence[float]) -> Estimate:
    """The mean of shares, with an interval that holds near 0 and 1 and for few problems too.

    Wilson's score interval for as many independent tosses of a coin as would leave the mean as
    uncertain as the problems' spread does, with Student's quantile for that spread. Where all
    problems have the same share nothing is known of their spread, and each counts as one toss:
    0 of 8 problems is [0, 0.41], where resampling them would say [0, 0].

    Args:
        groups: A number from 0 to 1 a problem. Of several groups (benchmarks) the mean is that of
            their means.

    Raises:
        ValueError: A group has no problem.
    """
    if not groups or not all(map(len, groups)):
        raise ValueError("share: there is no problem to take a mean of")
    mean = float(np.mean([np.mean(group) for group in groups]))
    # Of each group's part in the mean; a problem alone has no spread.
    degrees = [max(1, len(group) - 1) for group in groups]
    parts = [float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else 0.0 for x in groups]
    variances = [part / len(groups) ** 2 for part in parts]
    variance, spread = sum(variances), mean * (1 - mean)
    if variance and spread:
        # Welch's degrees of freedom; a single group is worth its problems at least.
        freedom = variance**2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
        tosses = max(spread / variance, degrees[0] if len(groups) == 1 else 1)
    else:
        freedom, tosses = sum(degrees), sum(map(len, groups))
    quantile2 = _student(int(freedom)) ** 2
    middle = (mean + quantile2 / (2 * tosses)) / (1 + quantile2 / tosses)
    inside = spread / tosses + quantile2 / (4 * tosses**2)
    half = math.sqrt(quantile2 * inside) / (1 + quantile2 / tosses)
    # Rounding must not leave the mean outside.
    return Estimate(mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)))


def mean_difference(differences: Sequence[float]) -> Estimate:
    """The mean of paired differences, with an interval that holds for few problems too.

    Agresti and Min's interval for matched pairs (Statistics in Medicine 24, 2005), with Student's
    quantile for the normal one: half a pair is added to each cell of their table, which is half a
    problem of difference 1, half a problem of -1, and one of 0. So a problem that none of these
    was like is allowed for, whatever their spread: 0 of 8 that differ is [-0.25, 0.25], where
    resampling them would say [0, 0].

    Args:
        differences: A number from -1 to 1 a problem.

    Raises:
        ValueError: There is no problem.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if not count:
        raise ValueError("mean_difference: there is no problem to take a mean of")
    middle = float(values.sum()) / (count + 2)
    variance = (float(values @ values) + 1) / (count + 2) - middle**2
    half = _student(max(1, count - 1)) * math.sqrt(variance / (count + 1))
    return Estimate(float(values.mean()), max(-1.0, middle - half), min(1.0, middle + half))


def _student(degrees: int) -> float:
    """The .975 quantile of Student's t distribution (Abramowitz and Stegun, 26.7.5)."""
    if degrees < 5:
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z = 1.959963984540054
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def compare_paired(
    a: Sequence[float], b: Sequence[float], num_resamples: int = 10_000
) -> Comparison:
    """Whether `b` differs from `a` on the same problems.

    The null hypothesis: on each problem the two runs could have changed places. Where few problems
    differ every assignment of signs is counted; else `num_resamples` are drawn, and the p-value is
    (1 + those as extreme) / (1 + drawn), never 0.

    Args:
        a, b: One number a problem, in the same order.
        num_resamples: Draws of the test.

    Raises:
        ValueError: There is no problem.
    """
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    return Comparison(
        mean_difference(differences.tolist()),
        _sign_flip_p_value(differences[differences != 0], num_resamples),
        len(differences),
    )


def _sign_flip_p_value(differences: NDArray[np.float64], num_resamples: int) -> float:
    if len(differences) == 0:
        return 1.0
    # Sums that are equal on paper differ by rounding; they count as equally extreme.
    seen = abs(differences.sum()) - 1e-9
    if len(differences) <= _EXACT_SIGNS:
        bits = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ differences) >= seen))
    generator = np.random.default_rng(_SEED)
    extreme = 0
    for start in range(0, num_resamples, _CHUNK):
        size = (min(_CHUNK, num_resamples - start), len(differences))
        signs = generator.integers(0, 2, size) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= seen).sum())
    return (1 + extreme) / (1 + num_resamples)
