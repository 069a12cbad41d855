"""The settings of thinking are written once, and whoever has them takes them from there."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated

from transformers import HfArgumentParser

from softgrpo.cli.fields import add_options, described
from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.fields import ThinkingFields
from softgrpo.training.config import SofTGRPOConfig, recipe_fields
from softgrpo.values import at_least


@dataclass(frozen=True)
class _More(ThinkingFields):
    heat: Annotated[int, at_least(1)] = field(default=2, metadata={"help": "How warm it is."})
    names: tuple[str, ...] = field(default=("a",), metadata={"help": "Some names."})


def test_a_new_field_is_a_recipe_s():
    recipe = make_dataclass("_Recipe", recipe_fields(_More))
    (parsed,) = HfArgumentParser(recipe).parse_args_into_dataclasses(
        ["--heat", "3", "--names", "b", "c"], look_for_args_file=False
    )
    assert (parsed.heat, parsed.names) == (3, ["b", "c"])
    assert recipe() == recipe(heat=2, names=["a"])


def test_a_new_field_is_an_option_of_the_command_line():
    parser = argparse.ArgumentParser()
    add_options(parser, _More)
    options = parser.parse_args(["--heat", "3", "--names", "b", "--names", "c"])
    assert (options.heat, options.names) == (3, ["b", "c"])


def test_a_new_field_is_shown_with_its_default_and_range():
    assert "heat: 2 How warm it is. Must be >= 1." in " ".join(described(_More).split())


def test_the_fields_of_thinking_are_these():
    assert [f.name for f in fields(ThinkingConfig)] == [f.name for f in fields(ThinkingFields)]
    assert [f.default for f in fields(ThinkingConfig)] == [
        f.default for f in fields(ThinkingFields)
    ]


def test_a_recipe_that_says_nothing_thinks_by_the_defaults(tmp_path):
    config = SofTGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert config.thinking == ThinkingConfig()
