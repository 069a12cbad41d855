"""An evaluation on disk: one line a sample, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from softgrpo.evaluation.evaluate import Evaluation


def write_records(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSONL: its cost in the first line, then its records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cost = {"seconds": evaluation.seconds, "cpu_seconds": evaluation.cpu_seconds}
    lines = [json.dumps(row, ensure_ascii=False) for row in ({"cost": cost}, *evaluation.records)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)  # a killed run leaves no half of a file behind


def read_records(path: Path) -> Evaluation:
    """Read what `write_records` wrote."""
    # Not splitlines(), which also splits at characters that JSON leaves as they are.
    first, *rest = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return Evaluation([json.loads(line) for line in rest], **json.loads(first)["cost"])
