"""Which Python `make` takes, and what it says where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(ROOT), *words], text=True, capture_output=True)


def test_the_first_python_that_is_new_enough_and_makes_environments(tmp_path):
    pythons = []
    for name, body in (
        ("old", "exit 1"),  # as `python -c` ends where the version or a module is not there
        ("new", f'exec {sys.executable} "$@"'),
        ("newer", f'exec {sys.executable} "$@"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        pythons.append(str(path))
    shown = make("-n", "env", f"VENV={tmp_path}/venv", f"PYTHONS=missing {' '.join(pythons)}")
    assert f"{tmp_path}/new -m venv {tmp_path}/venv" in shown.stdout


def test_what_is_missing_is_said(tmp_path):
    done = make("env", f"VENV={tmp_path}/venv", "PYTHONS=no-such-python")
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    for part in ("None of no-such-python is Python 3.11 or newer", "ensurepip", "PYTHON=PATH"):
        assert part in done.stderr
