"""Whether two mathematical expressions are equal, judged by Math-Verify in a worker process.

Not an in-process call: model output is hostile (towers of exponents, huge factorials), and neither
the time nor the memory it takes can be bounded from within.
"""

import atexit
import json
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from threading import Lock

from softgrpo.rewards.extraction import last_boxed

_PROGRAM = Path(__file__).with_name("math_worker.py")


class MathVerifier:
    """A worker process, started at the first question and replaced whenever it dies."""

    def __init__(self, time_limit: float = 2.0, memory_limit: int = 2**30) -> None:
        """Starts nothing yet.

        Args:
            time_limit: Seconds of processor time for one verdict, at most.
            memory_limit: Bytes of address space of the worker, at most; on Linux only.
        """
        self._command = [sys.executable, "-P", str(_PROGRAM), str(time_limit), str(memory_limit)]
        self._worker: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def verify(self, gold: str, answer: str) -> float | None:
        """Whether the last expression of `answer` equals that of `gold`.

        Returns:
            1.0 or 0.0; 0.0 too where the worker hung, died or ran out of memory; None where gold
            cannot be read.
        """
        with self._lock:
            if self._worker is None:
                self._worker = self._start()
            try:
                reply = self._ask(self._worker, json.dumps([gold, answer]))
            except BaseException:  # Ctrl-C: the reply still to come must not answer the next call
                self._stop()
                raise
            if not reply:
                self._stop()
                return 0.0
            return json.loads(reply)

    def close(self) -> None:
        """Stops the worker; the next question starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Importing Math-Verify takes a moment that must not count against the first answer.
        assert worker.stdout is not None
        if not worker.stdout.readline():
            raise RuntimeError(
                f"the Math-Verify worker did not start; to see why, run {shlex.join(self._command)}"
            )
        return worker

    @staticmethod
    def _ask(worker: subprocess.Popen[str], request: str) -> str:
        """The worker's reply; empty where it has ended."""
        assert worker.stdin is not None and worker.stdout is not None
        try:
            print(request, file=worker.stdin, flush=True)
            return worker.stdout.readline()
        except BrokenPipeError:
            return ""

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


@cache
def _shared_verifier() -> MathVerifier:
    verifier = MathVerifier()
    atexit.register(verifier.close)
    return verifier


def math_verify(answer: str, gold: str) -> float | None:
    """Whether the answer's last box, or without a box its last expression, equals gold.

    Equal as mathematics: 1/2 is 0.5, x + 1 is 1 + x. None where gold cannot be read.
    """
    boxed = last_boxed(answer)
    return _shared_verifier().verify(_box(gold), answer if boxed is None else _box(boxed))


def _box(expression: str) -> str:
    """Bare LaTeX is read only inside an environment."""
    return expression if last_boxed(expression) is not None else rf"\boxed{{{expression}}}"
