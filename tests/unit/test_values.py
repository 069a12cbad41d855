"""A value is of its field's type and in its range, or is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from softgrpo.values import (
    above,
    at_least,
    between,
    check,
    check_fields,
    check_ranges,
    ranges,
    shown,
    without_none,
)


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


@dataclass
class _Ranged:
    first: Annotated[int, between(0, 3)]
    second: Annotated[float | None, at_least(0, " or so")] = None
    third: Annotated[int, above(0)] = 1


def test_a_range_in_an_annotation_is_held_to_and_said():
    assert {name: wanted.words for name, wanted in ranges(_Ranged).items()} == {
        "first": "in [0, 3]", "second": ">= 0 or so", "third": "> 0"
    }  # fmt: skip
    check_fields(_Ranged(3, 0.0))
    with pytest.raises(ValueError, match=r"^first=4: must be in \[0, 3\]$"):
        check_fields(_Ranged(4, 0.0))
    with pytest.raises(ValueError, match=r"^second=-1: must be >= 0 or so$"):
        check_fields(_Ranged(3, -1))


def test_a_type_is_looked_at_before_a_range_or_not_at_all():
    with pytest.raises(ValueError, match="first='4': must be a whole number"):
        check_fields(_Ranged("4"))
    check_fields(_Ranged(2.5), any_type=["first"])
    with pytest.raises(ValueError, match="first=3.5: must be in"):
        check_fields(_Ranged(3.5), any_type=["first"])


@pytest.mark.parametrize(
    "value", [-1, math.nan, math.inf, 10**400, np.float32(-1), torch.tensor([1.0, -1.0])]
)
@pytest.mark.parametrize("wanted", [at_least(0), above(-1), between(0, 3)], ids=lambda r: r.words)
def test_what_is_outside_of_every_range(value, wanted):
    with pytest.raises(ValueError, match="first=.*: must be "):
        check_ranges(_Pair(value), {"first": wanted})


@pytest.mark.parametrize("value", [1, 2.5, np.float32(1), torch.tensor([1, 3]), None])
@pytest.mark.parametrize("wanted", [at_least(1), above(0.5), between(1, 3)], ids=lambda r: r.words)
def test_what_is_inside(value, wanted):
    check_ranges(_Pair(value), {"first": wanted})


@pytest.mark.parametrize(
    ("kind", "plain"),
    [(int | None, int), (int, int), (tuple[float, float] | None, tuple[float, float])],
)
def test_the_type_of_what_is_not_none(kind, plain):
    assert without_none(kind) == plain


def test_a_message_shows_the_beginning_of_a_value():
    assert shown({"a": 1}) == "{'a': 1}"
    assert len(shown("x" * 10_000)) < 100 and len(shown([10**5000])) < 100
