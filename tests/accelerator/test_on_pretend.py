"""What runs on the pretend accelerator, in a process of its own.

To register the device changes a process for good: other libraries then find an accelerator there.
So pytest does not collect the files on_*.py by itself. Name one to run it alone:

    .venv/bin/python -m pytest tests/accelerator/on_engine.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
def test_what_runs_on_the_pretend_accelerator():
    """All files together: to start a process for each would take as long as its tests."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("on_*.py"))
    assert files
    # A session inside a session: it has none of the outer one's plug-ins and options.
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        cwd=ROOT, env=environment, text=True, timeout=600, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
