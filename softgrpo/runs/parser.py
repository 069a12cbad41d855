"""TRL's parser over a recipe's values: types are converted and checked, unknown names are refused.

It reads no file: that is `recipe.py`. The recipe cannot set environment variables, which TRL's own
way of reading a file would let it do.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from trl import TrlParser

from softgrpo.files import read_json
from softgrpo.runs.recipe import SECRETS, Changes, RunConfig, field_name, unknown_field
from softgrpo.training import SofTGRPOConfig
from softgrpo.values import check, fits, shown, type_hints

_OF_TRAINING = type_hints(SofTGRPOConfig)
_TYPES = type_hints(RunConfig) | _OF_TRAINING
# transformers takes a text for the name of a JSON file that holds the mapping.
_FROM_FILES = {"accelerator_config", "deepspeed", "fsdp_config"}


class _Parser(TrlParser):
    """TrlParser that says what is wrong instead of printing four hundred options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def parse(
    values: dict[str, Any], changes: Changes, where: str
) -> tuple[RunConfig, SofTGRPOConfig, dict[str, Any]]:
    """Values of a recipe, with changes over them, as the two configs.

    The third is every field's value before the configs complete one another's: read again, it
    gives the same configs.
    """
    fields, arguments = (changes, []) if isinstance(changes, Mapping) else ({}, list(changes))
    types: list[Any] = [RunConfig, SofTGRPOConfig]
    parser = _Parser(types, allow_abbrev=False, add_help=False)
    actions = {action.dest: action for action in parser._actions}
    defaults = {name: action.default for name, action in actions.items()}
    of_recipe = _as_defaults(values, actions, where)
    over_it = _as_defaults(fields, actions, "fields")
    parser.set_defaults_with_config(**of_recipe)
    policy = parser.get_default("policy")
    parser.set_defaults_with_config(**over_it)
    namespace, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if (name := field_name(argument)) is not None:
            raise unknown_field(name, list(actions), "command line")
        raise ValueError(f"command line: {argument!r} belongs to no --field")
    if (
        "density" not in fields.keys() | set(map(field_name, arguments))
        and namespace.policy != policy
    ):
        # The recipe's density is that of its own policy; another one trains by its default.
        parser.set_defaults(density=None)
        namespace, _ = parser.parse_known_args(arguments)
    merged = copy.deepcopy(vars(namespace))
    for name in _OF_TRAINING.keys() & merged.keys():  # RunConfig checks its own
        if merged[name] != defaults[name]:
            merged[name] = _checked(name, merged[name], actions[name].choices)
    try:
        run, training = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError:
        raise
    except Exception as error:  # transformers' own checks end in any other
        raise ValueError(f"{where}: transformers refuses a value of it: {error}") from error
    return run, training, {k: _plain(v) for k, v in merged.items() if k not in SECRETS}


def _as_defaults(
    values: Mapping[str, Any], actions: Mapping[str, Any], where: str
) -> dict[str, Any]:
    for name in values:
        if name not in actions:
            raise unknown_field(str(name), list(actions), where)
    return {name: _as_default(name, value, actions[name]) for name, value in values.items()}


def _as_default(name: str, value: Any, action: Any) -> Any:
    """A YAML value as argparse takes a default: text is converted by the field's type."""
    if value is None:
        if action.default is not None and not fits(None, _TYPES[name]):
            raise ValueError(f"{name}: must have a value; leave the field out for its default")
        return None
    if action.nargs == "+":
        items = value if isinstance(value, list) else [value]
        try:
            return [action.type(item) for item in items]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={shown(value)}: {error}") from error
    # So that a number in quotes and a text in a number's place meet the same check.
    return value if isinstance(value, (list, dict)) else str(value)


def _checked(name: str, value: Any, choices: Any) -> Any:
    """A value that was given, of its field's type; a mapping in JSON as that mapping."""
    if isinstance(value, str) and fits({}, _OF_TRAINING[name]):
        return _mapping(name, value)
    check(name, value, _OF_TRAINING[name])
    # argparse looks at the command line's alone.
    if choices and value is not None and _plain(value) not in choices:
        raise ValueError(f"{name}={shown(value)}: choose from {', '.join(map(str, choices))}")
    return value


def _mapping(name: str, text: str) -> Any:
    is_file = name in _FROM_FILES and not text.startswith("{")
    try:
        value = read_json(Path(text)) if is_file else json.loads(text)
        check(name, value, dict[str, Any])
    except (OSError, ValueError, RecursionError) as error:
        wanted = "a mapping {name: value}" + (" or a JSON file that holds one" if is_file else "")
        raise ValueError(f"{name}={shown(text)}: must be {wanted}: {error}") from error
    return text if is_file else value


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
