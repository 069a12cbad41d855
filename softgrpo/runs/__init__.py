"""Runs from Python: what the command line does, as functions that return objects.

    from softgrpo import runs

    run = runs.train("lab", learning_rate=5e-6, output_dir="runs/slower")
    run.after["soft"].pass_at_1
    runs.evaluate("runs/slower", samples=8).results
    print(runs.compare(["runs/slower"]))

The names are imported when first used: ``from softgrpo import runs`` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softgrpo.lazy import lookup

if TYPE_CHECKING:
    from softgrpo.runs.comparing import compare
    from softgrpo.runs.display import Display, Silent
    from softgrpo.runs.errors import RunFailed
    from softgrpo.runs.evaluating import Evaluation, evaluate
    from softgrpo.runs.outcome import Outcome
    from softgrpo.runs.training import train

__getattr__ = lookup(
    __name__,
    {
        "Display": "display",
        "Evaluation": "evaluating",
        "Outcome": "outcome",
        "RunFailed": "errors",
        "Silent": "display",
        "compare": "comparing",
        "evaluate": "evaluating",
        "train": "training",
    },
)

__all__ = [
    "Display",
    "Evaluation",
    "Outcome",
    "RunFailed",
    "Silent",
    "compare",
    "evaluate",
    "train",
]
