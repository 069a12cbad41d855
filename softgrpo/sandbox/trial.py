"""Whether a program's functions pass tests, though the program would do anything to pass them.

It may exit early, patch `assert`, reply with objects that are equal to everything. So solution and
tests run in a sandbox each (`program.py`), the tests' process judges (`harness.py`), and a verdict
counts only with a random token that the solution's process never had.
"""

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from softgrpo.sandbox.program import Limits, SandboxedProgram, SandboxResult, compiled, run_python

_HARNESS = Path(__file__).with_name("harness.py")


@dataclass(frozen=True)
class CodeVerdict:
    """Whether all tests passed, and one line on why or why not."""

    passed: bool
    reason: str


def judge_solution(
    program: str,
    *,
    setup: str,
    tests: Sequence[str],
    names: Sequence[str],
    limits: Limits | None = None,
) -> CodeVerdict:
    """Whether a program's functions pass tests.

    Args:
        program: Hostile.
        setup: Trusted code that the tests need.
        tests: Trusted code; each raises where it fails.
        names: The program's functions, as the tests call them.
        limits: Of each of the two sandboxes.

    Raises:
        ValueError: The setup or the tests cannot be run, whatever the program.
        SandboxUnavailable: This machine cannot sandbox it.
        OSError: It has no memory, process or file left for it: the solution is not judged.
    """
    harness = compiled(_HARNESS)
    token = secrets.token_hex(16)
    with ExitStack() as files:
        requests, to_solution = _pipe(files)
        from_solution, replies = _pipe(files)
        served = SandboxedProgram(
            harness,
            limits=limits,
            call=("serve", (program, requests.fileno(), replies.fileno())),
            fds=(requests.fileno(), replies.fileno()),
        )
        with served:
            requests.close()  # the solution's alone, so that its end is seen
            replies.close()
            ours = (to_solution.fileno(), from_solution.fileno())
            arguments = (token, setup, list(tests), list(names), *ours)
            trial = run_python(harness, limits=limits, call=("try_solution", arguments), fds=ours)
            served.stop()
            served.result()  # raises where it could not be sandboxed
    return _read_verdict(trial, token)


def _pipe(files: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Its reading and its writing end."""
    read, write = os.pipe()
    return files.enter_context(open(read, "rb")), files.enter_context(open(write, "wb"))


def _read_verdict(result: SandboxResult, token: str) -> CodeVerdict:
    lines = result.stdout.splitlines()
    try:
        found, passed, reason = json.loads(lines[-1])
    except (IndexError, TypeError, ValueError):
        found = None
    if found != token:
        if result.ended == "time":
            return CodeVerdict(False, f"no verdict within {result.seconds:.0f} seconds")
        return CodeVerdict(False, "the tests' process ended without a verdict")
    if passed is None:
        raise ValueError(f"the problem's tests cannot be run: {reason}")
    return CodeVerdict(passed, reason)
