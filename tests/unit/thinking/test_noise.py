"""Noise: exact inverse distribution functions of draws that seed, sequence and step decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from softgrpo.thinking import noise
from softgrpo.thinking.noise import NoiseStream, NoiseTable


def _stream(seed=1, sequence=0, width=4, steps=100):
    stream = NoiseStream(seed, sequence, width)
    return np.stack([stream.next() for _ in range(steps)])


@pytest.mark.parametrize("shape", [0.05, 0.3, 1.0, 2.5, 40.0])
def test_gamma_is_scipys_quantile(shape):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    found = noise.gamma(torch.full_like(u, shape), -torch.log1p(-u))
    wanted = np.maximum(stats.gamma.ppf(u.numpy(), shape), 1e-30)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-8)


def test_gamma_of_a_tiny_shape_is_its_floor_and_of_shape_zero_is_zero():
    found = noise.gamma(torch.tensor([1e-4, 0.0]), torch.tensor([0.5, 0.5]))
    np.testing.assert_allclose(found.numpy(), [1e-30, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("variate", "distribution"),
    [
        (noise.uniform, stats.uniform()),
        (noise.gumbel, stats.gumbel_r()),
        (noise.normal, stats.norm()),
        (lambda e: noise.gamma(torch.full_like(e, 2.5), e), stats.gamma(2.5)),
        (lambda e: noise.gamma(torch.full_like(e, 0.2), e), stats.gamma(0.2)),
    ],
    ids=["uniform", "gumbel", "normal", "gamma_2.5", "gamma_0.2"],
)
def test_variates_pass_kolmogorov_smirnov(variate, distribution):
    draws = torch.from_numpy(_stream(steps=1000).reshape(-1))
    assert stats.kstest(variate(draws).numpy(), distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("variate", [noise.gumbel, noise.normal])
def test_variates_are_finite_at_extreme_draws(variate):
    assert torch.isfinite(variate(torch.tensor([1e-38, 1e-10, 80.0]))).all()


def test_a_stream_is_reproducible_and_ignores_other_streams():
    alone = _stream(sequence=3)
    one, other = NoiseStream(1, 3, 4), NoiseStream(1, 2, 4)
    interleaved = []
    for step in range(100):
        if step % 3 == 0:
            other.next()
        interleaved.append(one.next())
    np.testing.assert_array_equal(alone, np.stack(interleaved))


@pytest.mark.parametrize("other", [{"seed": 2}, {"sequence": 1}, {"seed": 0, "sequence": 1}])
def test_another_seed_or_sequence_is_independent(other):
    a, b = _stream(steps=2000), _stream(steps=2000, **other)
    assert not np.intersect1d(a, b).size
    assert abs(stats.spearmanr(a.ravel(), b.ravel()).statistic) < 4 / np.sqrt(a.size)


# Tables of more steps than there are, of seven, of two, and of one.
@pytest.mark.parametrize("width", [1, 292, 700, 4096])
def test_a_table_gives_every_sequence_its_own_stream_whenever_it_begins(width):
    """Numbers in any order, one that is taken again, and tables that are used up on the way."""
    table = NoiseTable(3, width, torch.device("cpu"))
    sequences, found = {}, {}
    beginning = {0: (2, 20), 4: (0, 21), 5: (1, 22), 19: (0, 23)}  # at a step: number, sequence

    def put(numbers):
        table.put(torch.tensor(numbers), torch.from_numpy(table.draw(np.array(numbers))))

    def begin(number, sequence):
        sequences[number], found[sequence] = sequence, []
        table.begin(number, seed=1, sequence=sequence)
        put([number])

    for step in range(30):
        if table.is_used_up and sequences:
            put(list(sequences))
        if step in beginning:
            begin(*beginning[step])
        numbers = list(sequences)
        for number, draws in zip(numbers, table.next(torch.tensor(numbers)).numpy(), strict=True):
            found[sequences[number]].append(draws)
    assert {sequence: len(draws) for sequence, draws in found.items()} == {
        20: 30, 21: 15, 22: 25, 23: 11
    }  # fmt: skip
    for sequence, draws in found.items():
        np.testing.assert_array_equal(draws, _stream(1, sequence, width, len(draws)))
