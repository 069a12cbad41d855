"""Where the fields of a recipe come from: files, names of those that ship, and what they extend.

Fields as they are written, unchecked: `recipe.py` makes a run of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softgrpo.files import read_text
from softgrpo.runs.strict_yaml import load_yaml
from softgrpo.values import check

SHIPPED = Path(__file__).parents[1] / "recipes"
# Pieces that recipes are made of, for a machine, and for another program: no run by themselves.
_PIECES = ("parts", "on", "accelerate")


def shipped() -> dict[str, Path]:
    """Every file that ships, by its name: recipes, pieces of them, accelerate's configs."""
    files = sorted(SHIPPED.rglob("*.yaml"))
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in files}


def runs_that_ship() -> list[str]:
    """The names that are a run by themselves."""
    return [name for name in shipped() if not set(_PIECES) & set(Path(name).parts)]


def find(name: str, folder: Path = Path()) -> Path:
    """The file of a name: one of that path, seen from the folder, or else one that ships."""
    path = folder / name
    return path if path.is_file() else shipped().get(name, path)


def read_recipes(names: Sequence[str]) -> dict[str, Any]:
    """The fields of recipes that are read over one another, the last one's above all.

    Args:
        names: Paths, and names of those that ship.

    Raises:
        ValueError: There is no such recipe, or it holds no fields; names it.
    """
    values: dict[str, Any] = {}
    for name in names:
        values |= read_yaml(name)
    return values


def read_yaml(name: str) -> dict[str, Any]:
    """The fields of one recipe, with those that it extends; raises as ``read_recipes``."""
    return _read(name, Path(), ())


def extended(
    values: dict[str, Any], where: str, folder: Path = Path(), above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Fields over those of the recipes that ``extends`` names, of which later ones win.

    Args:
        values: Of a recipe.
        where: What messages call it.
        folder: From which its names are seen.
        above: The files that led here.

    Raises:
        ValueError: As ``read_recipes``, or files that extend one another.
    """
    own = dict(values)
    names = own.pop("extends", [])
    check(f"{where}: extends", names, list[str])
    found: dict[str, Any] = {}
    for name in names:
        found |= _read(name, folder, above)
    return found | own


def _read(name: str, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = find(name, folder)
    try:
        values = load_yaml(read_text(path), str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such recipe; a file, or one of {', '.join(runs_that_ship())}; it comes "
            "first: softgrpo train RECIPE --field value"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold fields, `name: value`, one a line")
    place = path.resolve()
    if place in above:
        circle = " -> ".join(str(file) for file in (*above[above.index(place) :], place))
        raise ValueError(f"{path}: extends: goes round in a circle: {circle}")
    return extended(values, str(path), path.parent, (*above, place))
