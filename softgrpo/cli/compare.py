"""`softgrpo compare`: the table of evaluations, printed or written."""

from __future__ import annotations

import argparse
from pathlib import Path

from softgrpo.evaluation import is_records
from softgrpo.files import require_regular, write_whole
from softgrpo.runs.comparing import compare, is_table
from softgrpo.runs.errors import OptionError


def run(options: argparse.Namespace) -> int:
    """Print the table, the tests and the notes in the format asked for, or write them."""
    path = Path(options.output) if options.output else None
    if path:
        _check(path)
    text = compare(options.results, options.k, options.format, options.paper)
    if path:
        write_whole(path, text + "\n")
        print(f"written to {path}")
    else:
        print(text)
    return 0


def _check(path: Path) -> None:
    """Refuse to write a table over what is none."""
    require_regular(path)
    if path.exists() and not is_table(path):
        what = "is a file of records" if is_records(path) else "is there and holds no table"
        raise OptionError("output", path, f"{what}; choose another name")
