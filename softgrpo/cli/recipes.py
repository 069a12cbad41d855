"""`softgrpo recipes`: the recipes that ship, or the text of one."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from softgrpo.files import read_text
from softgrpo.runs.recipe_files import listed, shipped


def run(options: argparse.Namespace) -> int:
    """List what ships, a line each, or print one to save and edit.

    Raises:
        ValueError: Nothing of that name ships.
    """
    found = shipped()
    if options.name is None:
        width = max(map(len, listed()))
        for name in listed():
            print(f"{name.ljust(width)}  {_first_comment(found[name])}")
        return 0
    if options.name not in found:
        near = difflib.get_close_matches(options.name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else "softgrpo recipes lists them"
        raise ValueError(f"NAME={options.name}: no such recipe ships; {hint}")
    print(read_text(found[options.name]), end="")
    return 0


def _first_comment(path: Path) -> str:
    return read_text(path).partition("\n")[0].removeprefix("#").strip()
