"""What VLLMEngine hands to its workers, without vLLM."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softgrpo.rollout.vllm_engine import OWN_DEVICE, VLLMEngine, _one_of_several, in_parts


class Workers:
    """An LLM whose calls to its workers are pickled, as vLLM does where they are processes."""

    def __init__(self, backend):
        parallel = SimpleNamespace(distributed_executor_backend=backend)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
        self.calls = []

    def collective_rpc(self, method, args=()):
        self.calls.append((method, *pickle.loads(pickle.dumps(args))))

    def reset_prefix_cache(self):
        self.calls.append(("reset_prefix_cache",))


@pytest.mark.parametrize("backend", ["uni", "mp", OWN_DEVICE])
def test_weights_are_sent_as_what_can_be_pickled_a_part_at_a_time(backend):
    engine = object.__new__(VLLMEngine)
    engine._source = nn.Sequential(*(nn.Linear(5, 9) for _ in range(12)))
    engine.llm, engine._sleeps = Workers(backend), False
    engine.sync(max_bytes=1000)
    methods = [call[0] for call in engine.llm.calls]
    assert methods[0] == "begin_weights" and methods[-2:] == ["end_weights", "reset_prefix_cache"]
    parts = [call[1] for call in engine.llm.calls[1:-2]]
    assert set(methods[1:-2]) == {"take_weights"} and len(parts) > 1
    arrived = [weight for part in parts for weight in part]
    for (name, sent), (found, weight) in zip(
        engine._source.named_parameters(), arrived, strict=True
    ):
        assert name == found and torch.equal(sent, weight)


def test_several_devices_an_engine_are_refused_where_several_processes_train(monkeypatch):
    monkeypatch.setattr("softgrpo.rollout.vllm_engine.num_processes", lambda: 2)
    with pytest.raises(ValueError, match="tensor_parallel_size=2: each of the 2 processes"):
        _one_of_several({"tensor_parallel_size": 2})


def test_a_part_has_no_more_bytes_than_asked_unless_it_is_one_weight():
    sizes = [10, 60, 30, 200, 1, 2, 99, 100]
    weights = [(str(i), torch.zeros(size, dtype=torch.uint8)) for i, size in enumerate(sizes)]
    parts = list(in_parts(iter(weights), 100))
    assert [[weight.nbytes for _, weight in part] for part in parts] == [
        [10, 60, 30], [200], [1, 2], [99], [100],
    ]  # fmt: skip
    assert [name for part in parts for name, _ in part] == [name for name, _ in weights]
    assert list(in_parts(iter([]), 100)) == []
