"""What a request was fed: kept as it was, in few bytes, and as fast at the end as at the start."""

from __future__ import annotations

import statistics
import time
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_plugin.fed import FedSteps
from softgrpo.rollout.vllm_plugin.thoughts import Thought, Thoughts
from softgrpo.thinking.phases import Markers, ThinkingPhases
from tests.helpers import VOCAB_SIZE, thinking, word_tokenizer

K, PROMPT, LONG = 5, 7, 32_768


def _steps(count):
    generator = np.random.default_rng(count)
    ids = generator.integers(0, VOCAB_SIZE, (count, K), dtype=np.int32)
    return ids, generator.random((count, K), dtype=np.float32), generator.random(count) < 0.7


def test_steps_come_back_as_they_were_put_in_and_gathered():
    ids, weights, is_mixed = _steps(300)
    steps = FedSteps(K)
    for step in zip(ids, weights, is_mixed.tolist(), strict=True):
        steps.append(*step)
    gathered = FedSteps(K)
    for start, stop in ((0, 3), (3, 299), (299, 300)):
        gathered.extend(steps, start, stop)
    (wanted,) = is_mixed.nonzero()
    for found in (steps, gathered):
        assert len(found) == 300
        for array, kept in zip(found.mixed(), (wanted, ids[wanted], weights[wanted]), strict=True):
            assert np.array_equal(array, kept)
    indices, *mixed = FedSteps(K).mixed()
    assert len(indices) == 0 and [x.shape for x in mixed] == [(0, K)] * 2
    with pytest.raises(IndexError, match=r"steps \[299, 301\) of 300"):
        gathered.extend(steps, 299, 301)


@pytest.fixture
def long():
    """A worker with one request of many steps, and the bytes a step took."""
    thoughts = Thoughts(word_tokenizer(), VOCAB_SIZE)
    steps = _steps(LONG)
    tracemalloc.start()
    try:
        _start(thoughts, "long")
        for ids, weights, is_mixed in zip(*steps, strict=True):
            thoughts._thoughts["long"].fed.append(ids, weights, bool(is_mixed))
        yield thoughts, tracemalloc.get_traced_memory()[1] / LONG
    finally:
        tracemalloc.stop()


def _start(thoughts, name):
    request = Request((), thinking(think_end=(), top_k=K), 9)
    phases = ThinkingPhases(Markers((), word_tokenizer()), request.config)
    thoughts._phases[request.config, request.objective] = phases
    thoughts._thoughts[name] = Thought(request, phases, PROMPT)


def test_a_step_takes_no_more_than_100_bytes_at_the_peak(long):
    _, num_bytes = long
    print(f"{num_bytes:.0f} bytes a step at K = {K}")
    assert 8 * K + 1 <= num_bytes <= 100


@pytest.mark.alone
def test_a_step_takes_no_longer_after_many_than_after_few(long):
    """By turns with a request that has just begun: what disturbs one disturbs both."""
    thoughts, _ = long
    tracemalloc.stop()
    _start(thoughts, "short")
    embedding = nn.Embedding(VOCAB_SIZE, 16).requires_grad_(False)
    inputs = torch.zeros(1, 16)
    ids, weights, _ = _steps(1)
    times: dict[str, list[float]] = {"long": [], "short": []}
    for _ in range(1500):
        for name, taken in times.items():
            start = time.perf_counter()
            fed = thoughts._thoughts[name].fed
            fed.append(ids[0], weights[0], True)
            thoughts.mix_inputs(inputs, embedding, [name], [PROMPT + len(fed) - 1], [1])
            taken.append(time.perf_counter() - start)
    late, early = statistics.median(times["long"]), statistics.median(times["short"])
    print(f"a step: {1e6 * early:.1f} us after few, {1e6 * late:.1f} us after {LONG}")
    assert late < 1.1 * early  # a look at all steps so far would take a hundred times as long


def test_a_long_request_is_computed_again_at_once_and_forgotten_when_it_ends(long):
    thoughts, _ = long
    embedding = nn.Embedding(VOCAB_SIZE, 16).requires_grad_(False)
    inputs = torch.full((PROMPT + LONG, 16), -1.0)
    thoughts.mix_inputs(inputs, embedding, ["long"], [0], [len(inputs)])
    _, _, is_mixed = _steps(LONG)
    changed = (inputs != -1).all(1)
    assert torch.equal(changed[PROMPT:], torch.from_numpy(is_mixed)) and not changed[:PROMPT].any()
    held = tracemalloc.get_traced_memory()[0]
    thoughts.finish(["long"])
    assert held - tracemalloc.get_traced_memory()[0] >= (8 * K + 1) * LONG
