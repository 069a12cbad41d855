"""A step costs as much at the end of a long thought as at its beginning."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch

from softgrpo.replay import pack
from softgrpo.rollout.recorder import Recorder
from softgrpo.thinking.advance import StepRecord, decide
from softgrpo.thinking.noise import NoiseTable
from softgrpo.thinking.phases import Markers, ThinkingPhases
from tests.helpers import thinking, word_tokenizer

pytestmark = pytest.mark.alone

LENGTH, WINDOW, COLUMNS = 32_768, 4096, 5


class _Thought:
    """What the host does for the steps of one sequence beside the model."""

    def __init__(self) -> None:
        self.config = thinking(think_end=("</t>",), max_think_tokens=LENGTH, cold_stop_entropy=1e-9)
        markers = Markers(self.config.think_end, word_tokenizer())
        self.phases = ThinkingPhases(markers, self.config)
        self.numbers = np.array([self.phases.begin()])
        self.noise = NoiseTable(1, COLUMNS, torch.device("cpu"))
        self.noise.begin(0, seed=0, sequence=0)
        self.recorder = Recorder(1, LENGTH, COLUMNS, 1, torch.device("cpu"))

    def step(self) -> float:
        """One more; the CPU-seconds that it took."""
        start = time.thread_time()
        rows = torch.from_numpy(self.numbers)
        if self.recorder.num_steps == 0 or self.noise.is_used_up:
            self.noise.put(rows, torch.from_numpy(self.noise.draw(self.numbers)))
        self.noise.next(rows)
        row = np.full((1, 2 * COLUMNS + 3), 7, dtype=np.float32)
        row[:, -1] = 1
        record = StepRecord(row, np.array([7]), [])
        decide(record, self.phases, self.numbers)
        self.recorder.add(self.numbers, record)
        self.recorder.add_late(rows, [torch.ones(1)])
        return time.thread_time() - start


@pytest.mark.slow
def test_bookkeeping_is_flat_in_length():
    """The last steps of one sequence within a tenth of the first of another, taken in turn.

    So what goes on beside it is in both: two runs of one thing differ by 1%.
    """
    old, young = _Thought(), _Thought()
    for _ in range(LENGTH - WINDOW):
        old.step()
    for _ in range(100):
        young.step()
    times = [(old.step(), young.step()) for _ in range(WINDOW)]
    late, early = (statistics.median(x) for x in zip(*times, strict=True))
    assert late < 1.1 * early
    trace = old.recorder.trace(0, old.config, None, {})
    assert trace.num_steps == LENGTH and trace.is_soft[0, :-1].all()
    assert old.recorder.read_late([0])[0].shape == (LENGTH, 1)


@pytest.mark.slow
def test_packing_is_linear_in_length():
    times = []
    for length in (LENGTH // 8, LENGTH):
        ids = torch.randint(3, 20, (2, 100 + length))
        mask = torch.ones_like(ids)
        turns = []
        for _ in range(5):
            start = time.perf_counter()
            packed = pack(ids, mask, length)
            turns.append(time.perf_counter() - start)
        times.append(min(turns))
        assert len(packed.source) == 2 * (100 + length)
    assert times[1] < 12 * times[0]  # n^2 would be 64 times
