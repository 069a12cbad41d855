"""The command line in two processes: they meet wherever one waits for the other, and both end."""

from __future__ import annotations

import json

import pytest

from tests.helpers import run_processes, save_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RUN = """
import json, os, signal, sys, torch
import torch.distributed as dist
from softgrpo.runs import training as train
from softgrpo.cli.main import main
from softgrpo.rollout import TransformersEngine
torch.set_num_threads(1)
recipe, rank = sys.argv[1], int(os.environ["RANK"])
sync = TransformersEngine.sync

def meet(engine):
    # Where shards are gathered, every process has to come.
    sync(engine)
    dist.barrier()

TransformersEngine.sync = meet
assert main(["train", recipe]) == 0
assert main(["train", recipe, "--resume"]) == 0  # finished already
# Two processes take two prompts a rollout.
assert main(["train", recipe, "--num_train_problems", "1", "--output_dir", sys.argv[3]]) == 2
TransformersEngine.sync = sync

class Signal(train.Interrupt):
    def on_step_begin(self, args, state, control, **kwargs):
        if rank == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

train.Interrupt = Signal
interrupted = ["train", recipe, "--output_dir", sys.argv[2]]
assert main(interrupted) == 130
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, resumed when it is finished, and one that a signal stops in one process."""
    folder = tmp_path_factory.mktemp("cli")
    rows = [{"question": f"{x} b", "answer": "0"} for x in "abcdefghijklmnopqrst"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": save_tiny_model(folder / "tiny"), "task": str(folder / "data.jsonl"),
        "chat": False, "rewards": ["format"], "num_train_problems": 8, "num_eval_problems": 3,
        "eval_samples": 2, "sample_steps": 1, "output_dir": str(folder / "whole"),
        "use_cpu": True, "bf16": False, "think_end": ["</t>"], "max_completion_length": 8,
        "per_device_train_batch_size": 4, "num_generations": 4, "max_steps": 4, "save_steps": 4,
        "logging_steps": 1, "tau": 0.7, "seed": 3, "ddp_timeout": 30,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    arguments = str(folder / "recipe.yaml"), str(folder / "stopped"), str(folder / "refused")
    run_processes(RUN, *arguments, processes=2, timeout=100)
    return folder


def test_a_run_ends_where_only_together_the_processes_can_gather_its_weights(runs):
    summary = json.loads((runs / "whole" / "evaluation" / "summary.json").read_text())
    assert summary["after"]["soft"]["num_problems"] == 3
    kept = {path.name for path in (runs / "whole" / "samples").glob("*.jsonl")}
    assert kept == {f"step-{step}.jsonl" for step in range(1, 5)}


def test_fewer_problems_than_the_processes_take_together_are_refused(runs):
    assert not (runs / "refused").exists()


def test_a_signal_to_one_process_stops_both_after_the_same_step(runs):
    assert sorted(path.name for path in (runs / "stopped").glob("checkpoint-*")) == ["checkpoint-2"]
    kept = {path.name for path in (runs / "stopped" / "checkpoint-2").glob("rollouts_*")}
    assert kept == {"rollouts_0.safetensors", "rollouts_1.safetensors"}
