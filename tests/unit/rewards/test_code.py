"""Right programs pass, and no wrong one does whatever it tries."""

import json
import os
import pickle
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from softgrpo.rewards.code import (
    CodeVerdict,
    humaneval_program,
    judge_solution,
    last_block,
    mbpp_program,
    verify_humaneval,
    verify_mbpp,
)
from softgrpo.rewards.sandbox import Limits, SandboxUnavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

BENCHMARKS = Path(__file__).parents[3] / ".." / "shared" / "benchmarks"
SHORT = Limits(cpu_seconds=1, wall_seconds=3.0)

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


def judge(program: str, *tests: str, names: str = "f", setup: str = "") -> CodeVerdict:
    return judge_solution(program, setup=setup, tests=tests, names=names.split(), limits=SHORT)


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


# ----------------------------------------------------------------------- values between processes


@pytest.mark.parametrize(
    "value",
    [
        "None",
        "True",
        "-7",
        "2**63",
        "-(10**5000)",
        "0.1",
        "-0.0",
        "float('inf')",
        "1e400",
        "1.5 + 2j",
        "'text \\ud800 \\n \\0'",
        "b'\\xff'",
        "[]",
        "[1, [2, (3, [4])], ()]",
        "{1: 'a', (1, 2): [3], None: {}}",
        "{1, 2, frozenset({3})}",
        "{'remote': 1}",
        "['value', 1]",
    ],
)
def test_plain_values_go_there_and_back(value: str) -> None:
    test = f"x = {value}\nassert repr(f(x)) == repr(x) and f(x) == x and type(f(x)) is type(x)"
    wide = "import sys; sys.set_int_max_str_digits(0)"
    assert judge("def f(x): return x", test, setup=wide) == CodeVerdict(True, "all tests passed")


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("from collections import Counter\ndef f(x): return Counter(x)", "{'a': 2} == f('aa')"),
        ("def f(x): return (i for i in range(x))", "list(f(3)) == [0, 1, 2]"),
        ("def f(x): return {1: 2}.keys()", "set(f(3)) == {1}"),
        ("f = lambda x: x", "f(x=f)(1) == 1 if False else True"),
        ("def f(*a, k=0): return [a, k]", "f(1, 2, k=3) == [(1, 2), 3]"),
        ("def f(x): print('noise' * 10**6); return x", "f(1) == 1"),
        ("import sys\ndef f(x): return sys.stdin.read()", "f(1) == ''"),
        ("if __name__ == '__main__': 1 / 0\nf = abs", "f(-1) == 1"),
        ("f = abs", "f(float('nan')) != f(1)"),
    ],
)
def test_what_solutions_do(program: str, test: str) -> None:
    assert judge(program, f"assert {test}").passed


def test_objects_stay_with_the_solution_and_can_be_passed_back() -> None:
    program = """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
def f(pairs): return [pair.a + pair.b for pair in pairs]
"""
    assert judge(program, "assert f([Pair(1, 2), Pair(3, b=4)]) == [3, 7]", names="f Pair").passed
    assert not judge(program, "assert Pair(1, 2) == Pair(1, 2)", names="f Pair").passed


def test_errors_arrive_as_what_they_are() -> None:
    program = "def f(x):\n    if x: raise ValueError('no')\n    raise StopAsyncIteration"
    test = """
for x, kind in ((1, ValueError), (0, StopAsyncIteration)):
    try: f(x)
    except kind: pass
    else: assert False
"""
    assert judge(program, test).passed


def test_an_argument_cannot_be_changed_by_the_solution() -> None:
    assert judge("def f(x): x.append(1)", "x = [0]\nf(x)\nassert x == [0]").passed


def test_the_reason_names_the_line_of_a_long_test() -> None:
    verdict = verify_humaneval("    return 3 if numbers else 0", HUMANEVAL)
    line = "assert candidate([helper(1), 2, -3]) == 1"
    assert verdict == CodeVerdict(False, f"AssertionError in {line}")


