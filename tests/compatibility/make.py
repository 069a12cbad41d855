"""Makes tests/compatibility/files: what a release of softgrpo writes, for later ones to read.

    python -m tests.compatibility.make FOLDER

A tiny model, a trace of every mixer with its log-densities, an evaluation, and a run stopped within
a rollout. Made once, by the code of that day. A change of format on purpose adds a folder beside
it and keeps this one for as long as its files are to be read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from softgrpo.cli.main import main
from softgrpo.thinking import Objective
from tests.helpers import (
    POLICY_DENSITIES,
    batch_of,
    roll_out,
    save_tiny_model,
    thinking,
    tiny_model,
    write_recipe,
)

RUN = {"steps_per_generation": 3, "max_steps": 4, "save_steps": 2, "num_eval_problems": 6}


def make(folder: Path) -> None:
    """Write everything; paths in the files are relative to the folder."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    save_tiny_model(Path("model"), "untied")
    make_traces(Path("traces"))
    recipe = write_recipe(Path("."), Path("model"), **RUN)
    assert main(["train", recipe]) == 0
    stop_after_two_steps(Path("run"))
    evaluate = ["eval", "model", "--task", "data.jsonl", "--verifier", "format", "--plain"]
    options = ["--think-end", "</t>", "--limit", "4", "--samples", "2", "--max-new-tokens", "8"]
    assert main([*evaluate, *options, "--output", "evaluated"]) == 0


def make_traces(folder: Path) -> None:
    """A trace for each policy and density, and its log-densities beside it."""
    folder.mkdir()
    model = tiny_model("untied")
    for policy, density, reduction in POLICY_DENSITIES:
        config = thinking(policy, max_think_tokens=6)
        rollouts = roll_out(model, config, Objective(config, density, reduction))
        ids, mask, trace, logps = batch_of(rollouts)
        name = f"{policy}-{density}-{reduction}"
        trace.save(folder / f"{name}.safetensors")
        beside = {
            "thinking": config.to_dict(),
            "density": density,
            "reduction": reduction,
            "ids": ids.tolist(),
            "mask": mask.tolist(),
            "logps": logps.tolist(),
        }
        (folder / f"{name}.json").write_text(json.dumps(beside))


def stop_after_two_steps(run: Path) -> None:
    """The finished run as if it had been killed after step 2; its metrics stay, to compare with."""
    shutil.copy(run / "metrics.jsonl", "finished.jsonl")
    shutil.copytree(run / "evaluation", "finished")
    for path in (run / "checkpoint-4", run / "model"):
        shutil.rmtree(path)
    for path in (*run.glob("evaluation/after-*"), *run.glob("evaluation/summary.*")):
        path.unlink()
    (run / "curves.png").unlink()
    kept = (run / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in kept if json.loads(line)["step"] <= 2]
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in steps))


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
