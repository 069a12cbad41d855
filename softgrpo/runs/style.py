"""How a model is to think and to be prompted: a run's own way, then what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from softgrpo.runs.problems import prompt_format
from softgrpo.runs.recipe import RunConfig
from softgrpo.runs.recipe_files import read_yaml
from softgrpo.tasks import PromptFormat
from softgrpo.thinking import ThinkingConfig
from softgrpo.values import check


@dataclass(frozen=True)
class Style:
    """How a model thinks and is prompted."""

    thinking: ThinkingConfig
    prompt: PromptFormat
    chat: bool = True  # whether prompts go through the chat template
    # What else the run says that the model comes from; None for other models.
    run: RunConfig | None = None
    max_new_tokens: int | None = None
    template_options: Mapping[str, Any] | None = None  # variables for the chat template


def read_style(model: str, given: Mapping[str, Any]) -> Style:
    """The way of a model's own run, if it has one, changed by fields of ThinkingConfig.

    Raises:
        ValueError: A value of no use; names the field.
    """
    folder = Path(model)
    recipes = [place / "config.yaml" for place in (folder, folder.parent)]
    recipe = next((path for path in recipes if path.exists()), None)
    if recipe is None:
        return Style(ThinkingConfig(**given), PromptFormat(separator=""))
    values = read_yaml(str(recipe))
    check("max_completion_length", values.get("max_completion_length"), int | None)
    check("chat_template_kwargs", values.get("chat_template_kwargs"), dict[str, Any] | None)
    thinking = {f.name: values[f.name] for f in fields(ThinkingConfig) if f.name in values}
    if thinking.get("min_p") is None:
        thinking["min_p"] = 0.0  # TRL's own default is None
    config = RunConfig(**{f.name: values[f.name] for f in fields(RunConfig) if f.name in values})
    return Style(
        replace(ThinkingConfig(**thinking), **given),
        prompt_format(config),
        config.chat,
        config,
        values.get("max_completion_length"),
        values.get("chat_template_kwargs"),
    )
