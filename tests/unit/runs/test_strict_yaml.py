"""A recipe's YAML is plain data of bounded size, and says each thing once."""

import pytest

from softgrpo.runs.strict_yaml import load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("a: 1\nb: [x, {c: null}]", {"a": 1, "b": ["x", {"c": None}]}), ("", None), ("- 1", [1]),
     ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
     ("a: {k: 1}\nb: {k: 2}", {"a": {"k": 1}, "b": {"k": 2}})],
)  # fmt: skip
def test_plain_data(text, value):
    assert load_yaml(text, "r.yaml") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tau: .1\na: 1\ntau: .2", "line 3: 'tau' is there twice"),
        ("a: {b: 1, b: 2}", "'b' is there twice"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested more than 30 deep"),
        ("a: " + "{b: " * 40 + "1" + "}" * 40, "nested more than 30 deep"),
        ("a: &a [x]\nb: [" + ", ".join(["*a"] * 21) + "]", "more than 20 aliases"),
        ("a: *missing", "undefined alias"),
        ("a: [1", "expected"),
        ("[a, b]: 1\n{c: d}: 2", "unhashable|found unhashable"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \x00", "special characters"),
        ("x" * 2**20 + "y", "characters; at most"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_refused_is_named(text, said):
    with pytest.raises(ValueError, match="^r.yaml: not YAML as it should be.*(" + said + ")"):
        load_yaml(text, "r.yaml")
