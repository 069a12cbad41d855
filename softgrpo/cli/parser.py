"""TRL's parser over a recipe's values: types are converted and checked, unknown names are refused.

It reads no file: that is `recipe.py`. The recipe cannot set environment variables, which TRL's own
way of reading a file would let it do.
"""

from __future__ import annotations

import copy
import typing
from enum import Enum
from typing import Any, NoReturn

from trl import TrlParser

from softgrpo.cli.recipe import RunConfig, unknown_field
from softgrpo.training import SofTGRPOConfig

_SECRETS = {"hub_token"}
_ONE_VALUE = {int, float, str, bool}
_TYPES = {
    name: set(typing.get_args(kind) or (kind,))
    for config in (RunConfig, SofTGRPOConfig)
    for name, kind in typing.get_type_hints(config).items()
}


class _Parser(TrlParser):
    """TrlParser that says what is wrong instead of printing four hundred options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def parse(
    values: dict[str, Any], arguments: list[str], where: str
) -> tuple[RunConfig, SofTGRPOConfig, dict[str, Any]]:
    """Values of a file, overridden by ``--field value`` arguments, as the two configs.

    The third is every field's value before the configs complete one another's: read again, it
    gives the same configs.
    """
    types: list[Any] = [RunConfig, SofTGRPOConfig]
    parser = _Parser(types, allow_abbrev=False, add_help=False)
    actions = {action.dest: action for action in parser._actions}
    for name, value in values.items():
        if name not in actions:
            raise unknown_field(str(name), list(actions), where)
        values = values | {name: _as_default(name, value, actions[name])}
    parser.set_defaults_with_config(**values)
    namespace, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if argument.startswith("--"):
            name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
            raise unknown_field(name, list(actions), "command line")
        raise ValueError(f"command line: {argument!r} belongs to no --field")
    given = {x.removeprefix("--").partition("=")[0] for x in arguments if x.startswith("--")}
    if "density" not in given and namespace.policy != parser.get_default("policy"):
        # The recipe's density is that of its own policy; another one trains by its default.
        parser.set_defaults(density=None)
        namespace, _ = parser.parse_known_args(arguments)
    merged = copy.deepcopy(vars(namespace))
    run, training = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    return run, training, {k: _plain(v) for k, v in merged.items() if k not in _SECRETS}


def _as_default(name: str, value: Any, action: Any) -> Any:
    """A YAML value as argparse takes a default: text is converted by the field's type."""
    if value is None:
        if _TYPES[name] <= _ONE_VALUE:
            raise ValueError(f"{name}: must have a value; leave the field out for its default")
        return None
    if action.nargs == "+":
        items = value if isinstance(value, list) else [value]
        try:
            return [action.type(item) for item in items]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={value!r}: {error}") from error
    if isinstance(value, (list, dict)):
        if _TYPES[name] <= {*_ONE_VALUE, type(None)}:
            raise ValueError(f"{name}={value!r}: must be one value")
        return value
    # So that a number in quotes and a text in a number's place meet the same check.
    return str(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
