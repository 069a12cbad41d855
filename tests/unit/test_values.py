"""A value is of its field's type and in its range, or is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from softgrpo.values import check, check_bounds, check_fields, shown


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int), (10**400, int), (1, float), (1.5, float), (np.float32(1), float), (True, bool),
        (np.int64(1), int), ("é", str), (None, int | None), (3, int | None), ([], list[str]),
        (["a", "b"], list[str]), (("a",), tuple[str, ...]), ((), tuple[str, ...]),
        ((0, 1.5), tuple[float, float]), ({"a": [1]}, dict[str, Any]), ("b", Literal["a", "b"]),
        ({"a": 1}, Mapping[str, int]), ({1: 2}, dict), (object(), Any),
        ([["q", "a"]], list[list[str]]),
    ],
)  # fmt: skip
def test_values_of_their_type(value, kind):
    check("field", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (True, int, "a whole number"), (1.0, int, "a whole number"), ("1", int, "a whole number"),
        (None, int, "a whole number"), (True, float, "a finite number"),
        (math.nan, float, "a finite number"), (-math.inf, float, "a finite number"),
        (10**400, float, "a finite number"), (1, bool, "true or false"), (1, str, "text"),
        (b"a", str, "text"), ([1], list[str], "a list, each item text"),
        ("ab", list[str], "a list"), (("a", 1), tuple[str, ...], "a list, each item text"),
        ("ab", tuple[str, ...], "a list"),
        ((1,), tuple[float, float], "a list of 2, each a finite number"),
        ({1: 2}, dict[str, Any], "a mapping"), ({"a": ""}, Mapping[str, int], "a mapping"),
        ([], dict[str, Any] | None, "a mapping {name: value} or null"),
        ("c", Literal["a", "b"], "one of a, b"), ([["q", 1]], list[list[str]], "a list"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused_by_name(value, kind, wanted):
    with pytest.raises(ValueError) as error:
        check("field", value, kind)
    assert str(error.value).startswith("field=") and f": must be {wanted}" in str(error.value)


@dataclass
class _Pair:
    first: int
    second: float | None = None


def test_a_dataclass_by_its_annotations():
    check_fields(_Pair(1, 2.5))
    with pytest.raises(ValueError, match="second='x': must be a finite number or null"):
        check_fields(_Pair(1, "x"))


@pytest.mark.parametrize("value", [4, -1, math.nan, 10**400])
def test_bounds(value):
    check_bounds(_Pair(3), {"first": (3, 3), "second": (0, None)})
    with pytest.raises(ValueError, match=r"first=.*: must be in \[0, 3\]"):
        check_bounds(_Pair(value), {"first": (0, 3)})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400])
def test_bounds_without_a_most_still_want_a_finite_number(value):
    with pytest.raises(ValueError, match="second=.*: must be >= 0"):
        check_bounds(_Pair(1, value), {"second": (0, None)})


def test_a_message_shows_the_beginning_of_a_value():
    assert shown({"a": 1}) == "{'a': 1}"
    assert len(shown("x" * 10_000)) < 100 and len(shown([10**5000])) < 100
