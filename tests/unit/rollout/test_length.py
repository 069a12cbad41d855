"""A step costs as much at the end of a long thought as at its beginning."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch

from softgrpo.replay import pack
from softgrpo.rollout.recorder import Recorder
from softgrpo.rollout.steps import StepRecord, decide
from softgrpo.thinking.noise import NoiseTable
from softgrpo.thinking.phases import Markers, ThinkingPhases
from tests.helpers import thinking, word_tokenizer

LENGTH, COLUMNS = 32_768, 5


@pytest.mark.slow
def test_bookkeeping_is_linear_in_length():
    """Medians of windows: the last within a quarter of the first, where n^2 would be 30 times."""
    config = thinking(think_end=("</t>",), max_think_tokens=LENGTH, cold_stop_entropy=1e-9)
    phases = ThinkingPhases(Markers(config.think_end, word_tokenizer()), config)
    numbers, noise = np.array([phases.begin()]), NoiseTable(1, COLUMNS)
    noise.begin(0, seed=0, sequence=0)
    recorder = Recorder(1, LENGTH, COLUMNS, 0, torch.device("cpu"))
    times = []
    for _ in range(LENGTH):
        start = time.perf_counter()
        noise.next(numbers)
        row = np.full((1, 2 * COLUMNS + 2), 7, dtype=np.float32)
        no = np.zeros(1, dtype=bool)
        record = StepRecord(row, np.array([7]), no, no)
        decide(record, config, phases, numbers)
        recorder.add(numbers, record)
        times.append(time.perf_counter() - start)
    early, late = (statistics.median(times[i : i + 4096]) for i in (4096, LENGTH - 4096))
    assert late < 1.25 * early
    trace = recorder.trace(0, config, None, {})
    assert trace.num_steps == LENGTH and trace.is_soft[0, :-1].all()


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
