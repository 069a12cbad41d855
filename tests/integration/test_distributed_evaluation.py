"""Evaluations and kept samples that two processes share are those of one process.

Nothing is learned (a rate of 0), so that the weights after training are the same whoever trained.
A batch holds two problems, and of eight each process gets two batches.
"""

from __future__ import annotations

import json

import pytest
import torch

from softgrpo.evaluation import read_records
from softgrpo.thinking import SoftTrace
from tests.helpers import run_processes, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.alone]

FIELDS = {
    "learning_rate": 0.0, "num_eval_problems": 8, "eval_samples": 2, "rollout_batch_size": 4,
    "num_samples_kept": 8, "sample_steps": 2, "max_steps": 2,
    "eval_decodings": ["soft"], "eval_reward": "judges:judge",
}  # fmt: skip
JUDGES = """
import os
calls = 0
def judge(completions, **columns):
    global calls
    calls += 1  # the first is a trial
    if calls > 2 and os.environ["FAILS"] == os.environ["RANK"]:
        raise KeyError("a word")
    return [float(len(completions[0]) % 2)]
"""

# argv: ddp or fsdp2; a folder; of each start the environment, arguments and exit code, as JSON.
PROGRAM = """
import contextlib, io, json, os, signal, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
sys.path.insert(0, sys.argv[2])

if sys.argv[1] == "fsdp2":  # accelerate offers it on accelerators, so these processors are some
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    initialize = AcceleratorState.__init__
    def pretend(self, *args, **kwargs):
        PartialState(cpu=True)
        if not AcceleratorState._shared_state:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialize(self, *args, **kwargs)
    AcceleratorState.__init__ = pretend

from softgrpo.cli.main import main
from softgrpo.evaluation import RecordFile

import judges
append, count = RecordFile.append, 0
def stop(file, record):
    global count
    append(file, record)
    evaluation, ranks, number, name = (os.environ["STOP"] or "none none 0 SIGINT").split()
    if evaluation in file.path.name and str(rank) in ranks:
        count += 1
        if count == int(number):
            os.kill(os.getpid(), getattr(signal, name))
RecordFile.append = stop

for environment, arguments, code in json.loads(sys.argv[3]):
    os.environ |= {"STOP": "", "FAILS": ""} | environment
    count = judges.calls = 0
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        found = main(["train", *arguments])
    assert found == code, (found, errors.getvalue())
    with open(f"{sys.argv[2]}/errors_{rank}", "a") as file:
        print(json.dumps(errors.getvalue()), file=file)
if dist.is_initialized():
    dist.destroy_process_group()
"""


def _run(kind, folder, *starts, processes=2):
    run_processes(PROGRAM, kind, str(folder), json.dumps(starts), processes=processes, timeout=300)


def _sorted_lines(run, name):
    return sorted((run / "evaluation" / name).read_bytes().splitlines())


def _summary(run):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    summary.pop("cost")
    return summary


def _assert_same_evaluations(run, whole):
    for name in ("before-soft.jsonl", "after-soft.jsonl"):
        assert _sorted_lines(run, name) == _sorted_lines(whole, name)
    assert _summary(run) == _summary(whole)
    left = {path.name for path in (run / "evaluation").iterdir()}
    assert left == {"before-soft.jsonl", "after-soft.jsonl", "summary.json", "summary.md"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "judges.py").write_text(JUDGES)
    write_recipe(folder, model, **FIELDS)
    return folder


@pytest.fixture(scope="module")
def arguments(folder):
    """Of a start in a run's folder."""
    return lambda run, *more: [str(folder / "recipe.yaml"), "--output_dir", str(run), *more]


@pytest.fixture(scope="module")
def whole(folder, arguments):
    """The run of one process."""
    _run("ddp", folder, ({}, arguments(folder / "whole"), 0), processes=1)
    return folder / "whole"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_are_one(kind, folder, arguments, whole):
    run = folder / kind
    _run(kind, folder, ({}, arguments(run), 0))
    _assert_same_evaluations(run, whole)
    found, wanted = (path / "samples" / "step-2.jsonl" for path in (run, whole))
    assert found.read_bytes() == wanted.read_bytes()
    traces = [SoftTrace.load(path.with_suffix(".safetensors")) for path in (found, wanted)]
    assert torch.equal(traces[0].ids, traces[1].ids) and len(traces[0]) == 8
    assert (traces[0].scores - traces[1].scores).abs().max() < 1e-5


@pytest.mark.parametrize(("when", "first", "then"), [("before", 2, 1), ("after", 1, 2)])
def test_killed_it_goes_on_in_another_number_of_processes(
    when, first, then, folder, arguments, whole
):
    run = folder / f"{when}-{first}-{then}"
    with pytest.raises(AssertionError):
        stop = {"STOP": f"{when} 01 3 SIGKILL"}
        _run("ddp", folder, (stop, arguments(run), 0), processes=first)
    files = [path for path in (run / "evaluation").iterdir() if when in path.name]
    there = {made for path in files for made in read_records(path)[1]}
    assert len(files) == first and len(there) >= 3 * first
    _run("ddp", folder, ({}, arguments(run, "--resume"), 0), processes=then)
    _assert_same_evaluations(run, whole)
    assert there <= set(read_records(run / "evaluation" / f"{when}-soft.jsonl")[1])


def test_what_stops_one_process_stops_both(folder, arguments, whole):
    run = folder / "stopped"
    for path in folder.glob("errors_*"):
        path.unlink()
    resumed = arguments(run, "--resume")
    _run(
        "ddp", folder, ({"FAILS": "1"}, arguments(run), 1),
        ({"STOP": "before 1 2 SIGINT"}, resumed, 130), ({}, resumed, 0),
    )  # fmt: skip
    _assert_same_evaluations(run, whole)
    said = [json.loads((folder / f"errors_{rank}").read_text().splitlines()[0]) for rank in "01"]
    messages = [
        next(line for line in text.splitlines() if line.startswith("softgrpo: ")) for text in said
    ]
    assert messages[0] == messages[1] and "'a word'" in messages[0]
