"""The program that an answer makes, and whether it passes the problem's tests."""

import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from softgrpo.rewards.code import (
    humaneval_program,
    last_block,
    mbpp_program,
    verify_humaneval,
    verify_mbpp,
)
from softgrpo.sandbox import CodeVerdict, SandboxUnavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

BENCHMARKS = Path(__file__).parents[3] / ".." / "shared" / "benchmarks"

PROMPT = '''from typing import List

def helper(x: int) -> int:
    return x + 1

def total(numbers: List[int]) -> int:
    """ The sum. """
'''
HUMANEVAL = {
    "prompt": PROMPT,
    "entry_point": "total",
    "test": """
def check(candidate):
    assert candidate([]) == 0
    assert candidate([1, 2]) == 3
    assert candidate([helper(1), 2, -3]) == 1
""",
}
MBPP = {
    "code": "def square(x):\n    return x * x",
    "test_list": ["assert square(3) == 9", "assert square(-1.5) == 2.25"],
    "test_import": [],
}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --------------------------------------------------------------------------- from text to program


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no block", None),
        ("```python\na\n```", "a\n"),
        ("one\n```\na\n```\ntwo\n```py\nb\n```\nend", "b\n"),
        ("```python\na\n```\n```bash\nrm\n```", "a\n"),
        ("```Python3 \r\na\r\n```\r\n", "a\r\n"),
        ("```python\nnever closed\n", "never closed\n"),
        ("~~~python\n```\n~~~", "```\n"),
        ("````python\n```\n````", "```\n"),
        ("1. so:\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("```python\n```", ""),
        ("text ```python\na\n```", ""),
    ],
)
def test_last_block(text: str, block: str | None) -> None:
    assert last_block(text) == block


def test_the_last_block_that_defines_the_function_is_preferred() -> None:
    text = "```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```\n```python\nprint(f())\n```"
    assert last_block(text, "f") == "def f(): 2\n"
    assert last_block(text, "g") == "print(f())\n"


def test_extraction_is_linear() -> None:
    started = time.process_time()
    for text in (
        "```" + " " * 10**6 + "`",
        "`" * 10**6,
        "```\n" * 10**5,
        " " * 10**6,
        "\n" * 10**6,
        "def total(): pass\n" + "from __future__ import (\n" * (2 * 10**4),
    ):
        last_block(text + "x", "f")
        humaneval_program(text, PROMPT, "total")
        mbpp_program(text, ["f"])
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "answer",
    [
        "    return sum(numbers)\n",
        "    return sum(numbers)\n\nThat is it.\n",
        "    return sum(numbers)\n\ndef total(x):\n    return 7\n",
        "    return sum([\n*numbers\n])".replace("\n*", "\n    *"),
        "def total(numbers):\n    return sum(numbers)",
        "Here.\n```python\n    return sum(numbers)\n```\nDone.",
        "Here.\n```python\ndef total(numbers: List[int]):\n    return sum(numbers)\n```\nDone.",
        "```python\ndef total(x):\n    return helper(sum(x)) - 1\n```\n```python\ntotal([1])\n```",
        f"```python\n{PROMPT}    return sum(numbers)\n```",
        "```python\nfrom __future__ import annotations\n\ndef total(x: N):\n    return sum(x)\n```",
        "from __future__ import (\n    annotations,\n)\ndef total(x):\n    return sum(x)\n",
        "```python\ntotal = lambda numbers: sum(numbers)\n```",
        "total: object = sum",
    ],
)
def test_forms_of_a_right_humaneval_answer(answer: str) -> None:
    assert verify_humaneval(answer, HUMANEVAL) == CodeVerdict(True, "all tests passed")


@pytest.mark.parametrize(
    "answer",
    ["def square(x):\n    return x * x", "So:\n```python\nsquare = lambda x: x ** 2\n```"],
)
def test_forms_of_a_right_mbpp_answer(answer: str) -> None:
    assert verify_mbpp(answer, MBPP).passed


WRONG = {
    "": "NameError in assert square(3) == 9: name 'square' is not defined",
    "I do not know.": "SyntaxError while the solution loads",
    "```python\ndef square(x): return x\n```": "AssertionError in assert square(3) == 9",
    "```python\ndef square(x): return 9\n```": "AssertionError in assert square(-1.5) == 2.25",
    "```python\ndef square(x): return y\n```": "NameError in assert square(3) == 9: name 'y'",
    "```python\ndef square(): return 9\n```": "TypeError",
    "```python\nimport numpy\n```": "ModuleNotFoundError while the solution loads",
    "```python\ndef square(x):\n```": "IndentationError",
    "```python\n\0\n```": "while the solution loads: source code string cannot contain null",
    "```python\n'\ud800'\n```": "UnicodeEncodeError: 'utf-8' codec",
}


@pytest.mark.parametrize("answer", WRONG)
def test_the_reason_of_a_wrong_answer(answer: str) -> None:
    verdict = verify_mbpp(answer, MBPP)
    assert not verdict.passed
    assert WRONG[answer] in verdict.reason


def test_the_reason_names_the_line_of_a_long_test() -> None:
    verdict = verify_humaneval("    return 3 if numbers else 0", HUMANEVAL)
    line = "assert candidate([helper(1), 2, -3]) == 1"
    assert verdict == CodeVerdict(False, f"AssertionError in {line}")


def test_without_a_sandbox_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    before = open_fds()
    with pytest.raises(SandboxUnavailable):
        verify_mbpp("def square(x): return x * x", MBPP)
    assert open_fds() == before


def test_a_solution_cannot_put_its_own_helper_into_the_tests() -> None:
    gold = {**HUMANEVAL, "test": "def check(candidate):\n    assert helper(candidate([1])) == 3"}
    answer = "```python\ndef helper(x): return 3\ndef total(x): return 1\n```"
    assert not verify_humaneval(answer, gold).passed


# ----------------------------------------------------------------------------- the benchmarks


def benchmark(name: str) -> list[dict[str, Any]]:
    path = BENCHMARKS / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"NOT CHECKED: {path} is not there")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_canonical_humaneval_solution_passes() -> None:
    golds = [{**row["answer"], "prompt": row["question"]} for row in benchmark("humaneval")]
    assert len(golds) == 164
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(lambda gold: verify_humaneval(gold["canonical_solution"], gold), golds)
    assert [v.reason for v in verdicts if not v.passed] == []


@pytest.mark.slow
def test_every_canonical_mbpp_solution_passes() -> None:
    golds = [row["answer"] for row in benchmark("mbpp")]
    assert len(golds) == 257
    with ThreadPoolExecutor(2) as pool:
        answers = (f"So:\n```python\n{gold['code']}\n```\n" for gold in golds)
        verdicts = list(pool.map(verify_mbpp, answers, golds))
    assert [v.reason for v in verdicts if not v.passed] == []


def test_no_solution_passes_that_says_nothing() -> None:
    """Some of each benchmark's problems; names are read off the gold solution and the prompt."""
    for row in benchmark("mbpp")[::16]:
        names = re.findall(r"def (\w+)", row["answer"]["code"])
        program = "\n".join(f"def {name}(*args): return NotImplemented" for name in names)
        assert not verify_mbpp(program, row["answer"]).passed
    for row in benchmark("humaneval")[::16]:
        gold = {**row["answer"], "prompt": row["question"]}
        assert not verify_humaneval("    return NotImplemented", gold).passed
