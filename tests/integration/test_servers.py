"""Two processes with ``engine: vllm-server``: one process's run, and one end where one fails."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers import (
    assert_same,
    free_port,
    generated_tokens,
    make_trainer,
    parameters,
    run_processes,
    save_tiny_model,
    tiny_model,
    train_config,
    write_recipe,
)
from tests.serving import served

pytestmark = pytest.mark.alone

_COMMON = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 3,
           "lr_scheduler_type": "constant", "ddp_timeout": 60, "max_think_tokens": 5}  # fmt: skip
# Which servers, and the modules with adapters.
CASES = {
    "one server": (1, None),
    "two servers": (2, None),
    "lora": (1, ["q_proj", "down_proj"]),
}
TRAIN = """
import json, sys, torch
from pathlib import Path
from tests.integration.test_servers import CASES, train
torch.set_num_threads(1)
urls, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
for name, (count, lora) in CASES.items():
    settings = {"engine": "vllm-server", "vllm_server_base_url": urls[:count]}
    found, rank = train(folder / name, lora, 2, **settings)
    torch.save(found, folder / f"{name}_{rank}.pt")
"""


def train(folder, lora, num_processes, model=None, **settings):
    """Tokens, losses and parameters of one of the processes that share the batch; and which."""
    size = 8 // num_processes
    args = train_config(folder, per_device_train_batch_size=size, **_COMMON | settings)
    adapters = lora and LoraConfig(r=4, target_modules=lora, lora_dropout=0.0)
    model = tiny_model("tied") if model is None else AutoModelForCausalLM.from_pretrained(model)
    trainer = make_trainer(model, args, peft_config=adapters)
    tokens = generated_tokens(trainer)
    trainer.train()
    losses = torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])
    model = trainer.accelerator.unwrap_model(trainer.model)
    found = {"tokens": tokens, "numbers": {"loss": losses} | parameters(model)}
    return found, trainer.accelerator.process_index


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    model = save_tiny_model(folder / "model", seed=5)  # other weights than those in training
    with served(model, free_port()) as first, served(model, free_port()) as second:
        urls = json.dumps([first, second])
        run_processes(TRAIN, urls, str(folder), processes=2, timeout=240)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_servers_are_one_process(name, two_processes, tmp_path):
    wanted, _ = train(tmp_path, CASES[name][1], 1)
    halves = [torch.load(two_processes / f"{name}_{rank}.pt") for rank in range(2)]
    tokens = [one + other for one, other in zip(*(h["tokens"] for h in halves), strict=True)]
    assert tokens == wanted["tokens"]
    assert len({len(sequence) for sequence in tokens[0]}) > 1  # no process ends when another does
    for half in halves:
        assert_same(half["numbers"], wanted["numbers"], 1e-4)


RUN = """
import io, json, os, sys, torch
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from softgrpo.cli.main import main
from tests.serving import served, wait_for
torch.set_num_threads(1)
folder, model, ports = Path(sys.argv[1]), sys.argv[2], [int(port) for port in sys.argv[3:]]
rank, urls = int(os.environ["RANK"]), [f"http://127.0.0.1:{port}" for port in ports]
found = {}

def run(name, output, options, *arguments):
    # The first process starts the servers, of which the second fails as the options say, and the
    # other waits for them.
    import torch.distributed as dist
    if dist.is_initialized():
        dist.barrier()
    with ExitStack() as stack, redirect_stderr(io.StringIO()) as said:
        if options is not None:
            for port, url, own in zip(ports, urls, ({}, options)):
                stack.enter_context(served(model, port, **own)) if rank == 0 else wait_for(url)
        code = main([
            "train", str(folder / "recipe.yaml"), "--output_dir", str(folder / output),
            "--engine", "vllm-server", "--vllm_server_base_url", *urls, *arguments,
        ])
        dist.barrier()
    found[name] = [code, said.getvalue()]

run("whole", "whole", {})
for name, options in {"rollout": {"completions": 10}, "update": {"updates": 3}}.items():
    run(name, name, options)
    run(f"{name}, resumed", name, {}, "--resume")
other = {"served": {"shapes": {"model.embed_tokens.weight": [3, 32]}}}
run("another model", "refused", other)
run("unreachable", "refused", None)
(folder / f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the command line, all in one launch of two processes."""
    folder, ports = tmp_path_factory.mktemp("failing"), [free_port(), free_port()]
    model = save_tiny_model(folder / "model")
    write_recipe(
        folder, folder / "model", num_eval_problems=0, num_samples_kept=0, ddp_timeout=60,
        per_device_train_batch_size=4, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
    )  # fmt: skip
    run_processes(RUN, str(folder), model, *map(str, ports), processes=2, timeout=400)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], ports


def _message(found, name):
    """What both processes ended with, which must be the same; bad input is said by the first."""
    (code, said), (other_code, other_said) = (one[name] for one in found)
    lines, others = ([x for x in s.splitlines() if "softgrpo: " in x] for s in (said, other_said))
    assert code == other_code and len(lines) <= 1, (said, other_said)
    assert others == ([] if code == 2 else lines), (said, other_said)
    return code, "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "update"])
def test_where_one_of_two_servers_dies_all_stop_and_what_is_resumed_is_the_same_run(name, runs):
    folder, found, ports = runs
    code, message = _message(found, name)
    assert code == 1 and f"http://127.0.0.1:{ports[1]}" in message
    assert "the last good checkpoint is" in message and "checkpoint-2" in message
    assert _message(found, f"{name}, resumed") == (0, "") == _message(found, "whole")
    wanted = load_file(folder / "whole" / "model" / "model.safetensors")
    resumed = load_file(folder / name / "model" / "model.safetensors")
    assert_same(resumed, wanted, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("another model", "model.embed_tokens.weight is [3, 32] there and ["),
        ("unreachable", "no server answers at http://127.0.0.1:"),
    ],
)
def test_a_server_of_no_use_is_refused_by_both_before_anything_is_written(name, said, runs):
    folder, found, _ = runs
    code, message = _message(found, name)
    assert code == 2 and said in message
    assert not (folder / "refused").exists()
