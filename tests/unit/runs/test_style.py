"""A run's own way of thinking and prompting, from its config.yaml."""

from __future__ import annotations

import os

import pytest
import yaml

from softgrpo.runs.style import read_style

_RUN = {"model": "m", "task": "t.jsonl", "tau": 0.2, "max_completion_length": 7, "chat": False}


def test_a_run_s_own_way_and_what_the_command_line_changes(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(_RUN))
    style = read_style(str(tmp_path), {"top_k": 3})
    assert (style.thinking.tau, style.thinking.top_k) == (0.2, 3)
    assert (style.max_new_tokens, style.chat) == (7, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_eval_problems", {"a": 1}), ("eval_samples", "8"), ("max_completion_length", "x"),
        ("chat_template_kwargs", [1]), ("top_k", "5"), ("noise_clamp", [1.0]), ("tau", None),
        ("think_end", None), ("examples", "q"), ("task_options", [1]),
    ],
)  # fmt: skip
def test_a_damaged_config_is_refused_by_the_field(tmp_path, name, value):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(_RUN | {name: value}))
    with pytest.raises(ValueError, match=f"{name}="):
        read_style(str(tmp_path), {})


def test_a_pipe_in_the_place_of_the_config_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="config.yaml: is not a regular file"):
        read_style(str(tmp_path), {})
