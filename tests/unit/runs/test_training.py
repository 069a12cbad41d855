"""What is kept of how a run was started."""

from __future__ import annotations

import pytest

from softgrpo.runs.training import _call


@pytest.mark.parametrize(
    "secret", [["--hub_token", "hf_x"], ["--hub_token=hf_x"], ["--hub-token", "hf_x"]]
)
def test_a_secret_of_the_command_line_is_not_kept(secret):
    given = ["--tau", "0.2", *secret, "--rewards", "numeric", "format"]
    kept = "softgrpo train r.yaml --tau 0.2 --rewards numeric format"
    assert _call("r.yaml", given, resume=False) == kept
    assert _call("r.yaml", given, resume=True) == f"{kept} --resume"
