"""Whether two mathematical expressions are equal, judged by Math-Verify in worker processes.

Not an in-process call: model output is hostile (towers of exponents, huge factorials), and neither
the time nor the memory it takes can be bounded from within.
"""

import atexit
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from queue import LifoQueue

from softgrpo.rewards.extraction import last_boxed
from softgrpo.rewards.numbers import only_number
from softgrpo.rewards.verdicts import answer_number

_PROGRAM = Path(__file__).with_name("math_worker.py")
_MAX_LENGTH = 4000  # characters: no gold answer is nearly as long

_USUAL = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("[\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d](?=\\s?[\\d.\\\\a-z])", "-"),
        (r"\\[bB]igg?[lr]?(?![A-Za-z])", ""),
        (r"\\sqrt\s?(\d++)", r"\\sqrt{\1}"),
        (r"(?:\^\s?\{?\s?\\circ\s?\}?|°|\\degree(?![A-Za-z]))(?!\s?\d)", ""),
        (r"\\[,;:!]", " "),
    )
]


class MathVerifier:
    """Worker processes, each started at its first question and replaced whenever it dies.

    Safe to call from several threads: each call takes a worker that is free, or waits for one.
    """

    def __init__(
        self,
        time_limit: float = 1.0,
        memory_limit: int = 2**30,
        num_workers: int = 2,
        max_questions: int = 5000,
    ) -> None:
        """Starts nothing yet.

        Args:
            time_limit: Seconds of processor time for one verdict, at most.
            memory_limit: Bytes of address space of a worker, at most; on Linux only.
            num_workers: Questions that can be answered at the same time.
            max_questions: Of a worker, which is then replaced: sympy's caches go with the process.
        """
        command = [sys.executable, "-P", str(_PROGRAM), str(time_limit), str(memory_limit)]
        self._workers = [_Worker(command, max_questions) for _ in range(num_workers)]
        self._free: LifoQueue[_Worker] = LifoQueue()  # last in, first out: one caller, one process
        for worker in self._workers:
            self._free.put(worker)

    def verify(self, gold: str, answer: str) -> float | None:
        """Whether the last expression of `answer` equals that of `gold`.

        Returns:
            1.0 or 0.0; 0.0 too where the worker hung, died or ran out of memory; None where gold
            cannot be read.
        """
        worker = self._free.get()
        try:
            reply = worker.ask(json.dumps([gold, answer]))
        finally:
            self._free.put(worker)
        return json.loads(reply) if reply else 0.0

    def close(self) -> None:
        """Stops the workers that are there; the next question starts another."""
        for worker in [self._free.get() for _ in self._workers]:
            worker.stop()
            self._free.put(worker)


class _Worker:
    """One process, or none yet."""

    def __init__(self, command: list[str], max_questions: int) -> None:
        self._command, self._max_questions = command, max_questions
        self._process: subprocess.Popen[str] | None = None
        self._num_asked = 0

    def ask(self, request: str) -> str:
        """The reply; empty where the process ended instead, which is then replaced."""
        if self._process is None or self._num_asked >= self._max_questions:
            self.stop()
            self._process, self._num_asked = self._start(), 0
        self._num_asked += 1
        try:
            reply = self._exchange(self._process, request)
        except BaseException:  # Ctrl-C: the reply still to come must not answer the next call
            self.stop()
            raise
        if not reply:
            self.stop()
        return reply

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Importing Math-Verify takes a moment that must not count against the first answer.
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(
                f"the Math-Verify worker did not start; to see why, run {shlex.join(self._command)}"
            )
        return process

    @staticmethod
    def _exchange(process: subprocess.Popen[str], request: str) -> str:
        assert process.stdin is not None and process.stdout is not None
        try:
            print(request, file=process.stdin, flush=True)
            return process.stdout.readline()
        except BrokenPipeError:
            return ""


@cache
def _shared_verifier() -> MathVerifier:
    verifier = MathVerifier()
    atexit.register(verifier.close)
    return verifier


def math_verify(answer: str, gold: str) -> float | None:
    """Whether the answer's last box, or without a box its last expression, equals gold.

    Equal as mathematics: 1/2 is 0.5, x + 1 is 1 + x. Numbers are compared exactly, as ``numeric``
    reads them, and only what is no number is asked of Math-Verify. None where gold cannot be read.
    A box of more than 4,000 characters is wrong; without a box only so many at the end are read.
    """
    is_equal = _equal_numbers(_box_or_text(answer), _box_or_text(gold))
    if is_equal is None:
        return _shared_verifier().verify(_box(_usual(gold)), _question(answer))
    return float(is_equal)


def _equal_numbers(answer: str, gold: str) -> bool | None:
    """Whether two texts that are numbers are the same; None where that is Math-Verify's to say.

    It is of whatever is no number, of x = 5 and y = 5, and of 50% and 0.5.
    """
    if max(len(answer), len(gold)) > _MAX_LENGTH:
        return None
    found, expected = only_number(answer), only_number(gold)
    names = {"".join(text.partition("=")[0].split()) for text in (answer, gold) if "=" in text}
    if found is None or expected is None or len(names) > 1:
        return None
    return found == expected or (None if "%" in answer else False)


def _box_or_text(text: str) -> str:
    boxed = last_boxed(text)
    return text if boxed is None else boxed


def math_answer(answer: str) -> str | None:
    """What `math_verify` looks at, as far as it can be told without it: a box, else a number."""
    boxed = last_boxed(answer)
    return answer_number(answer) if boxed is None else boxed


def _question(answer: str) -> str:
    boxed = last_boxed(answer)
    if boxed is None:
        return _usual(answer[-_MAX_LENGTH:])
    return _box(_usual(boxed).rstrip(" .")) if len(boxed) <= _MAX_LENGTH else ""


def _usual(text: str) -> str:
    """The same mathematics as Math-Verify expects it to be written."""
    for pattern, replacement in _USUAL:
        text = pattern.sub(replacement, text)
    return text


def _box(expression: str) -> str:
    """Bare LaTeX is read only inside an environment."""
    return expression if last_boxed(expression) is not None else rf"\boxed{{{expression}}}"
