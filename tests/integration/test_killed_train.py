"""SIGKILL and loss of power at any moment of `softgrpo train`: what was sealed is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers import ROOT, save_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.alone]

_KILLS, _STEPS = 20, 60

# Each start is a fork of one process, which spares its imports. Which files the disk holds is noted
# by whoever has them synced; of the others a random part is lost.
_PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import softgrpo.runs.training
from softgrpo.checkpoints import complete_checkpoints
from softgrpo.cli.main import main

recipe, whole, run, report = sys.argv[1:]
run, notes = Path(run), Path(report + ".synced")

def start(folder):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(report + ".log", "a")
        fsync, out = os.fsync, open(notes, "a")
        def noted(descriptor):
            fsync(descriptor)
            stat = os.fstat(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            print(json.dumps([path, stat.st_ino, stat.st_size, stat.st_mtime_ns]),
                  file=out, flush=True)
        os.fsync = noted
        code = main(["train", recipe, "--output_dir", str(folder), "--resume"])
        sys.stdout.flush()
        os._exit(code)
    return pid

def lose_power(rng):
    synced = [json.loads(line) for line in notes.read_text().splitlines()]
    for path in [p for p in run.rglob("*") if p.is_file()]:
        stat = path.stat()
        kept = [size for name, inode, size, modified in synced
                if inode == stat.st_ino and (modified == stat.st_mtime_ns or name == str(path))]
        most = min(max(kept, default=0), stat.st_size)
        if most < stat.st_size:
            os.truncate(path, rng.randint(most, stat.st_size))
    with open(notes, "a") as out:  # what the disk held is on it
        for path in [p for p in run.rglob("*") if p.is_file()]:
            stat = path.stat()
            entry = [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns]
            print(json.dumps(entry), file=out)

def sealed():
    return max((json.loads(line)[0] for line in notes.read_text().splitlines()
                if line.count("complete.json.tmp") and str(run) in line),
               key=lambda p: int(p.split("checkpoint-")[1].split("/")[0]), default=None)

def steps():
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0

notes.touch()
begun = time.monotonic()
assert os.waitpid(start(whole), 0)[1] == 0, "the uninterrupted run"
longest = (time.monotonic() - begun) / 5
rng, seen = random.Random(0), []
for kill in range(int(os.environ["KILLS"])):
    # So many steps further, however slow they are; or some time after the start.
    further = rng.randint(0, 5)
    until, wait = steps() + further, 0 if further else rng.uniform(0, longest)
    pid, begun = start(run), time.monotonic()
    ended = (0, 0)
    while time.monotonic() - begun < 60 + longest:
        ended = os.waitpid(pid, os.WNOHANG)
        if ended != (0, 0) or steps() >= until and time.monotonic() - begun > wait:
            break
        time.sleep(0.001)
    if ended != (0, 0):  # on a fast machine it gets to its end between the kills
        assert ended[1] == 0, "it has failed by itself"
        break
    time.sleep(rng.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last = sealed()
    if kill % 2:
        lose_power(rng)
    complete, _ = complete_checkpoints(run)
    if last is not None:
        assert complete and str(complete[-1]) == str(Path(last).parent), (last, complete)
    seen.append(int(complete[-1].name.removeprefix("checkpoint-")) if complete else 0)
assert os.waitpid(start(run), 0)[1] == 0, "the last start"
Path(report).write_text(json.dumps(seen))
"""


def test_killed_at_twenty_moments_it_is_the_uninterrupted_run(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": f"{x} {y}", "answer": str(i % 3)}) + "\n"
            for i, (x, y) in enumerate((x, y) for x in "abcdefghij" for y in "klmnopqrst")
        )
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({
            "model": str(model), "task": str(data), "num_train_problems": 64, "chat": False,
            "rewards": ["format"], "num_eval_problems": 3, "eval_samples": 2, "sample_steps": 20,
            "num_samples_kept": 2, "use_cpu": True, "bf16": False, "think_end": ["</t>"],
            "max_think_tokens": 5, "max_completion_length": 8, "per_device_train_batch_size": 4,
            "num_generations": 4, "max_steps": _STEPS, "logging_steps": 1, "save_steps": 3,
            "save_total_limit": 2, "learning_rate": 0.01, "tau": 0.7, "seed": 3,
        })
    )  # fmt: skip
    whole, run, report = tmp_path / "whole", tmp_path / "run", tmp_path / "report.json"
    environment = os.environ | {"KILLS": str(_KILLS), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, (recipe, whole, run, report))],
        env=environment, cwd=ROOT, timeout=900, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = Path(f"{report}.log").read_text()[-2000:]
    assert done.returncode == 0, done.stderr[-2000:] + log
    seen = json.loads(report.read_text())
    assert len(seen) >= 8 and seen == sorted(seen)  # no step that was saved is lost
    assert len(set(seen)) >= 4
    expected, found = (load_file(f / "model" / "model.safetensors") for f in (whole, run))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    lines = [
        [
            json.loads(line)["step"]
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for folder in (whole, run)
    ]
    assert lines[0] == lines[1] == list(range(1, _STEPS + 1))
    for name in ("before-soft", "after-soft"):
        rows = [
            sorted((folder / "evaluation" / f"{name}.jsonl").read_text().splitlines())
            for folder in (whole, run)
        ]
        assert rows[0] == rows[1]
