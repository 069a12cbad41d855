"""The support: top-k, then the nucleus of those, then min-p, renormalised; row by row in Python."""

from __future__ import annotations

import pytest
import torch

from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.support import by_columns, select_support


def _by_hand(logits, temperature, top_k, top_p, min_p):
    """{id: probability} of one row, by the sentence of algorithm.md."""
    probs = torch.softmax(logits / temperature, -1)
    kept = torch.argsort(probs, descending=True)[:top_k].tolist()
    total, nucleus, running = sum(probs[i].item() for i in kept), [], 0.0
    for i in kept:
        if running > top_p:
            break
        nucleus.append(i)  # the token that crosses top_p stays
        running += probs[i].item() / total
    kept = [i for i in nucleus if probs[i] >= min_p * probs[nucleus[0]]]
    total = sum(probs[i].item() for i in kept)
    return {i: probs[i].item() / total for i in kept}


@pytest.mark.parametrize("temperature", [0.6, 1.7])
@pytest.mark.parametrize("top_k", [1, 5, 40])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_the_support_is_the_one_made_by_hand(temperature, top_k, top_p, min_p):
    logits = torch.randn(20, 40, dtype=torch.float64) * 2
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    support = select_support(logits, ThinkingConfig(**settings))
    for i, row in enumerate(logits):
        wanted = _by_hand(row, **settings)
        ids = support.ids[i][support.mask[i]].tolist()
        assert ids == list(wanted)
        assert support.probs[i][support.mask[i]].tolist() == pytest.approx(list(wanted.values()))
    assert (support.probs[~support.mask] == 0).all()


def test_settings_by_row_are_the_rows_settings():
    logits = torch.randn(3, 20)
    rows = {
        "temperature": torch.tensor([0.5, 1.0, 2.0]), "top_k": torch.tensor([2, 7, 4]),
        "top_p": torch.tensor([0.9, 0.5, 1.0]), "min_p": torch.tensor([0.0, 0.1, 0.3]),
    }  # fmt: skip
    together = select_support(logits, by_columns(ThinkingConfig(**rows), logits))
    for i in range(3):
        alone = select_support(
            logits[i : i + 1], ThinkingConfig(**{k: v[i].item() for k, v in rows.items()})
        )
        width = alone.ids.shape[1]
        torch.testing.assert_close(together.probs[i, :width], alone.probs[0])
        assert not together.mask[i, width:].any()


def test_no_setting_empties_a_support():
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    support = select_support(logits, ThinkingConfig(top_k=3, top_p=1e-6, min_p=0.99))
    assert (support.mask.sum(-1) >= 1).all()
    torch.testing.assert_close(support.probs.sum(-1), torch.ones(2))


def test_half_precision_logits_give_the_float32_support():
    logits = torch.randn(4, 30).bfloat16()
    config = ThinkingConfig()
    half, single = select_support(logits, config), select_support(logits.float(), config)
    torch.testing.assert_close(half.probs, single.probs)
