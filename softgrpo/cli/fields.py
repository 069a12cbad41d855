"""The fields of a recipe as help shows them: name, default, meaning.

Those of training are read from the source of `training/config.py`: to import it takes seconds.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from softgrpo.cli.recipe import RunConfig

_SOURCE = Path(__file__).parents[1] / "training" / "config.py"
_WIDTH = 100
_INDENT = 30


class Field(NamedTuple):
    """One field of a recipe; `choices` is empty where there is no list of them."""

    name: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()


def run_fields() -> list[Field]:
    """The fields of `RunConfig`."""
    return [
        Field(
            f.name,
            f.default if f.default_factory is MISSING else f.default_factory(),
            f.metadata["help"].replace("%%", "%"),
        )
        for f in fields(RunConfig)
    ]


def method_fields() -> list[Field]:
    """The fields that `SofTGRPOConfig` itself declares, those of TRL's with another default too."""
    module = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    config = next(n for n in module.body if getattr(n, "name", "") == "SofTGRPOConfig")
    return list(_declared(config, constants))


def _declared(config: ast.AST, constants: dict[str, ast.expr]) -> Iterator[Field]:
    for node in ast.iter_child_nodes(config):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(keywords=keywords)):
                given = {keyword.arg: keyword.value for keyword in keywords}
                if "metadata" not in given:
                    continue  # not the user's to set
                metadata = ast.literal_eval(given["metadata"])
                default = given.get("default", given.get("default_factory"))
                match default:
                    case ast.Lambda(body=body):
                        default = body
                    case ast.Name(id=constant):
                        default = constants[constant]
                assert default is not None
                choices = tuple(metadata.get("choices", ()))
                yield Field(name, ast.literal_eval(default), metadata["help"], choices)


def described(shown: list[Field]) -> str:
    """One paragraph a field, the default as it would stand in a recipe."""
    return "\n".join(map(_described, shown))


def _described(field: Field) -> str:
    head = f"  {field.name}: {json.dumps(field.default)}"
    choices = f" One of {', '.join(field.choices)}." if field.choices else ""
    lines = textwrap.wrap(field.meaning + choices, _WIDTH - _INDENT, break_on_hyphens=False)
    if len(head) < _INDENT:
        head = head.ljust(_INDENT) + lines.pop(0)
    return "\n".join([head, *(" " * _INDENT + line for line in lines)])