def test_tests_that_cannot_be_run_are_the_problems_error() -> None:
    for broken in ({"setup": "1 / 0"}, {"setup": "import nothing"}):
        with pytest.raises(ValueError, match="tests cannot be run"):
            judge("f = abs", "assert f(1) == 1", **broken)
    with pytest.raises(ValueError, match="tests cannot be run: SyntaxError"):
        judge("f = abs", "assert f(")


def test_without_a_sandbox_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    before = open_fds()
    with pytest.raises(SandboxUnavailable):
        verify_mbpp("def square(x): return x * x", MBPP)
    assert open_fds() == before


# ------------------------------------------------------------------------------------- attacks

# Each stands for a whole solution of `f`, which the tests below want to be 9 at 3 and True at 0.
SOLVES = "def f(x): return x * x if x else True\n"
ATTACKS = {
    "exit while loading": "import sys; sys.exit(0)",
    "exit while loading, at once": "import os; os._exit(0)",
    "exit in a call": "import sys\ndef f(x): sys.exit(0)",
    "exit in a call, at once": "import os\ndef f(x): os._exit(0)",
    "exit in a thread": """
import os, threading, time
threading.Thread(target=lambda: os._exit(0)).start()
def f(x): time.sleep(9)
""",
    "exit at exit": "import atexit, os, sys\natexit.register(os._exit, 0)\nsys.exit()",
    "exec of another program": "import os; os.execv('/lib64/ld-linux-x86-64.so.2', ['x'])",
    "kill of everybody": """
import os
def f(x):
    os.kill(os.getppid(), 9)
    os.kill(-1, 9)
""",
    "an error that is none": """
class Error(BaseException):
    def __str__(self): return 1
def f(x): raise Error
""",
    "an error that ends the tests": "def f(x): raise SystemExit(0)",
    "an error named after success": "class passed(Exception): pass\ndef f(x): raise passed('true')",
    "equal to everything": """
class Same:
    def __eq__(self, other): return True
    def __bool__(self): return True
    __hash__ = lambda self: 0
def f(x): return Same()
""",
    "an int equal to everything": """
class Same(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Same(1)
""",
    "a list equal to everything": """
class Same(list):
    __eq__ = lambda self, other: True
    __len__ = lambda self: 0
def f(x): return [Same([1])]
""",
    "not a number": "def f(x): return float('nan')",
    "patched builtins": """
import builtins
class Quiet(Exception): pass
builtins.AssertionError = builtins.Exception = builtins.BaseException = Quiet
builtins.compile = builtins.exec = builtins.isinstance = builtins.len = lambda *a, **k: True
builtins.__build_class__ = builtins.__import__ = None
def f(x): return 1
""",
    "a patched json": """
import json
json.dumps = lambda *a, **k: '["value", true]'
def f(x): return 1
""",
    "patched callers": """
import sys
frame = sys._getframe()
while frame:
    for names in (frame.f_globals, frame.f_locals):
        for name, value in list(names.items()):
            if callable(value): names[name] = lambda *a, **k: True
    frame = frame.f_back
def f(x): return 1
""",
    "a hunt for the judge": """
import gc, sys
found = [x for x in gc.get_objects() if "Judge" in repr(type(x)) or "token" in repr(x)[:9999]]
for module in list(sys.modules.values()):
    for judge in (getattr(module, "Judge", None),):
        if judge: judge("").end(True, "all tests passed")
def f(x): return 1
""",
    "a trace function": """
import sys
def trace(frame, event, argument):
    frame.f_lineno = frame.f_lineno
    return trace
sys.settrace(trace)
def f(x): return 1
""",
    "a forged verdict on every file": """
import json, os
for fd in range(64):
    for line in ('["token", true, "all tests passed"]', '["value", true]', "True", "exit 0"):
        try: os.write(fd, f"\\n{line}\\n".encode())
        except OSError: pass
def f(x): return 1
""",
    "closed files": "import os; os.closerange(0, 1000)",
    "closed files in a call": "import os\ndef f(x): os.closerange(0, 1000)",
    "a pickle bomb": f"""
import os
for fd in range(3, 64):
    try: os.write(fd, {pickle.dumps(print)!r} + b"\\n")
    except OSError: pass
""",
    **{
        f"the reply {reply[:40]}": f"""
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, {reply.encode()!r} + b"\\n")
        except OSError: pass
    os._exit(0)
"""
        for reply in (
            "",
            "[]",
            "{}",
            "null",
            '["value"]',
            '["value", {}]',
            '["value", {"a": 1, "b": 2}]',
            '["value", {"eval": "9"}]',
            '["value", {"__class__": 9}]',
            '["value", {"remote": 1e999}]',
            '["value", {"remote": "0"}]',
            '["value", {"set": [[]]}]',
            '["value", {"int": "0x' + "f" * 10**5 + '"}]',
            '["error", "SystemExit", "0"]',
            '["error", "KeyboardInterrupt", ""]',
            '["error", "exit", "0"]',
            '["error", "UnicodeDecodeError", ""]',
            '["passed", true]',
            '["value", ' + "[" * 10**5 + "]" * 10**5 + "]",
            '["value", ' + "9" * 10**5 + "]",
        )
    },
    "a reply without end": """
import os
while True:
    for fd in range(3, 64):
        try: os.write(fd, b"x" * 10**5)
        except OSError: pass
""",
    "a huge reply": "def f(x): return 'x' * 10**8",
    "a reply that unfolds": """
def f(x):
    y = []
    for _ in range(60): y = [y, y]
    return y
""",
    "a reply without bottom": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "a generator without end": "import itertools\ndef f(x): return itertools.count()",
    "a dictionary that is slow to read": """
def f(x): return {number * (2**61 - 1): 0 for number in range(10**5)}
""",
    "a reply of surrogates": "def f(x): return '\\ud800' * 1000",
    "an endless loop while loading": "while True: pass",
    "an endless loop in a call": "def f(x):\n    while True: pass",
    "an endless sleep": "import time\ndef f(x): time.sleep(99)",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a memory eater": "def f(x):\n    y = [0]\n    while True: y += y",
    "deep recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a daemon that answers": """
import os, time
if os.fork(): os._exit(0)
def f(x): return 1
""",
    "a look at the tests": """
import inspect, linecache, os
def f(x):
    for directory, _, names in os.walk("/"):
        for name in names:
            if "humaneval" in name or "mbpp" in name or "softgrpo" in directory: return 9
    return open("/proc/self/mem").read()
""",
}


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_does_not_pass(program: str) -> None:
    before, started = open_fds(), time.monotonic()
    verdict = judge(program, "assert f(3) == 9", "assert f(0) is True")
    assert not verdict.passed
    assert verdict.reason and "\n" not in verdict.reason
    assert time.monotonic() - started < SHORT.wall_seconds + 3
    assert open_fds() == before


