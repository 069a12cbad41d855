"""A nucleus cut from the likeliest columns is that of the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.advance import advance
from softgrpo.thinking.phases import Markers, ThinkingPhases
from softgrpo.thinking.step import draw_step
from tests.helpers import word_tokenizer


# The last has flat and peaked rows together.
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 10.0, torch.linspace(0.3, 10, 10)[:, None]],
                         ids=["none", "1", "3", "10", "by row"])  # fmt: skip
@pytest.mark.parametrize("vocab_size", [5000, 80_000], ids=["one block", "three rows a block"])
@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.95}, {"top_p": 0.3, "min_p": 0.02}, {"top_p": 0.95, "top_k": 40}, {"top_p": 1.0}],
    ids=str,
)
def test_a_token_is_drawn_as_from_the_sorted_vocabulary(spread, settings, vocab_size):
    config = ThinkingConfig(policy="discrete", temperature=0.8, think_end=(), **settings)
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(10, vocab_size, generator=generator)
    noise = torch.empty(10, 1).exponential_(generator=generator)
    phases = ThinkingPhases(Markers((), word_tokenizer()), config)
    numbers = np.array([phases.begin() for _ in range(10)])
    found, is_soft = advance(logits, noise, config, phases, numbers)
    wanted = draw_step(logits, config, noise=noise)
    if torch.as_tensor(
        spread
    ).any():  # without, all columns tie, and which of them come first is topk's business
        assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.entropy, wanted.entropy, rtol=1e-4, atol=1e-4)
    assert found.support.all() and not is_soft.any()
