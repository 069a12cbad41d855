"""Tables say what the numbers are; curves are drawn from whatever a run has logged."""

import json
import math

import pytest

from softgrpo.reports import cell, draw_curves, format_table, read_metrics
from softgrpo.reports.curves import running_mean


def test_a_column_starts_under_its_name():
    header = ["decoding", "pass@1 before", "after"]
    row = ["soft", "0.464 [0.40, 0.53]", "0.844 [0.80, 0.88]"]
    first, rule, second = format_table(header, [row]).splitlines()
    assert [second.index(text) for text in row] == [first.index(name) for name in header]
    assert set(rule) == {"-", " "}


def test_no_number_is_a_dash():
    assert (cell(0.5, ".0%"), cell(1234.5, ",.0f"), cell(math.nan, ".0%")) == ("50%", "1,234", "-")


def test_running_mean():
    assert running_mean([1.0, 3.0, 5.0, 7.0], width=2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("extra", [{}, {"kl": 0.1, "entropy": 1.0, "loss": math.nan}])
def test_curves(tmp_path, extra):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"step": i, "reward": i / 5, **extra} for i in range(1, 5)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 4, "train_runtime": 1.0}])
    # Lines that somebody has written into, and one that was cut off.
    broken = '["loss"]\n{"step": 5, "reward": 1e999}\n{"step": 5, "loss": ' + "9" * 400 + "}\n"
    metrics.write_text(text + broken + '{"step": 5, "rew')
    assert read_metrics(metrics)[-1]["step"] == 4
    draw_curves(metrics, tmp_path / "curves.png", "a title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
