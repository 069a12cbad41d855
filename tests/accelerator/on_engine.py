"""Rollouts on an accelerator are the CPU's: every model, every ending, places taken again."""

from __future__ import annotations

import pytest
import torch

from softgrpo.evaluation import RecordFile, Sampling, deal, read_records, sample
from softgrpo.rewards import Judgement
from softgrpo.rollout import NonFiniteLogitsError, TransformersEngine
from softgrpo.tasks import Problem
from softgrpo.thinking import Objective
from tests.accelerator.pretend import DEVICE
from tests.helpers import MODELS, POLICY_DENSITIES, PROMPTS, thinking, tiny_model, word_tokenizer

START = [5 + i % 20 for i in range(18)]
# GPT-J knows no sdpa.
MODELS_ATTENDING = [(name, "eager") for name in MODELS]
MODELS_ATTENDING += [(name, "sdpa") for name in MODELS if name != "bias_gptj"]
# Mixed lengths, and beginnings that all share.
WORKLOADS = {
    "mixed": [[3], [4, 5, 6], [7], list(range(3, 28)), [9, 10], [11, 12, 13, 14, 15, 16, 17]],
    "shared": [[*START, 3], [*START, 4, 5, 6], [*START, 7], [*START, *START, 8], [*START, 9]],
}
LIMITS = {"mixed": [12, 2, 9, 6, 15, 1], "shared": [9, 14, 3, 1, 12]}
ENDINGS = {
    "marker": {},
    "budget": {"max_think_tokens": 3, "think_end": ("s t",)},
    "cold_stop": {"cold_stop_entropy": 99.0, "cold_stop_steps": 4},
}


def _engines(name="tied", attention="sdpa", **options):
    """One on the CPU and one on the device, with the same weights."""
    models = tiny_model(name, attention=attention), tiny_model(name, attention=attention).to(DEVICE)
    return [TransformersEngine(model, word_tokenizer(), **options) for model in models]


def _assert_same(config, *, workload="mixed", objective=None, generations=1, **options):
    """The device's rollouts, which are the CPU's; more sequences than places."""
    engines = _engines(**({"max_batch_size": 4} | options))
    wanted, found = (
        engine.generate(
            WORKLOADS[workload], config, max_new_tokens=LIMITS[workload], seed=5,
            num_generations=generations, objective=objective,
        )
        for engine in engines
    )  # fmt: skip
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.text == theirs.text
        assert ours.finish_reason == theirs.finish_reason
        assert ours.thinking_ended_by == theirs.thinking_ended_by
        assert (ours.logps is None) == (theirs.logps is None) == (objective is None)
        torch.testing.assert_close(ours.logps, theirs.logps, rtol=1e-4, atol=1e-4)
        for key, value in theirs.trace.tensors().items():
            torch.testing.assert_close(ours.trace.tensors()[key], value, rtol=1e-4, atol=1e-4)
    return found


@pytest.mark.parametrize(("name", "attention"), MODELS_ATTENDING)
def test_every_model(name, attention):
    config = thinking(max_think_tokens=6)
    objective = Objective(config, "gumbel")
    _assert_same(config, name=name, attention=attention, objective=objective)


@pytest.mark.parametrize(("policy", "density", "reduction"), POLICY_DENSITIES)
def test_every_policy_and_density(policy, density, reduction):
    config = thinking(policy)
    objective = None if density == "none" else Objective(config, density, reduction)
    _assert_same(config, objective=objective)


@pytest.mark.parametrize("options", [{"max_batch_size": 1}, {"max_batch_size": 3},
                                     {"max_batch_size": 3, "attention": "eager"},
                                     {"max_batch_tokens": 200}], ids=str)  # fmt: skip
@pytest.mark.parametrize("workload", WORKLOADS)
def test_places_that_are_taken_again(workload, options):
    _assert_same(thinking(), workload=workload, generations=2, **options)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending(ending):
    found = _assert_same(thinking(answer_top_p=0.9, **ENDINGS[ending]), generations=2)
    assert ending in {r.thinking_ended_by for r in found}
    assert {r.finish_reason for r in found} == {"stop", "length"}


def test_streamed_steps():
    config = thinking(max_think_tokens=4)
    here, there = (list(e.stream(PROMPTS[1], config, max_new_tokens=12)) for e in _engines())
    for ours, theirs in zip(there, here, strict=True):
        assert ours.weights == pytest.approx(theirs.weights, abs=1e-5)
        for name in ("token", "ids", "is_soft", "is_forced"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert {step.is_soft for step in there} == {True, False}


def test_a_copy_in_bfloat16_that_is_synced():
    engines = _engines(attention="eager", dtype=torch.bfloat16)
    rollouts = []
    for engine in engines:
        with torch.no_grad():
            for p in engine._source.parameters():
                p.mul_(-1.5)
        engine.sync()
        assert engine.model.dtype == torch.bfloat16
        rollouts.append(engine.generate(PROMPTS, thinking(), max_new_tokens=8, seed=3))
    assert [r.token_ids for r in rollouts[1]] == [r.token_ids for r in rollouts[0]]


def test_not_a_number_is_named():
    engine = _engines()[1]
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLogitsError, match="generated step 1"):
        engine.generate(PROMPTS, thinking(), max_new_tokens=4)


def test_an_evaluation(tmp_path):
    problems = [Problem(str(i), "?", "a") for i in range(len(PROMPTS))]
    records = []
    sampling = Sampling(
        problems, PROMPTS, thinking(max_think_tokens=4), num_samples=4, max_new_tokens=10, seed=5,
        judge=lambda problem, text: Judgement(problem.answer in text, text), batch_size=8,
    )  # fmt: skip
    for i, engine in enumerate(_engines()):
        with RecordFile(tmp_path / f"{i}.jsonl", {}) as file:
            sample(engine, sampling, deal(sampling, ())[0], (), file.append)
        records.append({r.key: r for r in read_records(file.path)[1]})
    assert records[1] == records[0] and len(records[0]) == 12
