"""Noise of a step: exponential draws from a counter, and what each mixer makes of them.

Every mixer's randomness is a fixed number of independent Exponential(1) draws a step, turned into
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

    Draws are made many steps ahead and lie on the device, so that most steps need none of the host.

    Args:
        size: Sequences at a time; each has a number below it.
        width: Draws a step.
        device: Where the draws are read.
    """

    def __init__(self, size: int, width: int, device: torch.device) -> None:
        self._width = width
        self._streams: list[NoiseStream | None] = [None] * size
        self._num_steps = max(1, _TABLE_BLOCK // width)
        self._table = torch.empty(self._num_steps, size, width, dtype=torch.float64, device=device)
        self._used = 0  # steps of the table that have been read, by all sequences alike

    @property
    def is_used_up(self) -> bool:
        """Whether the next step of every sequence is still to be drawn."""
        return self._used == self._num_steps

    def begin(self, number: int, seed: int, sequence: int) -> None:
        """Let a number stand for a sequence, at its first step; see NoiseStream."""
        self._streams[number] = NoiseStream(seed, sequence, self._width)

    def draw(self, numbers: np.ndarray) -> np.ndarray:
        """[S, N, width] float64 draws of these [N] sequences, to be ``put``.

        S is what is left of the table: sequences that begin now, or all where it is used up.
        """
        if self.is_used_up:
            self._used = 0
        draws = np.empty((self._num_steps - self._used, len(numbers), self._width))
        for place, number in enumerate(numbers.tolist()):
            stream = self._streams[number]
            assert stream is not None
            draws[:, place] = stream.take(len(draws))
        return draws

    def put(self, numbers: Tensor, draws: Tensor) -> None:
        """What was drawn for these [N] sequences, on the device."""
        self._table[self._used :, numbers] = draws

    def next(self, numbers: Tensor) -> Tensor:
        """[N, width] float64 draws of the next step of these [N] sequences, of all that run."""
        self._used += 1
        return self._table[self._used - 1].index_select(0, numbers)


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
