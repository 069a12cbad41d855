import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from softgrpo.rewards.math_verifier import MathVerifier, math_verify

TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(time_limit=0.5)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    "gold",
    [
        "42",
        "-7",
        "1,234,567",
        "0.125",
        r"\frac{14}{3}",
        r"\left( 3, \frac{\pi}{2} \right)",
        "p - q",
        r"3\sqrt{13}",
        r"\text{Evelyn}",
        "B",
        r"(-\infty, 5]",
        r"\{1, 2\}",
        "6 + 9i",
        "x^5 - x^4 + x^3 - x^2 + x - 1",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"90^\circ",
        r"\$18.90",
        r"10\%",
        "$5$",
    ],
)
def test_gold_passes_its_own_verdict(gold: str) -> None:
    assert math_verify(rf"So the answer is \boxed{{{gold}}}.", gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{1 + x}", "x + 1"),
        (r"\boxed{2, 1}", r"\{1, 2\}"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{6} is wrong, \boxed{5}", "5"),
        ("The final answer is $3/4$.", "0.75"),
        ("12", "12"),
    ],
)
def test_equal_mathematics(answer: str, gold: str) -> None:
    assert math_verify(answer, gold) == 1.0


def test_different_mathematics() -> None:
    assert math_verify(r"\boxed{5}, no, \boxed{6}", "5") == 0.0


def test_unreadable_gold_gives_no_verdict() -> None:
    assert math_verify("5", "") is None


HOSTILE = {
    "nothing": "",
    "space": " \n" * 50_000,
    "null bytes": "\0" * 1000,
    "surrogates": "\ud800\udfff \\boxed{\ud800}",
    "tower": r"\boxed{10^{10^{10^{10}}}}",
    "factorial": r"\boxed{(10^{9})!}",
    "product": r"\boxed{\prod_{k=1}^{10^9} k}",
    "digits": "9" * 500_000,
    "exponent": r"\boxed{1e999999999}",
    "boxes": r"\boxed{" * 50_000,
    "braces": r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    "open braces": "{" * 1_000_000,
    "fractions": r"\boxed{" + r"\frac{1}{" * 1000 + "1" + "}" * 1001,
    "unbalanced": r"\boxed{\frac{1}{2",
    "nan": r"\boxed{\text{NaN}}",
    "bare nan": "nan",
    "infinity": r"\boxed{\infty}",
    "division by zero": r"\boxed{\frac{1}{0}}",
    "logarithm": r"\boxed{\log_{0}{0}}",
    "matrix": r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{100000}}",
    "set": r"\boxed{\{1, 2, 3\}}",
    "large set": r"\boxed{\{" + ",".join(map(str, range(2000))) + r"\}}",
    "interval": r"\boxed{(-\infty, 5]}",
    "equation": r"\boxed{x^{1000} + x^{999} + \sin x = 0}",
    "ellipsis": r"\boxed{1, 2, \ldots}",
    "modulus": r"\boxed{7^{7^{7^7}} \bmod 1000}",
    "code": "__import__('os').system('exit 1')",
    "dollars": "$" * 100_000,
    "percent": r"50\%" * 5_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_costs_one_wrong_verdict(verifier: MathVerifier, name: str) -> None:
    start = time.monotonic()
    assert verifier.verify("42", HOSTILE[name]) == 0.0
    assert time.monotonic() - start < 20


def test_hanging_worker_ends_and_is_replaced(verifier: MathVerifier) -> None:
    assert verifier.verify("42", "42") == 1.0
    first = verifier._worker
    assert first is not None
    assert verifier.verify("42", TOWER) == 0.0
    assert first.poll() == -signal.SIGPROF
    assert verifier.verify("42", "42") == 1.0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_worker_costs_one_verdict(verifier: MathVerifier, signal_number: int) -> None:
    assert verifier.verify("42", "42") == 1.0
    assert verifier._worker is not None
    os.kill(verifier._worker.pid, signal_number)
    verifier._worker.wait()
    assert verifier.verify("42", "42") == 0.0
    assert verifier.verify("42", "42") == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_is_limited() -> None:
    verifier = MathVerifier(time_limit=60, memory_limit=2**27)
    assert verifier.verify("42", "42") == 1.0
    assert verifier._worker is not None
    limits = Path(f"/proc/{verifier._worker.pid}/limits").read_text()
    assert re.search(rf"Max address space +{2**27} ", limits)
    assert verifier.verify("42", "42 " * 20_000_000) == 0.0
    assert verifier.verify("42", "42") == 1.0
    verifier.close()


def test_worker_ends_with_its_parent() -> None:
    with MathVerifier()._start() as worker:
        # What the kernel does with the pipe of a parent that is gone, however it went.
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(timeout=10) == 0


def test_interrupted_call_leaves_no_reply_for_the_next(
    verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(worker: subprocess.Popen[str], request: str) -> str:
        assert worker.stdin is not None
        print(request, file=worker.stdin, flush=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verifier, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.verify("1", "1")
    assert verifier.verify("1", "2") == 0.0


def test_a_worker_that_cannot_start_says_how_to_see_why() -> None:
    verifier = MathVerifier()
    verifier._command = [sys.executable, "-c", ""]
    with pytest.raises(RuntimeError, match="did not start; to see why, run"):
        verifier.verify("1", "1")
