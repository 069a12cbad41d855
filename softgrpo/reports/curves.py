"""The learning curves of a run: its metrics.jsonl as one picture of four panels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RUNNING = 10
_LARGEST = 1e300
_COLORS = {"main": "#1f5fa8", "second": "#c8553d", "light": "#9db8d6"}


def read_logs(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order, each a step with numbers and nulls.

    What is none is left out: a line that was cut off in writing, or that somebody has written into.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_log(row):
            rows.append(row)
    return rows


def _is_log(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    values = [value for value in row.values() if value is not None]
    return all(isinstance(x, int | float) and not abs(x) > _LARGEST for x in values)  # NaN is one


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The training lines among ``read_logs``: not every step makes a rollout."""
    return [row for row in read_logs(path) if "loss" in row or "reward" in row]


def draw_curves(metrics: Path, picture: Path, title: str = "") -> None:
    """Draw reward, loss and KL, entropy and effective support, and lengths over the steps.

    Args:
        metrics: A run's metrics.jsonl with at least one training line.
        picture: The PNG to write.
        title: What stands over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(metrics)
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    (reward, loss), (spread, length) = panels
    _reward(reward, rows)
    loss.set_title("Loss and KL divergence from the reference model", loc="left")
    _pair(loss, rows, ("loss", "loss"), ("kl", "KL (nats per token)"))
    spread.set_title("How much is left to explore", loc="left")
    _pair(
        spread,
        rows,
        ("entropy", "entropy (nats)"),
        ("soft/effective_support", "effective support (tokens)"),
    )
    length.set_title("Length, and thinking that ended before the limit", loc="left")
    _pair(
        length,
        rows,
        ("completions/mean_length", "completion length (tokens)"),
        ("soft/thinking_closed", "thinking closed (share)"),
    )
    length.figure.axes[-1].set_ylim(-0.03, 1.03)
    for panel in (reward, loss, spread, length):
        panel.set_xlabel("optimizer step")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(axis="y", color="#e6e6e6")
        panel.spines[["top"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def running_mean(values: Sequence[float], width: int = _RUNNING) -> list[float]:
    """The mean of each value and up to width - 1 before it."""
    windows = (values[max(0, i + 1 - width) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _reward(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    steps, rewards = _series(rows, "reward")
    panel.plot(steps, rewards, color=_COLORS["light"], linewidth=1, label="one log")
    panel.plot(
        steps,
        running_mean(rewards),
        color=_COLORS["main"],
        linewidth=2,
        label=f"mean of {_RUNNING} logs",
    )
    panel.set_ylabel("training reward")
    panel.set_title("Reward", loc="left")
    panel.spines[["right"]].set_visible(False)
    # Above the panel, where it hides no curve.
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2)


def _pair(
    panel: Any, rows: Sequence[dict[str, Any]], left: tuple[str, str], right: tuple[str, str]
) -> None:
    """Two quantities over the same steps, each with its own axis in its own colour."""
    for axis, (key, label), color in (
        (panel, left, _COLORS["main"]),
        (panel.twinx(), right, _COLORS["second"]),
    ):
        steps, values = _series(rows, key)
        axis.plot(steps, values, color=color, linewidth=1.5)
        axis.set_ylabel(label if values else f"{label}: not logged", color=color)
        axis.tick_params(axis="y", colors=color)
        axis.spines[["top"]].set_visible(False)
        if not values:
            axis.set_yticks([])


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]
