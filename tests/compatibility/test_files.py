"""Files of earlier releases, made by make.py in their day, are read as they were meant."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from softgrpo.cli.main import main
from softgrpo.models import load_model
from softgrpo.replay import replay
from softgrpo.thinking import Objective, SoftTrace, ThinkingConfig

RELEASES = sorted(Path(__file__).parent.glob("v*/"))
TRACES = [path for release in RELEASES for path in sorted(release.glob("traces/*.json"))]


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def files(request, tmp_path, monkeypatch) -> Path:
    """A copy, with the working directory in it, as when they were made."""
    copy = shutil.copytree(request.param, tmp_path / "files")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("path", TRACES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_a_trace_replays_to_the_log_densities_of_its_rollout(path):
    wanted = json.loads(path.read_text())
    config = ThinkingConfig(**wanted["thinking"])
    trace = SoftTrace.load(path.with_suffix(".safetensors"))
    trace.require(config)
    model, _ = load_model(str(path.parents[1] / "model"))
    objective = Objective(config, wanted["density"], wanted["reduction"])
    ids, mask = torch.tensor(wanted["ids"]), torch.tensor(wanted["mask"])
    found = replay(model, ids, mask, trace, objective)
    torch.testing.assert_close(found.logps, torch.tensor(wanted["logps"]), rtol=0, atol=2e-4)


def test_a_thinking_config_comes_back_field_by_field(files):
    wanted = json.loads((files / "traces" / "gumbel-gumbel-masked_mean.json").read_text())
    found = ThinkingConfig(**wanted["thinking"]).to_dict()
    assert {name: found[name] for name in wanted["thinking"]} == wanted["thinking"]


def test_a_run_is_resumed_as_the_run_that_it_was(files):
    assert main(["train", "recipe.yaml", "--resume"]) == 0
    found, wanted = _rows(files / "run" / "metrics.jsonl"), _rows(files / "finished.jsonl")
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == [1, 2, 3, 4]
    for name in ("loss", "grad_norm", "kl"):
        for mine, theirs in zip(found, wanted, strict=True):
            assert math.isclose(mine[name], theirs[name], rel_tol=1e-3, abs_tol=1e-4), name
    for kept in ("before-soft", "before-discrete"):  # what was recorded is not sampled again
        before = files / "run" / "evaluation" / f"{kept}.jsonl"
        assert before.read_bytes() == (files / "finished" / f"{kept}.jsonl").read_bytes()


def test_records_are_gone_on_with_and_compared(files, capsys):
    records = files / "evaluated" / "data.jsonl"
    before = records.read_bytes()
    evaluate = ["eval", "model", "--task", "data.jsonl", "--verifier", "format", "--plain"]
    options = ["--think-end", "</t>", "--samples", "2", "--max-new-tokens", "8"]
    command = [*evaluate, *options, "--output", "evaluated", "--limit"]
    assert main([*command, "4"]) == 0  # nothing to do
    assert records.read_bytes() == before
    assert main([*command, "5"]) == 0
    assert records.read_bytes().startswith(before) and len(records.read_bytes()) > len(before)
    capsys.readouterr()
    assert main(["compare", "a=evaluated", "b=finished/before-soft.jsonl", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)["scores"]
    assert [(score["run"], score["num_samples"]) for score in shown] == [("a", 2), ("b", 2)]


def _rows(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if "loss" in row]
