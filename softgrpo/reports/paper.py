"""What the paper reports, to stand beside one's own numbers.

`paper_results.csv` holds the tables of arXiv 2511.06411 (v2) as printed: table, model, method,
decoding, benchmark, metric, value (percent, or tokens) and a note where a number is suspect. The
paper's Pass@k is first-k of its 32 runs, except Pass@1, which is their mean.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("paper_results.csv")


@dataclass(frozen=True)
class PaperRow:
    """One method, decoded one way, on one benchmark.

    Attributes:
        model, method, decoding, benchmark: As the paper names them.
        values: By metric (``pass@1``, ``maj@32``, ``tokens``, ...); rates from 0 to 1.
        note: What is suspect about a value, else empty.
    """

    model: str
    method: str
    decoding: str
    benchmark: str
    values: dict[str, float]
    note: str


def paper_rows(model: str, benchmark: str) -> list[PaperRow]:
    """The paper's rows of a model on a benchmark, a method and decoding each.

    Args:
        model: The end of a hub id or path; compared without regard to case.
        benchmark: A name of softgrpo.tasks.BENCHMARKS, or ``average``.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    return [row for row in _all_rows() if row.model.lower() == name and row.benchmark == benchmark]


@cache
def _all_rows() -> tuple[PaperRow, ...]:
    rows: dict[tuple[str, str, str, str], PaperRow] = {}
    with _FILE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            key = line["model"], line["method"], line["decoding"], line["benchmark"]
            row = rows.get(key, PaperRow(*key, values={}, note=""))
            scale = 1.0 if line["metric"].startswith("tokens") else 100.0
            # Tables repeat some numbers; the first, of the main table, stands.
            row.values.setdefault(line["metric"], float(line["value"]) / scale)
            rows[key] = PaperRow(*key, values=row.values, note=row.note or line["note"])
    return tuple(rows.values())
