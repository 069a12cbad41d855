"""An engine of a model in training sleeps but while it loads and generates; without vLLM."""

from __future__ import annotations

import pytest
from torch import nn

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_engine import VLLMEngine
from tests.helpers import SleepingLLM, thinking

REQUESTS = [Request((3,), thinking(), 4), Request((4, 5), thinking(), 4)]


@pytest.fixture
def engine(monkeypatch):
    engine = object.__new__(VLLMEngine)
    engine.llm, engine._sleeps = SleepingLLM(), True
    engine._source = nn.Sequential(*(nn.Linear(5, 9) for _ in range(3)))
    engine.max_model_len, engine.vocab_size, engine._num_requests = None, 40, 0
    engine.tokenizer = None
    monkeypatch.setattr("softgrpo.rollout.vllm_engine.Markers", lambda *_: None)
    monkeypatch.setattr(VLLMEngine, "_parameters", lambda self, request: None)
    monkeypatch.setattr("softgrpo.rollout.vllm_engine.read_rollout", lambda output, *_: output)
    return engine


def _generate(engine, requests=REQUESTS):
    finished = {}
    engine.run(requests, finished.__setitem__)
    assert sorted(finished) == list(range(len(requests)))


def test_it_wakes_what_it_needs_and_sleeps_again(engine):
    engine.sync(max_bytes=200)
    _generate(engine)
    calls = engine.llm.calls
    assert engine.llm.asleep == {"weights", "kv_cache"}
    loads = ["begin_weights", *["take_weights"] * calls.count("take_weights"), "end_weights"]
    assert calls == [
        "wake weights", *loads, "reset_prefix_cache", "sleep 1",
        "wake weights", "wake kv_cache", "add", "add", "step", "step", "step", "sleep 1",
    ]  # fmt: skip
    assert calls.count("take_weights") > 1


def test_it_generates_as_often_as_it_is_asked_to_without_new_weights(engine):
    for requests in (REQUESTS, REQUESTS[:1], []):
        _generate(engine, requests)
        assert engine.llm.asleep == {"weights", "kv_cache"}


@pytest.mark.parametrize("fails", ["wake weights", "begin_weights", "take_weights", "end_weights"])
def test_it_sleeps_after_a_load_that_failed(engine, fails):
    engine.llm.fails = fails
    with pytest.raises(MemoryError, match=fails):
        engine.sync(max_bytes=200)
    assert engine.llm.asleep == {"weights", "kv_cache"}


@pytest.mark.parametrize("fails", ["wake weights", "wake kv_cache", "add", "step", "on_finished"])
def test_it_sleeps_after_a_generation_that_failed(engine, fails):
    def on_finished(place, rollout):
        raise MemoryError(fails)

    engine.llm.fails = fails
    with pytest.raises(MemoryError, match=fails):
        engine.run(REQUESTS, on_finished)
    assert engine.llm.asleep == {"weights", "kv_cache"}
    _generate(engine)


def test_a_request_that_is_refused_wakes_nothing(engine):
    with pytest.raises(ValueError, match="no tokens"):
        engine.run([Request((), thinking(), 4)], print)
    assert engine.llm.calls == []


def test_one_that_does_not_sleep_is_never_told_to(engine):
    engine._sleeps, engine.llm.asleep = False, set()
    engine.sync()
    _generate(engine)
    assert not [call for call in engine.llm.calls if call.startswith(("wake", "sleep"))]


@pytest.mark.parametrize("method", ["load", "generate"])
def test_the_stand_in_refuses_what_a_sleeping_vllm_would(engine, method):
    """Else the tests above would pass with nothing of it awake."""
    engine._sleeps = False
    with pytest.raises(AssertionError, match="asleep"):
        engine.sync() if method == "load" else _generate(engine)
