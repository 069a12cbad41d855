"""Tables say what the numbers are; curves are drawn from whatever a run has logged."""

import json
import math
import re

import pytest

from softgrpo.reports import before_after_table, draw_curves, read_metrics
from softgrpo.reports.curves import running_mean


def _summary(value: float, error: float, tokens: float = 20.0, closed: float = 1.0) -> dict:
    return {
        "pass_at_1": value,
        "standard_error": error,
        "mean_tokens": tokens,
        "share_closed": closed,
        "share_truncated": 0.25,
    }


def test_table_as_text():
    before = {"soft": _summary(0.464, 0.03, 24.4, 0.83)}
    after = {"soft": _summary(0.844, 0.04, 22.0, 1.0)}
    header, rule, row = before_after_table(before, after).splitlines()
    cells = ["0.464 ± 0.030", "0.844 ± 0.040", "+0.380 ± 0.050", "24.4 -> 22.0", "83% -> 100%",
             "25% -> 25%"]  # fmt: skip
    # Every cell starts under its column's name.
    starts = [match.start() for match in re.finditer(r"\S+( \S+)*", header)]
    assert [row.index(cell) for cell in cells] == starts[1:]
    assert set(rule) == {"-", " "}


def test_table_as_markdown_and_without_an_after():
    table = before_after_table({"soft": _summary(0.5, math.nan)}, {}, "markdown")
    assert table.splitlines()[2] == "| soft | 0.500 | - | - | 20.0 | 100% | 25% |"


def test_running_mean():
    assert running_mean([1.0, 3.0, 5.0, 7.0], width=2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("extra", [{}, {"kl": 0.1, "entropy": 1.0, "loss": math.nan}])
def test_curves(tmp_path, extra):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"step": i, "reward": i / 5, **extra} for i in range(1, 5)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 4, "train_runtime": 1.0}])
    metrics.write_text(text + '{"step": 5, "rew')  # killed while writing
    assert read_metrics(metrics)[-1]["step"] == 4
    draw_curves(metrics, tmp_path / "curves.png", "a title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
