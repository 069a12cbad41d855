"""Places that become free are taken, and no sequence notices."""

from __future__ import annotations

import pytest
import torch

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.cache import SlotLayer
from softgrpo.thinking import Objective
from tests.helpers import (
    MODELS,
    replay_rollouts,
    roll_out,
    thinking,
    tiny_model,
    word_tokenizer,
)

START = [5 + i % 20 for i in range(18)]
# Mixed lengths, one much longer than the first ones, and beginnings that all share.
WORKLOADS = {
    "mixed": [[3], [4, 5, 6], [7], list(range(3, 28)), [9, 10], [11, 12, 13, 14, 15, 16, 17]],
    "shared": [[*START, 3], [*START, 4, 5, 6], [*START, 7], [*START, *START, 8], [*START, 9]],
}
LIMITS = {"mixed": [30, 2, 17, 9, 40, 1], "shared": [12, 25, 3, 1, 30]}
NO_END = {"eos_token_ids": ()}


def _facts(rollouts):
    return [(r.token_ids, r.finish_reason, r.thinking_ended_by, r.prompt_ids) for r in rollouts]


def _generate(model, name, config=None, objective=None, generations=3, **options):
    engine = TransformersEngine(model, word_tokenizer(), **options)
    return engine.generate(
        WORKLOADS[name], config or thinking(), max_new_tokens=LIMITS[name], seed=5,
        num_generations=generations, objective=objective,
    )  # fmt: skip


def _count_forwards(model):
    lengths = []
    model.base_model.register_forward_hook(
        lambda *_: lengths.append(_[2].last_hidden_state.shape[:2])
    )
    return lengths


@pytest.mark.parametrize("ends", [{}, NO_END], ids=["eos", "limits"])
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("options", [{"max_batch_size": 2}, {"max_batch_size": 5},
                                     {"max_batch_tokens": 260}], ids=str)  # fmt: skip
def test_however_few_run_at_a_time_the_rollouts_are_the_same(name, options, ends):
    alone = _generate(tiny_model(), name, max_batch_size=1, **ends)
    together = _generate(tiny_model(), name, **options, **ends)
    assert _facts(together) == _facts(alone)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.trace.scores, b.trace.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_replayed_is_what_was_drawn(name, workload):
    model, config = tiny_model(name), thinking(max_think_tokens=6)
    objective = Objective(config, "gumbel")
    rollouts = _generate(model, workload, config, objective, max_batch_size=7)
    with torch.no_grad():
        replayed, drawn, mask = replay_rollouts(model, rollouts, config, objective)
    assert (replayed.logps - drawn).abs()[mask].max() < 1e-4


def test_the_batch_stays_full():
    """18 sequences of 1 to 40 steps, 6 at a time: a third of the steps of three batches in turn."""
    model = tiny_model()
    forwards = _count_forwards(model)
    _generate(model, "mixed", max_batch_size=6, **NO_END)
    steps = [rows for rows, length in forwards if length == 1]
    assert sum(steps) <= 3 * (sum(LIMITS["mixed"]) - len(LIMITS["mixed"])) + 3
    assert len(steps) < 3 * 40 - 20


def test_every_prompt_is_prefilled_once_whatever_the_batch():
    model = tiny_model()
    forwards = _count_forwards(model)
    _generate(model, "mixed", generations=4, max_batch_size=3, **NO_END)
    assert sum(rows for rows, length in forwards if length > 1) <= len(WORKLOADS["mixed"])


def test_the_same_call_gives_the_same_bits():
    model = tiny_model()
    first, again = (_generate(model, "mixed", max_batch_size=4) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.trace.scores, b.trace.scores) and a.token_ids == b.token_ids


def test_every_sequence_has_its_own_limit():
    rollouts = _generate(tiny_model(), "mixed", **NO_END)
    assert [len(r.token_ids) for r in rollouts] == [n for n in LIMITS["mixed"] for _ in range(3)]
    assert all(r.finish_reason == "length" for r in rollouts)


@pytest.mark.parametrize("budget", [44, 130, 260, 10_000])
def test_the_cache_is_as_large_as_allowed(budget, monkeypatch):
    positions = []
    original = SlotLayer.allocate

    def allocate(layer, *states):
        original(layer, *states)
        positions.append(layer.buffers[0].shape[0] * layer.buffers[0].shape[2])

    monkeypatch.setattr(SlotLayer, "allocate", allocate)
    _generate(tiny_model(), "mixed", max_batch_tokens=budget, generations=8)
    assert max(positions) <= budget


def test_a_sequence_that_cannot_fit_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="max_batch_tokens=41 cannot hold one sequence of 42"):
        _generate(tiny_model(), "mixed", max_batch_tokens=41)


def test_as_many_limits_as_prompts():
    with pytest.raises(ValueError, match="2 limits for 3 prompts"):
        roll_out(tiny_model(), thinking(), max_new_tokens=[3, 4])
