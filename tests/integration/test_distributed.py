"""Two processes are one process on the same global batch: DDP through accelerate, and FSDP2.

accelerate offers FSDP2 on accelerators only, so here torch's own fully_shard is put on the model
with the replay forward.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig

from softgrpo.replay import add_replay
from softgrpo.thinking import Objective
from tests.helpers import (
    assert_same,
    batch_of,
    gradients,
    make_trainer,
    parameters,
    roll_out,
    run_processes,
    thinking,
    tiny_model,
    train_config,
)

pytestmark = pytest.mark.alone

# name -> settings. Eight sequences of two prompts a step, whoever computes them. Ours among the
# settings: "model", "lora" (the modules with adapters), "accumulate" (micro-batches an update).
CASES: dict[str, dict[str, Any]] = {
    "soft": {},  # the defaults: the authors' density
    "kl": {"density": "concrete", "loss_type": "grpo", "beta": 0.1, "num_iterations": 2},
    "discrete": {"policy": "discrete", "top_k": None},
    "budget": {"reduction": "sum", "max_think_tokens": 3},
    "passes": {"loss_type": "grpo", "train_batch_tokens": 20},
    "bf16": {"bf16": True, "rollout_dtype": "float32", "max_steps": 1},
    "passes, kl": {"train_batch_tokens": 16, "beta": 0.1, "num_iterations": 2},
}
_CHECKPOINTED = {"model": "untied", "gradient_checkpointing": True}
_REENTRANT = _CHECKPOINTED | {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
_LORA = {"lora": ["q_proj", "v_proj"]}
# The embedding is no output head: it has no gradient for DDP to wait for.
UNTIED: dict[str, dict[str, Any]] = {
    "plain": {"model": "untied"},
    "kl": {"model": "untied", "beta": 0.1, "num_iterations": 2},
    "checkpointed": _CHECKPOINTED,
    "reentrant": _REENTRANT,
    "checkpointed, kl, accumulated": _CHECKPOINTED | {"beta": 0.1, "accumulate": 2},
    "reentrant, kl, accumulated": _REENTRANT | {"beta": 0.1, "accumulate": 2},
    "checkpointed, passes": _CHECKPOINTED | {"loss_type": "grpo", "train_batch_tokens": 20},
    "lora, checkpointed": _LORA | _CHECKPOINTED,
    "lora, reentrant": _LORA | _REENTRANT,
    "lora, checkpointed, kl, accumulated": _LORA | _CHECKPOINTED | {"beta": 0.1, "accumulate": 2},
    "lora on the embedding, kl": {"model": "untied", "beta": 0.1,
                                  "lora": ["q_proj", "embed_tokens"]},
    "discrete, checkpointed": _CHECKPOINTED | {"policy": "discrete", "top_k": None},
    "bf16, checkpointed, kl": _CHECKPOINTED | {"beta": 0.1, "bf16": True, "max_steps": 1,
                                               "rollout_dtype": "float32"},
}  # fmt: skip
CASES |= {f"untied: {name}": settings for name, settings in UNTIED.items()}
_COMMON = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2,
           "lr_scheduler_type": "constant", "ddp_timeout": 30}  # fmt: skip
TRAIN = """
import json, sys, torch
from pathlib import Path
from tests.integration.test_distributed import train
torch.set_num_threads(1)
cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
for name, settings in cases.items():
    result = train(folder / name, settings, num_processes=2)
    torch.save(result, folder / f"{name}.pt")
