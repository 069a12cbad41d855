"""YAML as a recipe needs it: plain data, each key once, of bounded size and depth.

A few lines of YAML can stand for gigabytes (an alias of aliases), or for more nesting than Python
has a stack for; and of two values of one key YAML keeps the last without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from softgrpo.values import shown

_MAX_LENGTH = 2**20  # characters
_MAX_DEPTH, _MAX_ALIASES = 30, 20


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: {key.value!r} is there twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, where: str) -> Any:
    """Plain data from YAML, which messages call ``where``.

    Raises:
        ValueError: It is no YAML, has a key twice, or is too large or too deep.
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: not YAML as it should be: {reason}") from error


def plain(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Python values as a file would have them: plain data, lists for tuples, text for paths.

    Raises:
        ValueError: A value is something else, or as load_yaml; names it.
    """
    found = {}
    for name, value in values.items():
        try:
            text = yaml.safe_dump(str(value) if isinstance(value, Path) else value)
        except yaml.YAMLError as error:
            wanted = "a number, text, a list, a mapping or None"
            raise ValueError(f"{where}: {name}={shown(value)}: must be {wanted}") from error
        found[name] = load_yaml(text, f"{where}: {name}")
    return found


def _check_size(text: str) -> None:
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"{len(text):,} characters; at most {_MAX_LENGTH:,}")
    depth = aliases = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > _MAX_DEPTH or aliases > _MAX_ALIASES:
            raise ValueError(
                f"nested more than {_MAX_DEPTH} deep, or more than {_MAX_ALIASES} aliases"
            )
