"""What must stay float32 when a model is trained in bfloat16.

FSDP2 is put on by accelerate's own function with accelerate's own policy, but on CPUs with gloo,
where accelerate itself does not offer it.
"""

from __future__ import annotations

import json

import pytest
import torch

from softgrpo.replay import add_replay
from softgrpo.thinking import Objective, SoftTrace
from tests.helpers import batch_of, gradients, roll_out, run_processes, thinking, tiny_model

pytestmark = pytest.mark.alone

# Model, policy, and whether prompts are shared.
SHARDED = [
    ("tied", "gumbel", "shared"),
    ("untied", "gumbel", "shared"),
    ("tied", "gumbel", "padded"),
    ("untied", "embedding_gaussian", "padded"),
]
SHARD = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
from types import MethodType, SimpleNamespace
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import convert_outputs_to_fp32
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from softgrpo.replay import add_replay, forward
from softgrpo.thinking import Objective, SoftTrace
from softgrpo.training.rounding import keep_results
from tests.helpers import thinking, tiny_model
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
seen, replay = [], forward.replay
forward.replay = lambda *args: seen.append(args[3]) or replay(*args)
for name, policy, layout in json.loads(sys.argv[1]):
    folder = Path(sys.argv[2]) / f"{name}-{policy}-{layout}"
    config = thinking(policy)
    model = tiny_model(name, attention="sdpa")
    add_replay(model, Objective(config, policy, "sum"), layout == "shared")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    plugin.set_mixed_precision("bf16")
    keep_results(plugin)
    # As Accelerator.prepare_model does.
    computed = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(computed), model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), torch_device_mesh=mesh, mixed_precision="bf16",
        parallelism_config=SimpleNamespace(fsdp_dim_names=("shard",)), is_main_process=rank == 0,
        device=torch.device("cpu"),
    )
    model = fsdp2_prepare_model(accelerator, model)
    batch = torch.load(folder / "batch.pt")
    mine = slice(4 * rank, 4 * rank + 4)
    trace = SoftTrace.load(folder / "trace.safetensors")[mine]
    seen.clear()
    out = model(input_ids=batch["ids"][mine], attention_mask=batch["mask"][mine], trace=trace)
    (out["logps"] * batch["upstream"][mine]).sum().backward()
    seen[0].save(folder / f"replayed_{rank}.safetensors")
    found = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    torch.save({"out": out, "gradients": found}, folder / f"out_{rank}.pt")
dist.destroy_process_group()
"""


def _record(name, policy, layout, folder):
    """Eight sequences for the processes, and the whole model's answer in float32."""
    model, config = tiny_model(name, attention="sdpa"), thinking(policy)
    rollouts = roll_out(model, config, prompts=[[3, 4], [5]], num_generations=4)
    ids, mask, trace, _ = batch_of(rollouts)
    upstream = torch.randn(8, trace.num_steps)
    folder.mkdir()
    torch.save({"ids": ids, "mask": mask, "upstream": upstream}, folder / "batch.pt")
    trace.save(folder / "trace.safetensors")
    add_replay(model, Objective(config, policy, "sum"), layout == "shared")
    logps = model(input_ids=ids, attention_mask=mask, trace=trace)["logps"]
    (logps * upstream).sum().div(2).backward()  # FSDP means over the two processes
    return gradients(model) | {"logps": logps.detach()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """One launch for all cases; what the whole model found in each."""
    folder = tmp_path_factory.mktemp("fsdp")
    wanted = {case: _record(*case, folder / "-".join(case)) for case in SHARDED}
    run_processes(SHARD, json.dumps(SHARDED), str(folder), processes=2, timeout=120)
    return folder, wanted


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", SHARDED, ids="-".join)
def test_the_scores_that_are_replayed_are_those_that_were_recorded(case, rank, sharded):
    folder = sharded[0] / "-".join(case)
    recorded = SoftTrace.load(folder / "trace.safetensors")[4 * rank : 4 * rank + 4].tensors()
    replayed = SoftTrace.load(folder / f"replayed_{rank}.safetensors").tensors()
    assert recorded.keys() == replayed.keys()
    for name, value in recorded.items():
        assert value.dtype == replayed[name].dtype and torch.equal(value, replayed[name]), name


@pytest.mark.parametrize("case", SHARDED, ids="-".join)
def test_log_densities_and_entropies_are_not_rounded(case, sharded):
    folder, wanted = sharded
    parts = [torch.load(folder / "-".join(case) / f"out_{rank}.pt") for rank in (0, 1)]
    for name in ("logps", "entropies"):
        values = torch.cat([part["out"][name] for part in parts]).detach()
        values = values[values != 0]
        assert values.dtype == torch.float32 and len(values)
        # A value rounded to bfloat16 is its own rounding.
        assert (values.bfloat16() != values).float().mean() > 0.9
    found = torch.cat([part["out"]["logps"] for part in parts])
    assert (found - wanted[case]["logps"]).abs().max() < 0.2  # the arithmetic is bfloat16's


@pytest.mark.parametrize("case", SHARDED, ids="-".join)
def test_gradients_are_those_of_the_whole_model_to_bfloat16(case, sharded):
    folder, wanted = sharded
    found = torch.load(folder / "-".join(case) / "out_0.pt")["gradients"]
    for name, gradient in found.items():
        whole = wanted[case][name]
        assert (gradient - whole).norm() < 0.1 * whole.norm(), name
