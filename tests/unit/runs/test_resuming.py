"""What lies in a run's folder is looked at before a run is resumed from it."""

from __future__ import annotations

import pytest

from softgrpo.checkpoints import seal
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.resuming import check_changes

_VALUES = {"model": "m", "task": "t.jsonl"}


@pytest.mark.parametrize(
    ("config", "state", "said"),
    [
        ({}, "{", "trainer_state.json: not JSON"),
        ({}, "[]", r"trainer_state.json=\[\]: must be a mapping"),
        ({}, '{"global_step": "3"}', "trainer_state.json: global_step='3': must be a whole number"),
        ({"eval_samples": {}}, '{"global_step": 3}', "eval_samples={}: must be a whole number"),
        ({"lr_scheduler_type": []}, '{"global_step": 9}', "has made 9 steps, more than the 3"),
    ],
)
def test_a_damaged_run_is_refused_by_what_is_damaged(tmp_path, config, state, said):
    directory = RunDirectory(tmp_path)
    directory.write_config(_VALUES | config, "softgrpo train r.yaml", 3)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "rollouts_0.safetensors").write_bytes(b"x")
    (checkpoint / "trainer_state.json").write_text(state)
    seal(checkpoint)
    with pytest.raises(ValueError, match=said):
        check_changes(directory, _VALUES, 3, 1)
