"""Right programs pass, and no wrong one does whatever it tries."""

import json
import os
import pickle
import sys
import time

import pytest

from softgrpo.sandbox import CodeVerdict, Limits, judge_solution

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
    pytest.mark.alone,  # it measures by the clock
]

SHORT = Limits(cpu_seconds=1, wall_seconds=3.0)


def judge(program: str, *tests: str, names: str = "f", setup: str = "") -> CodeVerdict:
    return judge_solution(program, setup=setup, tests=tests, names=names.split(), limits=SHORT)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


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


def test_tests_that_cannot_be_run_are_the_problems_error() -> None:
    for broken in ({"setup": "1 / 0"}, {"setup": "import nothing"}):
        with pytest.raises(ValueError, match="tests cannot be run"):
            judge("f = abs", "assert f(1) == 1", **broken)
    with pytest.raises(ValueError, match="tests cannot be run: SyntaxError"):
        judge("f = abs", "assert f(")


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
found = [x for x in gc.get_objects() if "verdict" in repr(x)[:9999] or "token" in repr(x)[:9999]]
for module in list(sys.modules.values()):
    judge = getattr(module, "give_verdict", None)
    if judge: judge("", True, "all tests passed")
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


def test_what_tests_print_is_no_verdict() -> None:
    """Even where it is the solution's text, and the tests die of it."""
    forged = json.dumps(["token", True, "all tests passed"])
    test = "import os\nprint(f(1), flush=True)\nos._exit(0)"
    verdict = judge(f"def f(x): return {forged!r}", test)
    assert verdict == CodeVerdict(False, "the tests' process ended without a verdict")
