"""What lies in a run's folder is looked at before a run is resumed from it."""

from __future__ import annotations

import pytest

from softgrpo.checkpoints import seal
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.resuming import check_changes

_VALUES = {"model": "m", "task": "t.jsonl"}


def _run(folder, config, state):
    """A run of one process with a checkpoint."""
    directory = RunDirectory(folder)
    directory.write_config(_VALUES | config, "softgrpo train r.yaml", 3)
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "rollouts_0.safetensors").write_bytes(b"x")
    (checkpoint / "trainer_state.json").write_text(state)
    seal(checkpoint)
    return directory


def test_training_goes_on_in_as_many_processes_and_what_follows_it_in_any_number(tmp_path):
    directory = _run(tmp_path, {}, '{"global_step": 3}')
    check_changes(directory, _VALUES, num_steps=3, num_processes=2)
    check_changes(directory, _VALUES, num_steps=4, num_processes=1)
    with pytest.raises(ValueError, match="was made by 1 processes and there are 2"):
        check_changes(directory, _VALUES, num_steps=4, num_processes=2)


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
    directory = _run(tmp_path, config, state)
    with pytest.raises(ValueError, match=said):
        check_changes(directory, _VALUES, 3, 1)
