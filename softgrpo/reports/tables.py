"""Tables as text, Markdown, LaTeX or CSV; the one of a run before and after training."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

Summary = Mapping[str, float]
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


def before_after_table(
    before: Mapping[str, Summary], after: Mapping[str, Summary], style: Style = "text"
) -> str:
    """One row a decoding: pass@1 with its standard error, tokens, and how samples ended.

    Args:
        before: Summaries (softgrpo.evaluation) by decoding.
        after: The same after training; a decoding that is missing here has dashes.
        style: See format_table.
    """
    header = [
        "decoding",
        "pass@1 before",
        "after",
        "change",
        "tokens",
        "thinking closed",
        "truncated",
    ]
    rows = [_row(name, before[name], after.get(name)) for name in before]
    return format_table(header, rows, style)


def plus_minus(value: float, error: float, signed: bool = False) -> str:
    """A number with its standard error: ``.464 ± .021`` as 0.464 ± 0.021."""
    number = f"{value:+.3f}" if signed else f"{value:.3f}"
    return number if math.isnan(error) else f"{number} ± {error:.3f}"


def interval(mean: float, low: float, high: float, signed: bool = False) -> str:
    """A number with its interval: 0.464 [0.42, 0.50]."""
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _row(name: str, before: Summary, after: Summary | None) -> list[str]:
    first = plus_minus(before["pass_at_1"], before["standard_error"])
    tokens, closed = f"{before['mean_tokens']:.1f}", f"{before['share_closed']:.0%}"
    truncated = f"{before['share_truncated']:.0%}"
    if after is None:
        return [name, first, "-", "-", tokens, closed, truncated]
    # The problems are the same, so this error, of independent ones, is rather too large.
    error = math.hypot(before["standard_error"], after["standard_error"])
    return [
        name,
        first,
        plus_minus(after["pass_at_1"], after["standard_error"]),
        plus_minus(after["pass_at_1"] - before["pass_at_1"], error, signed=True),
        f"{tokens} -> {after['mean_tokens']:.1f}",
        f"{closed} -> {after['share_closed']:.0%}",
        f"{truncated} -> {after['share_truncated']:.0%}",
    ]


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
