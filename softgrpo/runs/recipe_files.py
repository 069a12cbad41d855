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


def shipped() -> dict[str, Path]:
    """Every file that ships, by its name: recipes, pieces of them, accelerate's configs."""
    files = sorted(SHIPPED.rglob("*.yaml"))
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in files}


def listed() -> list[str]:
    """What of it a user would name: all but the pieces that recipes are made of."""
    return [name for name in shipped() if "parts" not in Path(name).parts]


def find(name: str, folder: Path = Path()) -> Path:
    """The file of a name: one of that path, seen from the folder, or else one that ships."""
    path = folder / name
    return path if path.is_file() else shipped().get(name, path)


def read_recipes(recipes: Sequence[str]) -> dict[str, Any]:
    """The fields of recipes that are read over one another, the last one's above all.

    Args:
        recipes: Paths, and names of those that ship.

    Raises:
        ValueError: There is no such recipe, or it holds no fields; names it.
    """
    values: dict[str, Any] = {}
    for name in recipes:
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
    below = own.pop("extends", [])
    check(f"{where}: extends", below, list[str])
    found: dict[str, Any] = {}
    for name in below:
        found |= _read(name, folder, above)
    return found | own


def _read(name: str, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = find(name, folder)
    try:
        values = load_yaml(read_text(path), str(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such recipe; a file, or one of {', '.join(listed())}; recipes come "
            "first: softgrpo train RECIPE --field value"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold fields, `name: value`, one a line")
    place = path.resolve()
    if place in above:
        circle = " -> ".join(str(file) for file in (*above[above.index(place) :], place))
        raise ValueError(f"{path}: extends: goes round in a circle: {circle}")
    return extended(values, str(path), path.parent, (*above, place))
