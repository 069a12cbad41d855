"""The estimate of a run: the numbers of `softgrpo plan`, and never a reason to end a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import T5Config

from softgrpo.models import load_weights
from softgrpo.planning.devices import DEVICES
from softgrpo.runs import estimate as estimates
from softgrpo.runs.estimate import Estimate, device_here, estimate
from softgrpo.runs.plan import make_plan
from softgrpo.runs.recipe import read_recipe
from tests.unit.cli.test_plan import RECIPE, plan, recipe

__all__ = ["recipe"]
CPU = torch.device("cpu")


@pytest.fixture
def planned(tmp_path, recipe):  # noqa: F811
    config, args, _ = read_recipe({**RECIPE, "output_dir": str(tmp_path / "run")})
    return make_plan(config, args)


def test_a_run_is_told_what_plan_says(planned, recipe, capsys):  # noqa: F811
    model = load_weights(planned.model, torch.float32)
    found, said = estimate(planned, model, CPU, is_sharded=False), plan(capsys, recipe)
    assert found.memory == said["memory"]
    assert (found.seconds, found.device_bytes) == (said["seconds"], said["device_bytes"])
    most = f"{said['peak']['bytes'] / 2**30:.2f}"
    assert found.lines.startswith(f"estimate: {most} of ")
    assert found.cost["estimated peak memory"] == f"{most} GiB, {said['peak']['phase']}"


def test_what_cannot_be_looked_through_is_said(planned):
    broken = replace(planned, model_config=T5Config(num_layers=1))
    assert "no estimate: " in estimate(broken, None, CPU, is_sharded=False)


def test_an_accelerators_measured_peak_is_without_its_context():
    held = {"update": {"process": 2**30, "weights": 2**30}}
    found = Estimate("cuda", held, 2**34, None, "time unknown")
    assert found.cost == {"estimated peak GPU memory": "1.00 GiB, update"}
    assert found.lines.startswith("estimate: 2.00 of 16.00 GiB at most, in the update")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name_or_by_a_measurement(name, known, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda")
    assert device_here(device)[0] == (known and DEVICES[known])
    measured = DEVICES["l40s"]
    file = estimates.calibrated("cuda")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(vars(measured)))
    assert device_here(device) == (measured, f"measured, {file}")
