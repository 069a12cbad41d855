"""Whether values are of the types and in the ranges that their fields say; refused by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Bounds = tuple[float, float | None]
"""The least and the most that a number may be; None: any finite number."""

_MOST = sys.float_info.max
_MOST_SHOWN = 80  # characters


def check(name: str, value: object, kind: Any) -> None:
    """Hold a value to a type.

    Args:
        name: What the message calls it.
        value: Anything.
        kind: A type as in an annotation. A float is finite and may be a whole number, and a bool
            is no number.

    Raises:
        ValueError: It is of another type.
    """
    if not fits(value, kind):
        raise ValueError(f"{name}={shown(value)}: must be {_words(kind)}")


def check_fields(instance: Any, except_for: Collection[str] = ()) -> None:
    """Hold every field of a dataclass to its annotation, but for some.

    Raises:
        ValueError: Names the first field that is of another type, its value, and what would do.
    """
    kind: type = type(instance)
    kinds = type_hints(kind)
    for item in fields(instance):
        if item.name in except_for:
            continue
        check(item.name, getattr(instance, item.name), kinds[item.name])


def check_bounds(instance: Any, bounds: Mapping[str, Bounds]) -> None:
    """Hold fields that are numbers to their bounds; None has none.

    Raises:
        ValueError: Names the first field that is out of them, its value, and what would do.
    """
    for name, (least, most) in bounds.items():
        value = getattr(instance, name)
        # So put that NaN, which is neither less nor more, is refused too.
        if value is not None and not least <= value <= (_MOST if most is None else most):
            wanted = f">= {least}" if most is None else f"in [{least}, {most}]"
            raise ValueError(f"{name}={shown(value)}: must be {wanted}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; see ``check``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, origin) and all(
            fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items()
        )
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    # Of an annotation that is no class nothing is known.
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def shown(value: object) -> str:
    """A value as a message shows it: its beginning."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "a value with a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


@lru_cache
def type_hints(kind: type) -> dict[str, Any]:
    """The annotations of a class and its parents, by field."""
    return get_type_hints(kind)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    dict: "a mapping {name: value}",
    Mapping: "a mapping {name: value}",
    NoneType: "null",
}


def _words(kind: Any) -> str:
    """A type in a message's words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return f"a list, each item {_words(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {_words(inner[0])}"
    return _WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))
