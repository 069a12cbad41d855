"""Tables as text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Literal

Style = Literal["text", "markdown", "latex", "csv"]

_LATEX_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], style: Style = "text"
) -> str:
    """Cells as a table.

    Args:
        header: Column titles.
        rows: As many cells each.
        style: ``text`` for a terminal, ``markdown``, ``latex`` (a tabular environment) or ``csv``.
    """
    match style:
        case "markdown":
            return _markdown(header, rows)
        case "latex":
            return _latex(header, rows)
        case "csv":
            return _csv(header, rows)
        case _:
            return _text(header, rows)


def cell(value: float, form: str) -> str:
    """A number in a format of Python's, or - for NaN: there is none."""
    return "-" if math.isnan(value) else format(value, form)


def interval(mean: float, low: float, high: float, signed: bool = False) -> str:
    """A number with its interval: 0.464 [0.42, 0.50]."""
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines
    )


def _latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_escape_latex, cells)) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(header)}}}",
            r"\hline",
            line(header),
            r"\hline",
            *map(line, rows),
            r"\hline",
            r"\end{tabular}",
        ]
    )


def _escape_latex(text: str) -> str:
    escaped = re.sub(
        r"[\\~^&%$#_{}]", lambda found: _LATEX_ESCAPES.get(found[0], "\\" + found[0]), text
    )
    return escaped.replace("±", r"$\pm$")


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue().rstrip("\n")
