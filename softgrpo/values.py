"""Whether values are of the types and in the ranges that their fields say; refused by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_MOST = sys.float_info.max
_MOST_SHOWN = 80  # characters


@dataclass(frozen=True)
class Range:
    """Which values a field may have: stands in its annotation, ``Annotated[int, at_least(1)]``."""

    words: str  # it, as a message and help say it after "must be"
    holds: Callable[[Any], Any]  # of a value, whether it is in the range; of a tensor, which are


# All compare so that NaN, which is neither less nor more, is outside.
def at_least(least: float, more: str = "") -> Range:
    """Finite numbers from ``least``; ``more`` is what else is said of them."""
    return Range(f">= {least}{more}", lambda x: (x >= least) & _is_below_inf(x))


def above(limit: float, more: str = "") -> Range:
    """Finite numbers above ``limit``; ``more`` is what else is said of them."""
    return Range(f"> {limit}{more}", lambda x: (x > limit) & _is_below_inf(x))


def _is_below_inf(x: Any) -> Any:
    # A whole number may be beyond every float, and numpy's small floats do not reach the largest.
    return x <= _MOST if isinstance(x, int) else x < math.inf


def between(least: float, most: float) -> Range:
    """Numbers from ``least`` to ``most``."""
    return Range(f"in [{least}, {most}]", lambda x: (x >= least) & (x <= most))


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


def check_fields(instance: Any, any_type: Collection[str] = ()) -> None:
    """Hold every field of a dataclass to its annotation, first to the type, then to the range.

    Args:
        instance: It.
        any_type: Fields of which the range alone is looked at.

    Raises:
        ValueError: Names the first field that is not as it says, its value, and what would do.
    """
    kind: type = type(instance)
    kinds = type_hints(kind)
    for item in fields(instance):
        if item.name not in any_type:
            check(item.name, getattr(instance, item.name), kinds[item.name])
    check_ranges(instance, ranges(kind))


def check_ranges(instance: Any, ranges: Mapping[str, Range]) -> None:
    """Hold attributes to their ranges; None is in every range.

    Raises:
        ValueError: Names the first that is outside, its value, and what would do.
    """
    for name, wanted in ranges.items():
        value = getattr(instance, name)
        if value is not None and not is_all(wanted.holds(value)):
            raise ValueError(f"{name}={shown(value)}: must be {wanted.words}")


def is_all(holds: Any) -> bool:
    """A truth, or whether all of a tensor are true; it needs no torch."""
    return holds if isinstance(holds, bool) else bool(holds.all())


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


@lru_cache
def ranges(kind: type) -> dict[str, Range]:
    """The ranges in the annotations of a class and its parents, by field."""
    return {
        name: wanted
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for wanted in getattr(hint, "__metadata__", ())
        if isinstance(wanted, Range)
    }


def without_none(kind: Any) -> Any:
    """The type of an optional field's values that are not None; any other type itself."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return next(choice for choice in get_args(kind) if choice is not NoneType)


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
