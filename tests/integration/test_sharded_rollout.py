"""Rollouts of a sharded model: each process decodes on its own, from a copy in one piece."""

from __future__ import annotations

import pytest
import torch

from softgrpo.rollout import TransformersEngine
from softgrpo.thinking import SoftTrace
from tests.helpers import run_processes, thinking, tiny_model, word_tokenizer

pytestmark = pytest.mark.alone

# Limits apart: a process that needed the other's shards at every step would wait for ever.
LIMITS = (4, 9)
ROLL = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from softgrpo.rollout import TransformersEngine
from softgrpo.thinking import SoftTrace
from tests.helpers import thinking, tiny_model, word_tokenizer
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
rank = dist.get_rank()
model = tiny_model("tied")
engine = TransformersEngine(model, word_tokenizer(), dtype=torch.float32)
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(0.9)
engine.sync()
limit = int(sys.argv[2 + rank])
rollouts = engine.generate([[3, 4], [5]], thinking(), max_new_tokens=limit, num_generations=2)
SoftTrace.cat([r.trace for r in rollouts]).save(Path(sys.argv[1]) / f"{rank}.safetensors")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    run_processes(ROLL, str(folder), *map(str, LIMITS), processes=2, timeout=60)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_draws_what_the_whole_model_draws(rank, folder):
    """The copy has the sharded model's weights of after the update, not those it was made with."""
    model = tiny_model("tied")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    engine = TransformersEngine(model, word_tokenizer())
    rollouts = engine.generate(
        [[3, 4], [5]], thinking(), max_new_tokens=LIMITS[rank], num_generations=2
    )
    wanted = SoftTrace.cat([rollout.trace for rollout in rollouts])
    found = SoftTrace.load(folder / f"{rank}.safetensors")
    assert torch.equal(found.ids, wanted.ids)
    assert (found.scores - wanted.scores).abs().max() < 1e-5
