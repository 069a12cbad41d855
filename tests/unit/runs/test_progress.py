"""What is said of a run under way where there is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from softgrpo.runs import progress as module
from softgrpo.runs.display import Display, duration
from softgrpo.runs.progress import TrainingProgress, status


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14159, "3.1s"), (90, "1m30s"), (3599.9, "1h00m"), (7380, "2h03m")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_status():
    assert status({"reward": 0.5, "kl": 0.001}, 12.3) == "reward 0.500  kl 0.0010  12 tokens/s"
    assert status({"reward": 0.5}, None) == "reward 0.500"
    assert status({"reward": None, "kl": 0.001}, None) == "nothing judged  kl 0.0010"


def test_every_log_is_a_line_where_there_is_no_terminal(capsys):
    progress, state = TrainingProgress(8, Display()), SimpleNamespace(global_step=0, max_steps=3)
    progress.on_train_begin(None, state, None)
    for step in (1, 2, 3):
        state.global_step = step
        progress.on_log(None, state, None, logs={"reward": step / 4, "num_tokens": 10.0 * step})
    progress.on_log(None, state, None, logs={"train_runtime": 1.0})  # the summary at the end
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 1/3", "reward 0.250"], ["step 2/3", "reward 0.500"], ["step 3/3", "reward 0.750"]
    ]  # fmt: skip


def test_training_that_does_not_log_shows_that_it_goes_on(capsys, monkeypatch):
    clock = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    progress, state = TrainingProgress(8, Display()), SimpleNamespace(global_step=0, max_steps=8)
    progress.on_train_begin(None, state, None)
    for step in range(1, 5):
        progress.on_step_begin(None, state, None)
        for index in range(8):
            clock += 5.0
            progress.on_rollout(index, None)
        state.global_step = step
        progress.on_step_end(None, state, SimpleNamespace(should_log=step % 2 == 0))
    assert capsys.readouterr().out.splitlines()[:3] == [
        "step 0/8  rollout 7/8  4m40s left",
        "step 1/8  rollout 6/8  8m10s left",
        "step 2/8  rollout 5/8  5m15s left",
    ]
