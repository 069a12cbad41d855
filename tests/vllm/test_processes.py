"""Two processes with a vLLM each are one process on the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from softgrpo.rollout import TransformersEngine
from softgrpo.thinking import SoftTrace
from tests.helpers import (
    assert_same,
    generated_tokens,
    make_trainer,
    parameters,
    run_processes,
    thinking,
    train_config,
    word_tokenizer,
)
from tests.vllm.engines import make_model

pytestmark = pytest.mark.alone

_COMMON = {
    "density": "concrete", "optim": "sgd", "learning_rate": 0.005, "max_grad_norm": 0.0,
    "max_steps": 3, "lr_scheduler_type": "constant", "ddp_timeout": 60,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "all weights": {"save_strategy": "steps", "save_steps": 2},
    "resumed": {"resume": "all weights/checkpoint-2"},
    "lora": {"lora": ["q_proj", "v_proj"]},
}
# A process that needed the other's shards while it decodes would wait for ever.
LIMITS = (4, 9)
TWO = """
import json, sys, torch
from pathlib import Path
from tests.vllm.engines import quick_to_start
from tests.vllm.test_processes import fail_to_start, roll_out_sharded, train
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
with quick_to_start():
    for name, settings in cases.items():
        result = train(folder, name, settings, engine="vllm", num_processes=2)
        torch.save(result, folder / f"{name}.{result['rank']}.pt")
    fail_to_start(folder)
    roll_out_sharded(folder)
torch.distributed.destroy_process_group()
"""


def train(
    folder: Path, name: str, settings: dict[str, Any], engine: str, num_processes: int
) -> dict[str, Any]:
    """What a process that shares the batch draws, its losses and its parameters at the end."""
    settings = _COMMON | {"vllm_max_model_length": 128} | settings
    lora, resume = settings.pop("lora", None), settings.pop("resume", None)
    args = train_config(
        folder / name, engine=engine, per_device_train_batch_size=8 // num_processes, **settings
    )
    adapters = None
    if lora is not None:
        adapters = LoraConfig(r=4, target_modules=lora, lora_dropout=0.0, init_lora_weights=False)
    torch.manual_seed(5)  # the adapters
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    trainer = make_trainer(model, args, peft_config=adapters)
    assert trainer.accelerator.num_processes == num_processes
    tokens = generated_tokens(trainer)
    trainer.train(resume_from_checkpoint=resume and str(folder / resume))
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    if engine == "vllm":
        trainer.engine.close()
    model = trainer.accelerator.unwrap_model(trainer.model)
    numbers = {"loss": torch.tensor(losses)} | parameters(model)
    return {"rank": trainer.accelerator.process_index, "tokens": tokens, "numbers": numbers}


def fail_to_start(folder: Path) -> None:
    """What each process raises where the engine of one does not start."""
    rank = torch.distributed.get_rank()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as raised:
        if rank == 1:
            patch.setattr("vllm.LLM", no_model)
        train(folder, "fails", {}, engine="vllm", num_processes=2)
    (folder / f"fails.{rank}.txt").write_text(str(raised.value))


def no_model(**_: Any) -> Any:
    raise ValueError("this is no model")


def roll_out_sharded(folder: Path) -> None:
    """Of a model that two processes keep in shards, with weights that no file has."""
    from torch.distributed.fsdp import fully_shard

    from softgrpo.rollout.vllm_engine import VLLMEngine

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    engine = VLLMEngine(str(folder / "model"), dtype="float32", max_model_len=128, source=model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    engine.sync(max_bytes=10_000)
    rank = torch.distributed.get_rank()
    options = {"max_new_tokens": LIMITS[rank], "num_generations": 2}
    rollouts = engine.generate([[3, 4], [5]], thinking(), **options)
    SoftTrace.cat([r.trace for r in rollouts]).save(folder / f"sharded.{rank}.safetensors")
    engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One launch for all: starting two processes costs more than what they do."""
    folder = tmp_path_factory.mktemp("processes")
    make_model(folder / "model", tied=True)
    run_processes(TWO, str(folder), json.dumps(CASES), processes=2, timeout=300)
    return folder


@pytest.mark.parametrize("name", ["all weights", "lora"])
def test_two_processes_are_one(name, folder, tmp_path):
    make_model(tmp_path / "model", tied=True)
    wanted = train(tmp_path, "one", CASES[name], engine="transformers", num_processes=1)
    found = [torch.load(folder / f"{name}.{rank}.pt") for rank in (0, 1)]
    batches = zip(found[0]["tokens"], found[1]["tokens"], strict=True)
    assert [first + second for first, second in batches] == wanted["tokens"]
    assert len(wanted["tokens"]) == 3
    for one in found:
        assert_same(one["numbers"], wanted["numbers"], 1e-4)
    still = train(tmp_path, "still", CASES[name] | {"learning_rate": 0.0}, "transformers", 1)
    pairs = [(wanted["numbers"][n], still["numbers"][n]) for n in wanted["numbers"]]
    assert max((new - old).abs().max() for new, old in pairs) > 5e-4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_run_is_the_run_that_was_not_stopped(rank, folder):
    whole, resumed = (
        torch.load(folder / f"{name}.{rank}.pt") for name in ("all weights", "resumed")
    )
    assert resumed["tokens"] == whole["tokens"][2:]
    assert_same(resumed["numbers"], whole["numbers"], 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_engine_that_does_not_start_is_told_to_all(rank, folder):
    assert (folder / f"fails.{rank}.txt").read_text() == "this is no model"


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_draws_what_the_whole_model_draws(rank, folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    options = {"max_new_tokens": LIMITS[rank], "num_generations": 2}
    rollouts = TransformersEngine(model, word_tokenizer()).generate(
        [[3, 4], [5]], thinking(), **options
    )
    wanted = SoftTrace.cat([rollout.trace for rollout in rollouts])
    found = SoftTrace.load(folder / f"sharded.{rank}.safetensors")
    assert torch.equal(found.ids, wanted.ids)
    assert (found.scores - wanted.scores).abs().max() < 1e-3
