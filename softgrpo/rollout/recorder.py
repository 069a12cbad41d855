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

from softgrpo.rollout.steps import StepRecord
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.trace import SoftTrace


class Recorder:
    """The steps of sequences by number; a number is free again once its trace was taken.

    Args:
        size: Sequences at a time; each has a number below it.
        longest: Most steps of one.
        num_columns: K.
        late: Numbers a step that are kept on the device; 0 for none.
        device: That device.

    Attributes:
        lengths: [size] int64, steps recorded so far.
    """

    def __init__(
        self, size: int, longest: int, num_columns: int, late: int, device: torch.device
    ) -> None:
        self.lengths = np.zeros(size, dtype=np.int64)
        # A row for each number and step, one after the other: indexed in one way it is faster.
        self._longest = longest
        self._rows = np.zeros((size * longest, 2 * num_columns + 2), dtype=np.float32)
        self._is_soft = np.zeros(size * longest, dtype=bool)
        self._late = torch.zeros(size, longest, late, device=device)

    def add(self, numbers: np.ndarray, record: StepRecord) -> None:
        """The next step of these [N] sequences."""
        lengths = self.lengths[numbers]
        places = numbers * self._longest + lengths
        self._rows[places] = record.rows
        self._is_soft[places] = record.is_soft
        self.lengths[numbers] = lengths + 1

    def add_late(self, numbers: Tensor, steps: Tensor, values: Sequence[Tensor]) -> None:
        """What stays on the device of step [N] of these sequences, each [N] or [N, D]."""
        columns = [x if x.dim() == 2 else x[:, None] for x in values]
        self._late[numbers, steps] = torch.cat(columns, dim=-1).float()

    def read_late(self, numbers: Tensor, longest: int) -> Tensor:
        """[N, longest, late] float32 on the host, of sequences that have ended."""
        return self._late[:, :longest].index_select(0, numbers).cpu()

    def trace(
        self, number: int, config: ThinkingConfig, noise: Tensor | None, source: dict[str, Any]
    ) -> SoftTrace:
        """A sequence's steps as a trace of one row; noise [T, D] where an embedding had some."""
        first = number * self._longest
        steps = slice(first, first + int(self.lengths[number]))
        # Copies: the number will be another's.
        rows, is_soft = (torch.from_numpy(x[steps].copy()) for x in (self._rows, self._is_soft))
        count = rows.shape[1] // 2 - 1
        ids, scores, num_support, _ = rows.split([count, count, 1, 1], dim=1)
        return SoftTrace(
            ids=ids.int()[None],
            scores=scores.contiguous()[None],
            support=(torch.arange(count) < num_support)[None],
            is_soft=is_soft[None],
            lengths=torch.tensor([len(rows)], dtype=torch.int32),
            embedding_noise=None if noise is None else noise.clone()[None],
            settings=config.replay_settings(),
            source=source,
        )
