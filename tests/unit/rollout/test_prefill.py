"""Prompts before the first step, however many of their tokens are computed at a time."""

from __future__ import annotations

import pytest
import torch

from softgrpo.rollout.prefill import Prefill
from tests.helpers import MODELS, tiny_model

_START = [5 + i % 20 for i in range(18)]
_PROMPTS = {
    "mixed": [(3,), (4, 5, 6), tuple(range(3, 28)), (9, 10), tuple(range(11, 18))],
    "shared": [(*_START, 3), (*_START, 4, 5, 6), (*_START, *_START, 8)],
}


@torch.no_grad()
def _prefilled(name, kind, **options):
    model, prompts = tiny_model(name), _PROMPTS[kind]
    rows = []
    model.base_model.register_forward_hook(lambda *call: rows.append(call[-1][0].shape[:2]))
    prefill = Prefill(model, prompts, **options)
    if kind == "shared":
        prefill.share_beginning()
    prefill.compute(prompts)
    return rows, [prefill.take(prompt, 1) for prompt in prompts]


@pytest.mark.parametrize("max_tokens", [1, 7, 40])
@pytest.mark.parametrize("kind", _PROMPTS)
@pytest.mark.parametrize("name", MODELS)
def test_in_parts_it_is_the_same(name, kind, max_tokens):
    once, whole = _prefilled(name, kind)
    often, parts = _prefilled(name, kind, max_tokens=max_tokens)
    assert len(often) > len(once)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-3, atol=1e-4)
        for part, wanted in zip(a.states, b.states, strict=True):
            torch.testing.assert_close(part, wanted, rtol=1e-3, atol=1e-4)
