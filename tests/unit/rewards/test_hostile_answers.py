"""A battery of hostile answers: a verdict each, in bounded time and memory, and the run goes on."""

import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softgrpo.rewards import judge
from softgrpo.rewards.math_verifier import _shared_verifier, math_verify

MANY = 1_000_000
HOSTILE = {
    # Nothing, or nothing that is text.
    "nothing": "",
    "space": " \n" * 50_000,
    "null bytes": "\0" * 1000,
    "surrogates": "\ud800\udfff \\boxed{\ud800}",
    "control characters": "".join(map(chr, range(32))) * 1000,
    "right to left": "\u202e\\boxed{24}\u202d" * 1000,
    "combining characters": "a" + "\u0301" * 100_000,
    "emoji": "\U0001f600" * 50_000,
    # Numbers too large to compute.
    "tower": r"\boxed{10^{10^{10^{10}}}}",
    "tower of nines": r"\boxed{9^{9^{9^{9^{9^{9^{9}}}}}}}",
    "negative tower": r"\boxed{-2^{-2^{2^{2^{2^{2^{2}}}}}}}",
    "fractional tower": r"\boxed{(1/3)^{(1/3)^{10^{10^{10}}}}}",
    "factorial": r"\boxed{(10^{9})!}",
    "factorials": r"\boxed{((((9!)!)!)!)!}",
    "double factorial": r"\boxed{99999999!!}",
    "binomial": r"\boxed{\binom{10^{10}}{10^{9}}}",
    "product": r"\boxed{\prod_{k=1}^{10^9} k}",
    "sum": r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^k}}",
    "integral": r"\boxed{\int_0^{\infty} e^{-x^{x^x}} dx}",
    "limit": r"\boxed{\lim_{x \to 0} \frac{\sin(x^{100000})}{x^{99999}}}",
    "exponent": r"\boxed{1e999999999}",
    "plain exponent": r"\boxed{10^{999999999999}}",
    "modulus": r"\boxed{7^{7^{7^7}} \bmod 1000}",
    "root": r"\boxed{\sqrt[1000000007]{10^{10^{8}}}}",
    "nested roots": r"\boxed{" + r"\sqrt{2 + " * 300 + "2" + "}" * 301,
    "continued fraction": r"\boxed{" + r"1 + \frac{1}{" * 400 + "1" + "}" * 401,
    "digits": "9" * 500_000,
    "boxed digits": r"\boxed{" + "9" * 100_000 + "}",
    "decimals": r"\boxed{0." + "3" * 100_000 + "}",
    "commas": r"\boxed{1" + ",000" * 100_000 + "}",
    # Structure.
    "boxes": r"\boxed{" * 50_000,
    "nested boxes": r"\boxed{" * 5_000 + "1" + "}" * 5_000,
    "braces": r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    "megabytes of braces": "{" * 3 * MANY,
    "closing braces": "}" * MANY,
    "parentheses": r"\boxed{" + "(" * 20_000 + "1" + ")" * 20_000 + "}",
    "brackets": "[" * 200_000,
    "fractions": r"\boxed{" + r"\frac{1}{" * 1000 + "1" + "}" * 1001,
    "unbalanced": r"\boxed{\frac{1}{2",
    "unbalanced the other way": r"\boxed{\frac{1}2}}}",
    "dollars": "$" * 100_000,
    "many formulas": "$x$ " * 50_000,
    "backslashes": "\\" * 200_000,
    "percent": r"50\%" * 5_000,
    "left without right": r"\boxed{" + r"\left(" * 5_000 + "}",
    "plus signs": r"\boxed{1" + "+1" * 20_000 + "}",
    "minus signs": r"\boxed{" + "-" * 20_000 + "1}",
    "long name": r"\boxed{\text{" + "a" * 500_000 + "}}",
    "a regular expression's nightmare": "a" * 50_000 + "!" + r"\boxed{" + "=" * 50_000,
    # Kinds of values.
    "nan": r"\boxed{\text{NaN}}",
    "bare nan": "nan",
    "infinity": r"\boxed{\infty}",
    "infinity minus infinity": r"\boxed{\infty - \infty}",
    "division by zero": r"\boxed{\frac{1}{0}}",
    "zero to the zero": r"\boxed{0^0}",
    "logarithm": r"\boxed{\log_{0}{0}}",
    "complex": r"\boxed{i^{i^{i}}}",
    "matrix": r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{100000}}",
    "large matrix": r"\boxed{\begin{pmatrix}"
    + (" & ".join("x" * 40) + r" \\ ") * 40
    + r"\end{pmatrix}^{-1}}",
    "ragged matrix": r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}}",
    "set": r"\boxed{\{1, 2, 3\}}",
    "large set": r"\boxed{\{" + ",".join(map(str, range(2000))) + r"\}}",
    "interval": r"\boxed{(-\infty, 5]}",
    "many intervals": r"\boxed{" + r" \cup ".join(f"({i}, {i + 1})" for i in range(300)) + "}",
    "equation": r"\boxed{x^{1000} + x^{999} + \sin x = 0}",
    "inequality": r"\boxed{x^{100} + y^{100} < 1}",
    "chain of equations": r"\boxed{" + " = ".join("x^2 + 1" for _ in range(500)) + "}",
    "polynomial": r"\boxed{(x + y + z + 1)^{500}}",
    "trigonometry": r"\boxed{" + r"\sin(\cos(" * 200 + "x" + "))" * 200 + "}",
    "ellipsis": r"\boxed{1, 2, \ldots}",
    "units": r"\boxed{5 \text{ m} / \text{s}^{10^{10}}}",
    "table": r"\boxed{\begin{tabular}{" + "c" * 5_000 + r"} 1 \end{tabular}}",
    # Programs.
    "code": "__import__('os').system('exit 1')",
    "boxed code": r"\boxed{__import__('os').abort()}",
    "attributes": r"\boxed{().__class__.__bases__[0].__subclasses__()}",
    "lambda": r"\boxed{(lambda: (yield))()}",
    "loop": "while True: pass",
    "file": r"\boxed{\input{/etc/passwd}}",
    "macro": r"\def\a{\a\a}\boxed{\a}",
}


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_battery() -> None:
    """The figures of the issue: at least 60, within 60 seconds on two workers, no growth."""
    assert len(HOSTILE) >= 60
    assert math_verify("42", "42") == 1.0
    before, start = _peak_memory(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        verdicts = dict(zip(HOSTILE, pool.map(_is_right, HOSTILE.values()), strict=True))
    seconds = time.monotonic() - start
    print(f"{len(HOSTILE)} hostile answers in {seconds:.1f} s")
    assert [name for name, correct in verdicts.items() if correct] == []
    assert seconds < 60
    # The requests themselves are megabytes of text; nothing of them stays.
    assert _peak_memory() - before < 2**26
    workers = [worker._process for worker in _shared_verifier()._workers]
    assert len(workers) == 2
    assert all(_resident(worker.pid) < 2**29 for worker in workers if worker is not None)
    assert math_verify("42", "42") == 1.0


def _is_right(answer: str) -> bool:
    return judge("math_verify", f"\\boxed{{42}}</think>{answer}", "42", ["</think>"]).correct


@pytest.mark.parametrize("name", ["exact", "numeric", "letter", "format"])
def test_the_other_verifiers_take_no_box_in_the_thinking(name: str) -> None:
    for answer in HOSTILE.values():
        judgement = judge(name, f"\\boxed{{42}}</think>{answer}", "42", ["</think>"])
        assert name == "format" or not judgement.correct


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
