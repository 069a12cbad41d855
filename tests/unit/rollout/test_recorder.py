"""What is recorded comes out again, whenever a sequence began and whoever ran beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgrpo.rollout.recorder import Recorder
from softgrpo.thinking.advance import StepRecord
from tests.helpers import thinking

LONGEST, COLUMNS = 6, 2


@pytest.mark.parametrize("begins", [0, 1, 4, 5, 6, 17])
@pytest.mark.parametrize("length", [1, 3, LONGEST])
def test_a_trace_is_what_was_added_since_it_began(begins, length):
    recorder = Recorder(3, LONGEST, COLUMNS, 1, torch.device("cpu"))
    generator = np.random.default_rng(0)
    recorder.begin(2)
    wanted, late = [], []
    for step in range(begins + length):
        if step == begins:
            recorder.begin(1)
        numbers = np.array([2, 1] if step >= begins else [2])
        ids = np.sort(generator.permutation(50)[: 2 * len(numbers)]).reshape(-1, COLUMNS)
        rows = np.column_stack([
            ids, generator.normal(size=ids.shape), np.full(len(ids), 1 + step % 2),
            np.ones(len(ids)), np.full(len(ids), step % 3 > 0),
        ]).astype(np.float32)  # fmt: skip
        recorder.add(numbers, StepRecord(rows, rows[:, 0].astype(np.int64), []))
        recorder.add_late(torch.from_numpy(numbers), [torch.arange(len(ids)) + 10.0 * step])
        if step >= begins:
            wanted.append(rows[1])
            late.append([10.0 * step + 1])
    assert recorder.length(1) == length and recorder.length(2) == begins + length
    trace, wanted = recorder.trace(1, thinking(), None, {}), np.stack(wanted)
    assert trace.lengths.tolist() == [length]
    np.testing.assert_array_equal(trace.ids[0], wanted[:, :2])
    np.testing.assert_array_equal(trace.scores[0], wanted[:, 2:4])
    np.testing.assert_array_equal(trace.support[0].sum(-1), wanted[:, 4])
    np.testing.assert_array_equal(trace.is_soft[0], wanted[:, 6] > 0)
    assert [x.tolist() for x in recorder.read_late([1])] == [late]
