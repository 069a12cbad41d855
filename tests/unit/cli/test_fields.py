"""What help says of a recipe's fields is what the configs say."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest
from trl import GRPOConfig

from softgrpo.cli.fields import add_options, described, given_thinking
from softgrpo.runs.recipe import RunConfig
from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.fields import ThinkingFields
from softgrpo.training import SofTGRPOConfig
from softgrpo.training.fields import TrainingFields

SHOWN = (RunConfig, ThinkingFields, TrainingFields)


def test_a_field_is_shown_as_a_recipe_would_have_it():
    text = "\n".join(map(described, SHOWN))
    for line in (
        'think_end: ["</think>"]',
        "noise_clamp: [-1.5, 3.0]",
        "chat: true",
        "model: null",
    ):
        assert f"  {line} " in text
    words = " ".join(text.split())
    assert "gaussian, embedding_gaussian." in words
    assert "answer_top_p: 1.0 As top_p, for the answer. Must be in (0, 1]." in words
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_shown_is_what_a_run_takes_beside_trl_s_own_fields():
    taken = {f.name: f for f in fields(SofTGRPOConfig) if f.init}
    shown = {f.name: f for settings in (ThinkingFields, TrainingFields) for f in fields(settings)}
    assert taken.keys() == shown.keys() | {f.name for f in fields(GRPOConfig) if f.init}
    for item in fields(TrainingFields):
        assert (taken[item.name].default, taken[item.name].metadata) == (
            item.default, item.metadata
        )  # fmt: skip


def _options(*words):
    parser = argparse.ArgumentParser()
    add_options(parser, ThinkingFields)
    return given_thinking(parser.parse_args(words))


def test_an_option_is_a_field_s_and_has_no_default():
    assert _options() == {}
    given = _options(
        "--thinking", "soft", "--top-k", "3", "--min-p", ".5", "--noise-clamp", "-1", "2",
        "--think-end", "</t>", "--think-end", "####",
    )  # fmt: skip
    assert ThinkingConfig(**given) == ThinkingConfig(
        policy="soft", top_k=3, min_p=0.5, noise_clamp=(-1, 2), think_end=("</t>", "####")
    )


@pytest.mark.parametrize("item", fields(ThinkingFields), ids=lambda item: item.name)
def test_the_default_that_help_names_is_the_field_s(item):
    """Written after its option, it gives the default."""

    def _in_one_line(prog):
        return argparse.HelpFormatter(prog, max_help_position=100, width=10**4)

    parser = argparse.ArgumentParser(formatter_class=_in_one_line)
    add_options(parser, ThinkingFields)
    option = f"--{item.name.replace('_', '-')}"
    text = next(line for line in parser.format_help().splitlines() if f" {option} " in line)
    default = text.partition("Default: ")[2].removesuffix(".")
    if item.default is None:
        assert default == "none"
    else:
        assert ThinkingConfig(**_options(option, *default.split())) == ThinkingConfig()
