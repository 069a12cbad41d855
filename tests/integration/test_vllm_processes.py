"""Weights of a sharded model taken over by the vLLM engines of two processes, of which one fails.

vLLM is a stand-in here; tests/vllm has the real one.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers import parameters, run_processes, tiny_model

pytestmark = pytest.mark.alone

SYNC = """
import sys, torch
import torch.distributed as dist
from accelerate import PartialState
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from softgrpo.rollout.vllm_engine import VLLMEngine
from softgrpo.together import together
from tests.helpers import SleepingLLM, tiny_model

class Receiving(SleepingLLM):
    def collective_rpc(self, method, args=()):
        if method == "begin_weights":
            self.received = {}
        super().collective_rpc(method, args)
        for part in args:
            self.received |= dict(part)

def sync():
    raised = None
    try:
        with together():
            engine.sync(max_bytes=2000)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    return raised, engine.llm.asleep

torch.set_num_threads(1)
PartialState(cpu=True)
rank = dist.get_rank()
model = tiny_model("tied")
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
engine = object.__new__(VLLMEngine)
engine._source, engine.llm, engine._sleeps = model, Receiving(), True
found = {}
for fails in ("wake weights", "begin_weights", "take_weights", "end_weights"):
    engine.llm.fails = fails if rank == 1 else None
    found[fails] = sync()
found["nothing"] = sync()
torch.save((found, engine.llm.received), Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync")
    run_processes(SYNC, str(folder), processes=2, timeout=120)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("fails", ["wake weights", "begin_weights", "take_weights", "end_weights"])
def test_a_load_that_fails_in_one_process_is_raised_in_both(fails, results):
    asleep = {"weights", "kv_cache"}
    for found, _ in results:
        assert found[fails] == (f"MemoryError: {fails}", asleep)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_next_load_is_whole(rank, results):
    found, received = results[rank]
    assert found["nothing"][0] is None
    wanted = parameters(tiny_model("tied"))
    assert received.keys() == wanted.keys()
    assert all(torch.equal(received[name], weight) for name, weight in wanted.items())
