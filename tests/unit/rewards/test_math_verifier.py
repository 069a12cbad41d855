import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softgrpo.rewards.math_verifier import MathVerifier, math_verify

TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(time_limit=0.5, num_workers=1)
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
        ("The answer is \N{MINUS SIGN}5", "-5"),
        (r"\boxed{18.}", "18"),
        (r"\boxed{18 dollars}", "18"),
        ("\\boxed{120°}", r"120^\circ"),
        (r"\boxed{120\degree}", "120"),
        (r"\boxed{10 000}", "10000"),
        (r"\boxed{x = 10\,000}", "x=10000"),
        (r"\boxed{5 dollars}", "x = 5"),
        (r"\boxed{10\,000}", "10,000"),
        (r"\boxed{1e4}", "10000"),
        (r"\boxed{2 1/2}", r"\frac{5}{2}"),
        ("\\boxed{\N{EN DASH}5}", "-5"),
        ("\\boxed{\N{EN DASH}\\sqrt{2}}", r"-\sqrt{2}"),
        (r"\boxed{25\,\%}", r"25\%"),
        (r"\boxed{50\%}", "0.5"),
        (r"\boxed{C.}", "C"),
        (r"\boxed{\sqrt13}", r"\sqrt{13}"),
        (r"\boxed{\big(1, 2\big)}", "(1, 2)"),
        (r"\boxed{\frac{1}{2^{60}}}", r"2^{-60}"),
        (r"\boxed{3.605551}", r"\sqrt{13}"),
    ],
)
def test_equal_mathematics(answer: str, gold: str) -> None:
    assert math_verify(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{10 000}", "0"),
        (r"\boxed{10\,000}", "0"),
        (r"\boxed{- 5.}", "5"),
        (r"\boxed{0.0}", r"\frac{1}{3628800}"),
        (r"\boxed{\frac{1}{2^{60}}}", r"\frac{1}{2^{61}}"),
        (r"\boxed{0.333333}", r"\frac{1}{3}"),
        (r"\boxed{-\sqrt{13}}", r"\sqrt{13}"),
        (r"\boxed{D.}", "C"),
        (r"\boxed{5}", "50"),
        (r"\boxed{1234}", "(1,234)"),
        (r"\boxed{x = 5, y = 6}", "6"),
        (r"\boxed{15x - 7y + 11z + 4 = 0}", "5x - 7y + 11z + 4 = 0"),
        (r"\boxed{x + y = 25}", "x^2 + y^2 = 25"),
        (r"\boxed{2x = 10}", "5"),
        (r"\boxed{y = 5}", "x = 5"),
        (r"\boxed{5°30'}", "530"),
        (rf"\boxed{{{' ' * 5000}5}}", "5"),
        ("The final answer is 5, found in 3 steps.", "3"),
    ],
)
def test_what_is_not_equal(answer: str, gold: str) -> None:
    assert math_verify(answer, gold) == 0.0


def test_different_mathematics() -> None:
    assert math_verify(r"\boxed{5}, no, \boxed{6}", "5") == 0.0


def test_unreadable_gold_gives_no_verdict() -> None:
    assert math_verify("5", "") is None


def _process(verifier: MathVerifier) -> subprocess.Popen[str]:
    process = verifier._workers[0]._process
    assert process is not None
    return process


def test_hanging_worker_ends_and_is_replaced(verifier: MathVerifier) -> None:
    assert verifier.verify("42", "42") == 1.0
    first = _process(verifier)
    assert verifier.verify("42", TOWER) == 0.0
    assert first.poll() == -signal.SIGPROF
    assert verifier.verify("42", "42") == 1.0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_worker_costs_one_verdict(verifier: MathVerifier, signal_number: int) -> None:
    assert verifier.verify("42", "42") == 1.0
    os.kill(_process(verifier).pid, signal_number)
    _process(verifier).wait()
    assert verifier.verify("42", "42") == 0.0
    assert verifier.verify("42", "42") == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_is_limited() -> None:
    verifier = MathVerifier(time_limit=60, memory_limit=2**27, num_workers=1)
    assert verifier.verify("42", "42") == 1.0
    limits = Path(f"/proc/{_process(verifier).pid}/limits").read_text()
    assert re.search(rf"Max address space +{2**27} ", limits)
    assert verifier.verify("42", "42 " * 20_000_000) == 0.0
    assert verifier.verify("42", "42") == 1.0
    verifier.close()


def test_worker_ends_with_its_parent() -> None:
    with MathVerifier()._workers[0]._start() as worker:
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
        patch.setattr(verifier._workers[0], "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.verify("1", "1")
    assert verifier.verify("1", "2") == 0.0


def test_a_worker_that_cannot_start_says_how_to_see_why() -> None:
    verifier = MathVerifier(num_workers=1)
    verifier._workers[0]._command = [sys.executable, "-c", ""]
    with pytest.raises(RuntimeError, match="did not start; to see why, run"):
        verifier.verify("1", "1")


def test_two_workers_answer_at_the_same_time_and_each_its_own_question() -> None:
    verifier = MathVerifier(num_workers=2)
    pairs = [(str(i), str(i + i % 3)) for i in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: verifier.verify(*pair), pairs))
    assert found == [float(i % 3 == 0) for i in range(60)]
    assert all(worker._process is not None for worker in verifier._workers)
    verifier.close()


def test_one_caller_starts_one_worker() -> None:
    verifier = MathVerifier(num_workers=2)
    for _ in range(3):
        verifier.verify("1", "1")
    assert sum(worker._process is not None for worker in verifier._workers) == 1
    verifier.close()


def test_a_worker_is_replaced_before_its_caches_grow() -> None:
    verifier = MathVerifier(num_workers=1, max_questions=2)
    seen = []
    for _ in range(4):
        assert verifier.verify("1", "1") == 1.0
        seen.append(_process(verifier).pid)
    assert seen[0] == seen[1] != seen[2] == seen[3]
    verifier.close()
