"""Steps as they were fed back to the model, on the host: 8 K + 1 bytes each, in one piece.

A long thought has as many of them as tokens, so a step is bytes at the end of a buffer that grows
by an eighth, and no object of its own.
"""

from __future__ import annotations

import numpy as np


class FedSteps:
    """Steps of K columns, of one sequence or gathered from several."""

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns
        self._ids, self._weights, self._is_mixed = bytearray(), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._is_mixed)

    def append(self, ids: np.ndarray, weights: np.ndarray, is_mixed: bool) -> None:
        """Copy a step [K] to the end, int32 ids and float32 weights, both contiguous.

        One that is not mixed is fed back as its reported token.
        """
        self._ids += ids.data
        self._weights += weights.data
        self._is_mixed.append(is_mixed)

    def extend(self, steps: FedSteps, start: int, stop: int) -> None:
        """Copy steps [start, stop) of another, which has as many columns, to the end.

        Raises:
            IndexError: There are no such steps.
        """
        if not 0 <= start <= stop <= len(steps):
            raise IndexError(f"steps [{start}, {stop}) of {len(steps)}")
        width = 4 * self.num_columns
        self._ids += steps._ids[start * width : stop * width]
        self._weights += steps._weights[start * width : stop * width]
        self._is_mixed += steps._is_mixed[start:stop]

    def mixed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices [n] int64, ids [n, K] int32 and weights [n, K] float32 of mixtures; copies."""
        (indices,) = np.frombuffer(self._is_mixed, dtype=bool).nonzero()
        shape = len(self), self.num_columns
        ids = np.frombuffer(self._ids, dtype=np.int32).reshape(shape)
        weights = np.frombuffer(self._weights, dtype=np.float32).reshape(shape)
        return indices, ids[indices], weights[indices]
