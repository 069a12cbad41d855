"""How often a decoding step waits for the device: a few times, whatever the mixture of phases."""

from __future__ import annotations

import pytest
import torch

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.batch import DecodingBatch
from softgrpo.thinking import Objective
from tests.accelerator import pretend
from tests.accelerator.pretend import DEVICE
from tests.helpers import PROMPTS, VOCAB_SIZE, thinking, tiny_model, word_tokenizer

# One upload, one download, and one more where sequences end.
MAX_WAITS_A_STEP = 3

MIXED = {"max_think_tokens": 5, "cold_stop_entropy": 1.25, "cold_stop_steps": 1,
         "think_end": ("s t", "</t>", "a")}  # fmt: skip
WORKLOADS = {
    "thinking": {"think_end": ()},
    "answering": {"max_think_tokens": 1},
    "mixed": MIXED,
    "mixed, nucleus": MIXED | {"answer_top_p": 0.8, "answer_temperature": 0.3},
    "mixed, top-k and min-p": MIXED | {"answer_top_k": 5, "answer_min_p": 0.05},
}
DENSITIES = {"gumbel": "gumbel", "dirichlet": "dirichlet", "gaussian": "gaussian",
             "embedding_gaussian": "embedding_gaussian", "discrete": "token"}  # fmt: skip


@pytest.fixture
def steps(monkeypatch):
    """Counts of every step but the first, in which the prompts are prefilled.

    A step begins where the one before it was handed out: what is done about sequences that ended
    there is counted here.
    """
    counted: list[pretend.Counts] = []
    original = DecodingBatch.run

    def run(batch, *args, **kwargs):
        made = original(batch, *args, **kwargs)
        yield next(made)
        while True:
            with pretend.counting() as counts:
                step = next(made, None)
            counted.append(counts)
            if step is None:
                return
            yield step

    monkeypatch.setattr(DecodingBatch, "run", run)
    return counted


def _generate(config, objective=None, attention="sdpa"):
    """Twelve sequences that begin together and end apart, some by themselves."""
    model = tiny_model(attention=attention)
    # A nucleus is first looked for in a part of this vocabulary. What is added is all alike.
    model.resize_token_embeddings(300, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCAB_SIZE:] = 0
    engine = TransformersEngine(model.to(DEVICE), word_tokenizer())
    return engine.generate(
        PROMPTS, config, max_new_tokens=[24, 9, 17], num_generations=4, seed=2, objective=objective
    )


def _assert_few(steps: list[pretend.Counts], rollouts: list, most: int = MAX_WAITS_A_STEP) -> None:
    assert len(steps) == max(len(r.token_ids) for r in rollouts)
    worst = max(steps, key=lambda counts: counts.waits.total())
    waits = worst.waits.total()
    assert waits <= most, f"{waits} waits in a step: {worst.waits.most_common()}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_step_waits_a_few_times(workload, attention, steps):
    rollouts = _generate(thinking(**WORKLOADS[workload]), attention=attention)
    if "mixed" in workload:
        ended_by = {r.thinking_ended_by for r in rollouts}
        assert ended_by >= {"marker", "budget", "cold_stop"}
        assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    _assert_few(steps, rollouts)


@pytest.mark.parametrize("config", [{"think_end": ()}, {"max_think_tokens": 1}], ids=str)
def test_a_step_in_which_nothing_happens_is_read_and_sends_nothing(config, steps):
    """Something happens where sequences end, and once where the cache moves its columns."""
    rollouts = _generate(thinking(**config))
    ends = {len(r.token_ids) for r in rollouts}
    started = list(enumerate(steps, start=1))[2:]  # with the first two steps their thinking ends
    busy = [counts for step, counts in started if counts.uploads or step in ends]
    quiet = [counts for step, counts in started if not counts.uploads and step not in ends]
    assert len(busy) <= len(ends) + 1 < len(quiet)
    assert all(counts.waits.total() == 1 for counts in quiet)


def test_a_nucleus_too_wide_to_be_found_at_once_costs_two_more(steps):
    """Whether it was found comes with the step; the rows where it was not are drawn again."""
    rollouts = _generate(thinking(max_think_tokens=1, answer_top_p=0.8, answer_temperature=2.0))
    _assert_few(steps, rollouts, MAX_WAITS_A_STEP + 2)
    assert max(counts.waits.total() for counts in steps) > MAX_WAITS_A_STEP


@pytest.mark.parametrize("policy", DENSITIES)
def test_a_step_with_log_densities_waits_no_more(policy, steps):
    config = thinking(policy, **MIXED)
    rollouts = _generate(config, Objective(config, DENSITIES[policy]))
    _assert_few(steps, rollouts)
