"""vLLM's own sleep, as the engine uses it. A CPU's worker does not really sleep; all else does."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import thinking
from tests.vllm.engines import make_model, running_engine

EVERYTHING = {"weights", "kv_cache"}
_NEEDS = {"execute_model": EVERYTHING, "take_weights": {"weights"}}


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """One that sleeps, over workers that refuse what needs what is asleep."""
    from vllm.platforms import current_platform
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    ask = UniProcExecutor.collective_rpc

    def refuse(self, method, *args, **kwargs):
        assert not self.sleeping_tags & _NEEDS.get(method, set()), f"{method} while asleep"
        return ask(self, method, *args, **kwargs)

    if current_platform.is_cpu():
        monkeypatch.setattr(type(current_platform), "is_sleep_mode_available", lambda self: True)
    monkeypatch.setattr(UniProcExecutor, "collective_rpc", refuse)
    with running_engine(tmp_path, source=make_model(tmp_path, tied=True)) as engine:
        yield engine


def _generate(engine, **options):
    options = {"max_new_tokens": 8, "num_generations": 2, "seed": 1} | options
    rollouts = engine.generate([[3, 4], [5, 6, 7]], thinking(), **options)
    return [rollout.token_ids for rollout in rollouts]


def test_it_sleeps_but_while_it_loads_and_generates(engine):
    executor = engine.llm.llm_engine.model_executor
    assert executor.sleeping_tags == EVERYTHING  # from the start
    first = _generate(engine)
    assert executor.sleeping_tags == EVERYTHING
    assert _generate(engine) == first

    with torch.no_grad():
        for parameter in engine._source.parameters():
            parameter.mul_(0.5)
    engine.sync(max_bytes=10_000)
    assert executor.sleeping_tags == EVERYTHING
    second = _generate(engine)
    assert second != first and _generate(engine) == second


def test_it_sleeps_after_a_generation_that_failed_and_generates_again(engine):
    executor = engine.llm.llm_engine.model_executor
    wanted = _generate(engine)

    def stop(place, rollout):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _generate(engine, on_finished=stop)
    assert executor.sleeping_tags == EVERYTHING
    assert _generate(engine) == wanted
    assert set(engine.llm.llm_engine.model_executor.collective_rpc("num_thoughts")) == {0}


def test_it_sleeps_after_a_load_that_failed(engine, monkeypatch):
    executor = engine.llm.llm_engine.model_executor
    worker = executor.driver_worker.worker
    monkeypatch.setattr(type(worker), "end_weights", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.sync()
    assert executor.sleeping_tags == EVERYTHING