"""


def train(folder, settings, num_processes=1):
    """Losses and parameters after the updates, in one of the processes that share the batch."""
    settings = dict(settings)
    model, lora = settings.pop("model", "tied"), settings.pop("lora", None)
    parts = settings.pop("accumulate", 1)
    args = train_config(
        folder, per_device_train_batch_size=8 // num_processes // parts,
        gradient_accumulation_steps=parts, **settings,
    )  # fmt: skip
    adapters = None if lora is None else LoraConfig(r=4, target_modules=lora, lora_dropout=0.0)
    trainer = make_trainer(model, args, peft_config=adapters)
    assert trainer.accelerator.num_processes == num_processes
    trainer.train()
    logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {"loss": torch.tensor(logs)} | parameters(model)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """One launch for all cases: starting two processes costs more than training in them."""
    folder = tmp_path_factory.mktemp("ddp")
    cases = {name: _COMMON | settings for name, settings in CASES.items()}
    run_processes(TRAIN, json.dumps(cases), str(folder), processes=2, timeout=300)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ddp_processes_are_one_process(name, two_processes, tmp_path):
    """Losses, and parameters that moved by the same gradients."""
    settings = _COMMON | CASES[name]
    bound = 1e-3 if settings.get("bf16") else 1e-4
    wanted = train(tmp_path / "one", settings)
    still = train(tmp_path / "still", settings | {"learning_rate": 0.0})
    assert max((wanted[n] - still[n]).abs().max() for n in wanted) > 5 * bound
    assert_same(torch.load(two_processes / f"{name}.pt"), wanted, bound)


# With some seed something happens to sequences of the second half alone: whether a process takes
# part in an exchange must not depend on what it drew.
ONE_SIDED: dict[str, dict[str, Any]] = {
    "a marker is forced": {"max_think_tokens": 3, "think_end": [*"abcdefgh", "</t>"],
                           "reduction": "sum", "max_steps": 1},
    "all are truncated": {"mask_truncated_completions": True, "max_completion_length": 4},
}  # fmt: skip
ONE_SIDED["all are truncated, untied"] = ONE_SIDED["all are truncated"] | _CHECKPOINTED
ONE_SIDED["all are truncated, passes"] = ONE_SIDED["all are truncated, untied"] | {
    "loss_type": "grpo",
    "train_batch_tokens": 8,
}


def _is_one_sided(name, folder, settings):
    """Whether in the first rollout it happens in the second half alone."""
    model = settings.get("model", "tied")
    settings = {k: v for k, v in settings.items() if k != "model"} | {"max_steps": 1}
    trainer = make_trainer(model, train_config(folder, **settings))
    seen = []
    original = trainer.engine.generate
    trainer.engine.generate = lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    trainer.train()
    if name == "a marker is forced":
        forced = [bool(r.trace.is_forced.any()) for r in seen[0]]
        return not any(forced[:4]) and any(forced[4:])
    truncated = [r.token_ids[-1] not in trainer.eos_token_ids for r in seen[0]]
    return not all(truncated[:4]) and all(truncated[4:])


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory):
    """One launch for all cases: the settings of each, with a seed that is one-sided."""
    folder = tmp_path_factory.mktemp("one-sided")
    cases = {}
    for name, settings in ONE_SIDED.items():
        seeds = (_COMMON | settings | {"seed": seed} for seed in range(60))
        cases[name] = next((s for s in seeds if _is_one_sided(name, folder / "look", s)), None)
    assert all(cases.values()), "no seed below 60 is one-sided"
    run_processes(TRAIN, json.dumps(cases), str(folder), processes=2, timeout=120)
    return folder, cases


@pytest.mark.parametrize("name", ONE_SIDED)
def test_what_one_process_alone_drew_is_no_different(name, one_sided, tmp_path):
    folder, cases = one_sided
    wanted = train(tmp_path, cases[name])
    assert_same(torch.load(folder / f"{name}.pt"), wanted, 1e-4)


SHARDED = [
    ("tied", "gumbel", "concrete"),
    ("bias", "gumbel", "gumbel"),
    ("tied", "discrete", "token"),
]
SHARD = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from softgrpo.replay import add_replay
from softgrpo.thinking import Objective
from softgrpo.thinking import SoftTrace
from tests.helpers import thinking, tiny_model
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
rank = dist.get_rank()
for name, policy, density in json.loads(sys.argv[1]):
    folder = Path(sys.argv[2]) / f"{name}-{policy}-{density}"
    config = thinking(policy)
    model = tiny_model(name)
    add_replay(model, Objective(config, density, "sum"))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batch = torch.load(folder / "batch.pt")
    mine = slice(4 * rank, 4 * rank + 4)
    trace = SoftTrace.load(folder / "trace.safetensors")[mine]
    out = model(input_ids=batch["ids"][mine], attention_mask=batch["mask"][mine], trace=trace)
    (out["logps"] * batch["upstream"][mine]).sum().backward()
    logps = [torch.empty_like(out["logps"]) for _ in range(2)]
    dist.all_gather(logps, out["logps"].detach())
    found = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(found | {"logps": torch.cat(logps)}, folder / "sharded.pt")
dist.destroy_process_group()
"""


def _record_and_score(name, policy, density, folder):
    """Eight sequences for the processes to replay, and the whole model's answer."""
    model, config = tiny_model(name), thinking(policy)
    rollouts = roll_out(model, config, prompts=[[3, 4], [5]], num_generations=4)
    ids, mask, trace, _ = batch_of(rollouts)
    upstream = torch.randn(8, trace.num_steps)
    folder.mkdir()
    torch.save({"ids": ids, "mask": mask, "upstream": upstream}, folder / "batch.pt")
    trace.save(folder / "trace.safetensors")
    add_replay(model, Objective(config, density, "sum"))
    logps = model(input_ids=ids, attention_mask=mask, trace=trace)["logps"]
    (logps * upstream).sum().div(2).backward()  # FSDP means over the two processes
    return gradients(model) | {"logps": logps.detach()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """One launch for all cases: {case: (found, wanted)}."""
    folder = tmp_path_factory.mktemp("fsdp")
    wanted = {case: _record_and_score(*case, folder / "-".join(case)) for case in SHARDED}
    run_processes(SHARD, json.dumps(SHARDED), str(folder), processes=2, timeout=120)
    return {
        case: (torch.load(folder / "-".join(case) / "sharded.pt"), wanted[case]) for case in SHARDED
    }


@pytest.mark.parametrize("case", SHARDED, ids="-".join)
def test_a_fully_sharded_model_replays_and_learns_as_the_whole_one(case, sharded):
    assert_same(*sharded[case], 1e-4)
