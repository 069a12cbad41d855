"""Untrusted Python on Linux, run and judged so that nothing of it gets out: see README.md.

Imports nothing of softgrpo, and nothing but the standard library.
"""

from softgrpo.sandbox.program import (
    Limits,
    SandboxedProgram,
    SandboxResult,
    SandboxUnavailable,
    run_python,
)
from softgrpo.sandbox.trial import CodeVerdict, judge_solution

__all__ = [
    "CodeVerdict",
    "Limits",
    "SandboxResult",
    "SandboxUnavailable",
    "SandboxedProgram",
    "judge_solution",
    "run_python",
]
