"""`softgrpo eval`: a model on benchmarks, recorded sample by sample."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields

from softgrpo.cli.fields import given_thinking
from softgrpo.runs.errors import RunFailed
from softgrpo.runs.eval_options import EvalOptions
from softgrpo.runs.evaluating import evaluate


def run(options: argparse.Namespace) -> int:
    """Evaluate, with the table of what is in the output folder; 130 when interrupted."""
    thinking = given_thinking(options)
    if options.no_think_end:
        thinking["think_end"] = ()
    own = {item.name for item in fields(EvalOptions)} - {"model"}
    given = {name: value for name, value in vars(options).items() if name in own}
    go_on = f"go on with: {shlex.join(['softgrpo', *sys.argv[1:]])}"
    try:
        evaluation = evaluate(options.model, **given, **thinking)
    except RunFailed as error:
        raise RunFailed(f"{error}; {go_on}") from error
    if evaluation.interrupted:
        print(f"\nwhat is finished is in {evaluation.output}; {go_on}", flush=True)
        return 130
    return 0
