"""`softgrpo train`: a recipe's run, from its checks to its table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from softgrpo.runs.display import Display
from softgrpo.runs.training import start


def run(options: argparse.Namespace, fields: Sequence[str]) -> int:
    """Train; 130 when interrupted. The fields are ``--field value``, as they were given."""
    outcome = start(options.recipe, fields, options.resume, options.overwrite, Display())
    return 130 if outcome.interrupted else 0
