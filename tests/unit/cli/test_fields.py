"""What help says of a recipe's fields is what the configs say."""

import inspect
from dataclasses import MISSING, fields

from softgrpo.cli.fields import Field, described, method_fields, run_fields
from softgrpo.training import SofTGRPOConfig


def test_the_methods_fields_are_those_of_the_dataclass():
    own = {name for name in inspect.get_annotations(SofTGRPOConfig)}
    expected = [
        Field(
            f.name,
            f.default if f.default_factory is MISSING else f.default_factory(),
            f.metadata["help"],
            tuple(f.metadata.get("choices", ())),
        )
        for f in fields(SofTGRPOConfig)
        if f.name in own and f.init
    ]
    assert sorted(method_fields()) == sorted(expected, key=lambda field: field.name)
    assert {"tau", "density", "think_end", "ddp_timeout"} <= {f.name for f in method_fields()}


def test_a_field_is_shown_as_a_recipe_would_have_it():
    text = described(run_fields() + method_fields())
    for line in (
        'think_end: ["</think>"]',
        "noise_clamp: [-1.5, 3.0]",
        "chat: true",
        "model: null",
    ):
        assert f"  {line} " in text
    assert "gaussian, embedding_gaussian." in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