def test_the_solution_that_the_attacks_pretend_to_be_passes() -> None:
    assert judge(SOLVES, "assert f(3) == 9", "assert f(0) is True").passed


def test_no_error_ends_a_loop_as_if_all_had_gone_well() -> None:
    program = "def f(x): raise StopIteration"
    assert not judge(program, "assert all(map(f, [1, 2]))").passed


@pytest.mark.parametrize("guard", ["except Exception", "except BaseException", "except"])
def test_no_test_can_overlook_a_broken_reply(guard: str) -> None:
    program = "import os\ndef f(x): os._exit(0)"
    assert not judge(program, f"try: f(1)\n{guard}: pass").passed


def test_a_solution_cannot_put_its_own_helper_into_the_tests() -> None:
    gold = {**HUMANEVAL, "test": "def check(candidate):\n    assert helper(candidate([1])) == 3"}
    answer = "```python\ndef helper(x): return 3\ndef total(x): return 1\n```"
    assert not verify_humaneval(answer, gold).passed


def test_what_tests_print_is_no_verdict() -> None:
    """Even where it is the solution's text, and the tests die of it."""
    forged = json.dumps(["token", True, "all tests passed"])
    test = "import os\nprint(f(1), flush=True)\nos._exit(0)"
    verdict = judge(f"def f(x): return {forged!r}", test)
    assert verdict == CodeVerdict(False, "the tests' process ended without a verdict")


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
