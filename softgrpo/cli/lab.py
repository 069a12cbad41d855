"""`softgrpo lab`: what the laboratory holds, and its base model made anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from softgrpo.lab import BASE_MODEL


def run(options: argparse.Namespace) -> int:
    """Run `softgrpo lab info` or `softgrpo lab make-base`."""
    if options.action == "info":
        return _info()
    output = Path(options.output)
    from softgrpo.lab.base import make_base

    make_base(output, seed=options.seed)
    print(f"base model in {output}; softgrpo train lab --model {output} uses it")
    return 0


def _info() -> int:
    from softgrpo.lab.chains import make_problems

    problem = make_problems(1, seed=0, split="heldout")[0]
    weights = sum(path.stat().st_size for path in BASE_MODEL.glob("*.safetensors"))
    print(f"task      lab:chains, such as: {problem.prompt}")
    print(f"thought   {problem.completion}")
    print(f"model     {BASE_MODEL}: " + (f"{weights / 1e6:.1f} MB" if weights else "not made yet"))
    print("train it  softgrpo train lab")
    return 0
