"""Noise of a step: exponential draws from a counter, and what each policy makes of them.

Every policy's randomness is a fixed number of independent Exponential(1) draws a step, turned into
Gumbel, normal, Gamma or uniform variates by their inverse distribution functions. So a step is a
pure function of logits and noise, and a sequence's noise depends on its seed alone: not on the
batch it runs in, the device, or the engine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64  # steps drawn at a time
# Numbers of a sequence drawn at a time where many run together: the call costs more than so many.
_TABLE_BLOCK = 2048


class NoiseStream:
    """Exponential draws of one sequence, step after step.

    Philox is a counter-based generator: (seed, sequence, step) alone decide a draw.

    Args:
        seed: Seed of the rollout, in [0, 2^64).
        sequence: Index of the sequence in the rollout, in [0, 2^64).
        width: Draws a step.
    """

    def __init__(self, seed: int, sequence: int, width: int) -> None:
        self._uniform = np.random.Generator(
            np.random.Philox(key=np.array([seed, sequence], dtype=np.uint64))
        )
        self._width = width
        self._block = np.empty((0, width))
        self._used = 0

    def next(self) -> np.ndarray:
        """[width] float64 Exponential(1) draws of the next step."""
        if self._used == len(self._block):
            self._block, self._used = self.take(_BLOCK), 0
        self._used += 1
        return self._block[self._used - 1]

    def take(self, num_steps: int) -> np.ndarray:
        """[num_steps, width] float64 draws of the steps behind those ``next`` has read."""
        return -np.log1p(-self._uniform.random((num_steps, self._width)))


class NoiseTable:
    """The streams of sequences that run together, a step of all of them at a time.

    Args:
        size: Sequences at a time; each has a number below it.
        width: Draws a step.
    """

    def __init__(self, size: int, width: int) -> None:
        self._width = width
        self._streams: list[NoiseStream | None] = [None] * size
        self._num_steps = max(1, _TABLE_BLOCK // width)
        self._blocks = np.empty((size * self._num_steps, width))  # a block for each number
        self._used = np.zeros(size, dtype=np.int64)

    def begin(self, number: int, seed: int, sequence: int) -> None:
        """Let a number stand for a sequence, at its first step; see NoiseStream."""
        self._streams[number] = NoiseStream(seed, sequence, self._width)
        self._used[number] = self._num_steps

    def next(self, numbers: np.ndarray) -> np.ndarray:
        """[N, width] float64 draws of the next step of these [N] sequences."""
        count, used = self._num_steps, self._used[numbers]
        for place in (used == count).nonzero()[0].tolist():
            number, used[place] = int(numbers[place]), 0
            stream = self._streams[number]
            assert stream is not None
            self._blocks[number * count : (number + 1) * count] = stream.take(count)
        self._used[numbers] = used + 1
        return self._blocks.take(numbers * count + used, axis=0)


def uniform(exponential: Tensor) -> Tensor:
    """U(0, 1) variates in [0, 1): the exponential distribution function of the draws."""
    return -torch.expm1(-exponential)


def gumbel(exponential: Tensor) -> Tensor:
    """Gumbel(0, 1) variates: -log of the draws (as the authors draw them)."""
    return -torch.log(exponential)


def normal(exponential: Tensor) -> Tensor:
    """N(0, 1) variates."""
    return torch.special.ndtri(uniform(exponential.double()).clamp(1e-300, 1 - 1e-16))


def gamma(concentration: Tensor, exponential: Tensor) -> Tensor:
    """Gamma(concentration, 1) variates by bisection of the log-quantile, in float64.

    Args:
        concentration: Shape parameters, >= 0; 0 gives 0.
        exponential: Exponential(1) draws of the same shape.

    Returns:
        Variates of the same shape, >= 1e-30 where the concentration is positive (a Gamma with a
        small shape underflows; the authors' sampler has the same floor).
    """
    shape = concentration.double()
    target = uniform(exponential.double())
    low = torch.full_like(shape, np.log(1e-30))
    high = torch.full_like(shape, np.log(1e4)) + shape.clamp_min(1.0).log()
    positive = shape > 0
    safe_shape = torch.where(positive, shape, 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(safe_shape, middle.exp()) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(positive, ((low + high) / 2).exp(), 0.0)
