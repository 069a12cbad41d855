"""Fields of a recipe as help shows them, and those of thinking as options of a command."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import MISSING, Field, fields
from typing import Any, get_args

from softgrpo.thinking.fields import MixerName, ThinkingFields
from softgrpo.values import Range, ranges, type_hints, without_none

_WIDTH = 100
_INDENT = 30

# How an option of each type is read.
_READING: dict[Any, dict[str, Any]] = {
    MixerName: {},
    float: {"type": float},
    int: {"type": int},
    tuple[float, float]: {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
    tuple[str, ...]: {"action": "append", "metavar": "TEXT"},
    list[str]: {"type": lambda text: [name.strip() for name in text.split(",")]},
    str: {},
    bool: {"action": "store_true"},
}


def described(settings: type) -> str:
    """The fields of a dataclass, one paragraph each, the default as it would stand in a recipe."""
    wanted = ranges(settings)
    return "\n".join(_described(item, wanted.get(item.name)) for item in fields(settings))


def add_options(parser: argparse._ActionsContainer, settings: type) -> None:
    """An option for each field of ThinkingFields, or of a class like it, that has a help.

    None of them has a default: a run's own may come before the field's, which help names.
    """
    kinds, wanted = type_hints(settings), ranges(settings)
    for item in (item for item in fields(settings) if "help" in item.metadata):
        kind = without_none(kinds[item.name])
        names = [f"--{item.name.replace('_', '-')}"]
        if item.name == "policy":
            names.append("--thinking")
        text = _meaning(item, wanted.get(item.name))
        if kind == tuple[str, ...]:
            text += " Can be repeated."
        if kind is not bool:
            text += f" Default: {_default(item)}."
        reading = _READING.get(kind, {"choices": get_args(kind)})
        parser.add_argument(*names, help=text, **reading)


def given_thinking(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of ThinkingConfig that the command line sets."""
    given = {item.name: getattr(options, item.name, None) for item in fields(ThinkingFields)}
    return {name: value for name, value in given.items() if value is not None}


def _described(item: Field[Any], wanted: Range | None) -> str:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    head = f"  {item.name}: {json.dumps(default)}"
    text = _meaning(item, wanted).replace("%%", "%")  # it is written for argparse
    lines = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False)
    if len(head) < _INDENT:
        head = head.ljust(_INDENT) + lines.pop(0)
    return "\n".join([head, *(" " * _INDENT + line for line in lines)])


def _meaning(item: Field[Any], wanted: Range | None) -> str:
    must = f" Must be {wanted.words}." if wanted else ""
    choices = item.metadata.get("choices")
    return item.metadata["help"] + must + (f" One of {', '.join(choices)}." if choices else "")


def _default(item: Field[Any]) -> str:
    values = item.default if isinstance(item.default, tuple) else [item.default]
    return "none" if values == [None] else " ".join(map(str, values)) or "none"
