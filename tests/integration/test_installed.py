"""The wheel, installed where no clone is: recipes, the laboratory, training, generation."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow

SMALL = ["--max_steps", "2", "--num_train_problems", "64", "--num_eval_problems", "2"]
SMALL += ["--eval_samples", "1", "--per_device_train_batch_size", "8", "--steps_per_generation"]
SMALL += ["1", "--num_generations", "4"]


def run(*words: str | Path, cwd: Path) -> str:
    away = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in away}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=environment | {"HF_HUB_OFFLINE": "1"}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """An environment with the wheel alone; its needs are those of this one."""
    folder = tmp_path_factory.mktemp("installed")
    python = [sys.executable, "-m"]
    # From a copy: setuptools builds inside the folder that it is given.
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, files):
        source, copy = ROOT / name, folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(os.readlink(source)) if source.is_symlink() else copy.write_bytes(
            source.read_bytes()
        )
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", "wheels"]
    run(*python, "pip", "wheel", "--quiet", *options, "./source", cwd=folder)
    run(*python, "venv", "environment", cwd=folder)
    place = folder / "environment"
    site = next(place.glob("lib/python3*/site-packages"))
    # Without the .pth files that lie there: an editable install of the clone is one of them.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next((folder / "wheels").glob("softgrpo-*.whl"))
    run(place / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--ignore-installed", wheel, cwd=folder)  # fmt: skip
    where = run(place / "bin" / "python", "-c", "import softgrpo; print(softgrpo.__file__)",
                cwd=folder)  # fmt: skip
    assert Path(where.strip()).is_relative_to(site)
    return place / "bin"


def test_it_trains_and_generates_by_name(bin_folder, tmp_path):
    softgrpo = bin_folder / "softgrpo"
    listed = run(softgrpo, "recipes", cwd=tmp_path)
    assert {"quickstart", "paper/r1-1.5b-soft", "accelerate/fsdp2"} < set(listed.split())
    assert "lab:chains" in run(softgrpo, "recipes", "lab", cwd=tmp_path)
    assert "softgrpo train lab" in run(softgrpo, "lab", "info", cwd=tmp_path)
    assert "fits    yes" in run(softgrpo, "plan", "lab", cwd=tmp_path)
    run(softgrpo, "train", "lab", *SMALL, cwd=tmp_path)
    assert (tmp_path / "runs" / "lab" / "model" / "config.json").is_file()
    said = run(softgrpo, "generate", "runs/lab", "7 + 4 * 3 - 8 + 5 =", cwd=tmp_path)
    assert said.strip()
