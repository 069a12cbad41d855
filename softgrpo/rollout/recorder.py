"""What sequences that run have drawn so far: a step of all of them at a time in, traces out.

It is kept on the host, to which each step comes anyway. Only what the host has no use for, a step's
log-density and the noise of its embedding, stays on the device until a sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrpo.thinking.advance import StepRecord
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.trace import SoftTrace


class Recorder:
    """The steps of sequences by number; a number is free again once its trace was taken.

    A step of all sequences lies in one place, a sequence's steps one behind the other from the
    place where it began, and behind the last place comes the first.

    Args:
        size: Sequences at a time; each has a number below it.
        longest: Most steps of one.
        num_columns: K.
        late: Numbers a step that are kept on the device; 0 for none.
        device: That device.

    Attributes:
        num_steps: Steps recorded so far, of whichever sequences.
    """

    def __init__(
        self, size: int, longest: int, num_columns: int, late: int, device: torch.device
    ) -> None:
        self.num_steps = 0
        self._begins = [0] * size  # by number, ``num_steps`` when it began
        self._longest = longest
        self._rows = np.empty((longest, size, 2 * num_columns + 3), dtype=np.float32)
        self._late = torch.empty(longest, size, late, device=device)

    def begin(self, number: int) -> None:
        """Let a number stand for a sequence that has no steps yet."""
        self._begins[number] = self.num_steps

    def length(self, number: int) -> int:
        """Steps of a sequence recorded so far."""
        return self.num_steps - self._begins[number]

    def add(self, numbers: np.ndarray, record: StepRecord) -> None:
        """The next step of these [N] sequences, which are all that run."""
        self._rows[self.num_steps % self._longest][numbers] = record.rows
        self.num_steps += 1

    def add_late(self, numbers: Tensor, values: Sequence[Tensor]) -> None:
        """What stays on the device of the step just added, each [N] or [N, D]."""
        columns = [x if x.dim() == 2 else x[:, None] for x in values]
        place = (self.num_steps - 1) % self._longest
        self._late[place, numbers] = torch.cat(columns, dim=-1).float()

    def read_late(self, numbers: Sequence[int]) -> list[Tensor]:
        """[T, late] float32 on the host of each of these sequences, which have ended."""
        parts = [
            self._late[places, number] for number in numbers for places in self._places(number)
        ]
        lengths = [self.length(number) for number in numbers]
        return list(torch.cat(parts).cpu().split(lengths))

    def trace(
        self, number: int, config: ThinkingConfig, noise: Tensor | None, source: dict[str, Any]
    ) -> SoftTrace:
        """A sequence's steps as a trace of one row; noise [T, D] where an embedding had some."""
        rows = torch.from_numpy(
            np.concatenate([self._rows[places, number] for places in self._places(number)])
        )
        count = rows.shape[1] // 2 - 1
        ids, scores, num_support, _, is_soft = rows.split([count, count, 1, 1, 1], dim=1)
        return SoftTrace(
            ids=ids.int()[None],
            scores=scores.contiguous()[None],
            support=(torch.arange(count) < num_support)[None],
            is_soft=is_soft.T.bool(),
            lengths=torch.tensor([len(rows)], dtype=torch.int32),
            embedding_noise=None if noise is None else noise.clone()[None],
            settings=config.replay_settings(),
            source=source,
        )

    def _places(self, number: int) -> tuple[slice, slice]:
        """Where a sequence's steps lie: to the last place at most, and on from the first."""
        first = self._begins[number] % self._longest
        end = first + self.length(number)
        return slice(first, min(end, self._longest)), slice(0, max(0, end - self._longest))
