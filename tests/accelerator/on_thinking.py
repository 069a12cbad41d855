"""Drawing a step on an accelerator: every policy, every mixture of phases, as on the CPU."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from softgrpo.thinking import draw_step
from softgrpo.thinking.advance import advance
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import MIXERS
from softgrpo.thinking.phases import Markers, ThinkingPhases
from softgrpo.thinking.step import SoftStep
from tests.accelerator.pretend import DEVICE
from tests.helpers import WORDS, thinking, word_tokenizer

N, V, D = 8, 1000, 6  # V: enough that the CPU looks for the largest of blocks, and a device not
MARKER = WORDS.index("</t>")
ENDINGS = {"max_think_tokens": 2, "cold_stop_entropy": 0.5, "cold_stop_steps": 1,
           "think_end": ("s t", "</t>")}  # fmt: skip


def _noise(config):
    width = MIXERS[config.policy].noise_width(1 if config.policy == "discrete" else 4, D)
    return torch.empty(N, width, dtype=torch.float64).exponential_()


def _assert_same_step(found: SoftStep, wanted: SoftStep) -> None:
    for column in fields(SoftStep):
        ours, theirs = getattr(found, column.name), getattr(wanted, column.name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.device == DEVICE
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", MIXERS)
def test_a_step_of_every_policy(policy, dtype):
    config = thinking(policy, min_p=0.05)
    logits, noise = torch.randn(N, V).to(dtype), _noise(config)
    wanted = draw_step(logits, config, noise=noise)
    _assert_same_step(draw_step(logits.to(DEVICE), config, noise=noise.to(DEVICE)), wanted)


def test_settings_of_every_row():
    rows = torch.arange(N)
    values = {"temperature": 0.5 + rows, "top_k": 1 + rows % 4, "top_p": 0.3 + 0.05 * rows,
              "min_p": 0.01 * rows, "tau": 0.1 + 0.2 * rows}  # fmt: skip
    logits, noise = torch.randn(N, V), _noise(thinking())
    wanted = draw_step(logits, ThinkingConfig(**values), noise=noise)
    there = ThinkingConfig(**{name: value.to(DEVICE) for name, value in values.items()})
    _assert_same_step(draw_step(logits.to(DEVICE), there, noise=noise.to(DEVICE)), wanted)


def _phases(config: ThinkingConfig, mixture: str) -> tuple[ThinkingPhases, np.ndarray]:
    """N sequences: some think, some answer after a marker, some are about to have one forced."""
    phases = ThinkingPhases(Markers(config.think_end, word_tokenizer()), config)
    numbers = np.array([phases.begin() for _ in range(N)])

    def take(rows: slice, token: int, entropy: float) -> None:
        count = len(numbers[rows])
        phases.update(numbers[rows], np.full(count, token), np.full(count, entropy))

    if mixture == "answering":
        take(slice(None), MARKER, 1.0)
    if mixture == "mixed":
        take(slice(1, None, 4), MARKER, 1.0)
        take(slice(2, None, 4), 5, 1.0), take(slice(2, None, 4), 5, 1.0)  # over the budget
        take(slice(3, 4), 5, 0.1)  # cold
    return phases, numbers


@pytest.mark.parametrize("mixture", ["thinking", "answering", "mixed"])
@pytest.mark.parametrize("answer", [{}, {"answer_top_p": 0.8}, {"answer_top_k": 3},
                                    {"answer_min_p": 0.05}], ids=str)  # fmt: skip
@pytest.mark.parametrize("policy", MIXERS)
def test_steps_of_every_mixture_of_phases(policy, answer, mixture):
    config = thinking(policy, **ENDINGS, **answer)
    (here, numbers), (there, _) = _phases(config, mixture), _phases(config, mixture)
    for scale in (1.0, 6.0, 1.0):  # flat: a nucleus of hundreds; steep: cold stops
        logits, noise = scale * torch.randn(N, V), _noise(config)
        wanted, is_soft = advance(logits, noise, config, here, numbers)
        found, is_soft_there = advance(logits.to(DEVICE), noise.to(DEVICE), config, there, numbers)
        _assert_same_step(found, wanted)
        assert is_soft_there.tolist() == is_soft.tolist()
        assert there.is_thinking.tolist() == here.is_thinking.tolist()
    assert [there.ended_by(n) for n in numbers] == [here.ended_by(n) for n in numbers]
