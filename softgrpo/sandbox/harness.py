"""The programs that try a solution: it and its tests run in two sandboxes, and talk in plain data.

Not imported by softgrpo: `trial.py` sends this file into both sandboxes. `serve` runs the solution
and serves calls of its functions. `try_solution` makes those calls and judges what comes back, so
nothing that a solution does to its own interpreter reaches the verdict: it can choose its replies,
and that is all.

A message is one line of JSON. Numbers, texts, None and lists are themselves; any other value is an
object with one key, its kind. A value of no known kind stays with the solution and is a `Remote` to
the tests: equal to nothing but itself, good to be iterated over and to be passed back.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from contextlib import suppress
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing is a good part of a start
    from collections.abc import Callable, Iterator
    from typing import Any

_MAX_LINE = 2**22
_MAX_REASON = 500


class Remote:
    """A value that stayed in the solution's process."""

    def __init__(self, number: int, solution: Solution) -> None:
        self.number = number
        self._solution = solution

    def __iter__(self) -> Iterator[Any]:
        return iter(self._solution.request("items", self.number))


def encode(value: Any, remember: Callable[[Any], int]) -> Any:
    """A value as JSON can hold it; `remember` gives the number of one that is of no known kind.

    Subclasses are sent as what they derive from: a Counter is a dict, as `==` has it.
    """

    def items(values: Any) -> list[Any]:
        return [encode(item, remember) for item in values]

    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        # Decimal digits of long numbers take quadratic time, and Python refuses them.
        return value if abs(value) < 2**63 else {"int": hex(value)}
    if isinstance(value, list):
        return items(value)
    if isinstance(value, dict):
        return {"dict": [items(pair) for pair in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: items(value)}
    return {"remote": remember(value)}


def decode(data: Any, recall: Callable[[int], Any]) -> Any:
    """The value that `encode` was given, of built-in types alone; `recall` gives a remote one."""

    def items(values: Any) -> list[Any]:
        return [decode(item, recall) for item in values]

    if isinstance(data, list):
        return items(data)
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "int":
        return int(content, 16)
    if kind == "dict":
        return {key: value for key, value in map(items, content)}
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "remote":
        return recall(content)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items(content))


# ------------------------------------------------------------------------ the solution's process


def serve(source: str, requests_fd: int, replies_fd: int) -> None:
    """Runs a solution and answers calls of its functions until there are no more.

    It runs as a module that is not `__main__`.
    """
    requests, replies = os.fdopen(requests_fd, "rb"), os.fdopen(replies_fd, "wb")
    # What a solution prints is for nobody. Standard input is /dev/null, open both ways.
    os.dup2(0, 1)
    os.dup2(0, 2)
    kept: list[Any] = []

    def remember(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    def answer(work: Callable[[], Any]) -> None:
        try:
            reply = ["value", encode(work(), remember)]
            line = json.dumps(reply)
        except BaseException as error:  # sys.exit() too: a solution has nothing to end
            line = json.dumps(["error", type(error).__name__, str(error)[:_MAX_REASON]])
        replies.write(line.encode() + b"\n")
        replies.flush()

    module = type(sys)("solution")
    sys.modules["solution"] = module

    def handle(what: str, target: Any, args: Any, kwargs: Any) -> Any:
        if what == "items":
            return list(kept[target])
        if target not in module.__dict__:
            raise NameError(f"name {target!r} is not defined")
        values, named = decode(args, kept.__getitem__), decode(kwargs, kept.__getitem__)
        return module.__dict__[target](*values, **named)

    def load() -> None:
        exec(compile(source, "<solution>", "exec", dont_inherit=True), module.__dict__)

    answer(load)
    for line in requests:
        answer(partial(handle, *json.loads(line)))


# --------------------------------------------------------------------------- the tests' process


class Solution:
    """The tests' view of the solution's process."""

    def __init__(self, requests_fd: int, replies_fd: int, end: Callable[..., Any]) -> None:
        self._requests = os.fdopen(requests_fd, "wb")
        self._replies = os.fdopen(replies_fd, "rb")
        self._end = end

    def request(self, what: str, target: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Has the solution's process do something; returns or raises what it did."""

        def number(value: Any) -> int:
            if not isinstance(value, Remote):
                raise TypeError(f"the tests pass a {type(value).__name__} to the solution")
            return value.number

        message = [what, target, encode(list(args), number), encode(kwargs or {}, number)]
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            self._end(False, "the solution's process ended")
        return self.reply()

    def reply(self) -> Any:
        """The next reply. Whatever is no reply ends the trial: no test may overlook it."""
        line = self._replies.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            too_long = len(line) == _MAX_LINE
            self._end(False, "a reply is too long" if too_long else "the solution's process ended")
        try:
            kind, *content = json.loads(line)
            if kind == "value":
                (data,) = content
                return decode(data, lambda number: Remote(int(number), self))
            name, text = map(str, content)
        except Exception as error:
            self._end(False, f"a reply cannot be read: {type(error).__name__}")
        known = getattr(builtins, name, None)
        raised: Exception = RuntimeError(f"{name}: {text}")
        # StopIteration would end a map() over the solution as if all had gone well.
        if known is StopIteration:
            known = None
        if isinstance(known, type) and issubclass(known, Exception):
            with suppress(TypeError):  # a few are not made of one text
                raised = known(text)
        raise raised

    def function(self, name: str) -> Callable[..., Any]:
        """A function that is the solution's function of that name."""
        return lambda *args, **kwargs: self.request("call", name, args, kwargs)


def give_verdict(token: str, passed: bool | None, reason: str) -> Any:
    """Gives the one verdict, on standard output, and ends the process, so that nothing follows it.

    `passed` is None where the tests cannot be run whatever the solution is.
    """
    # In one piece, past whatever the tests printed and did to the standard library.
    line = json.dumps([token, passed, " ".join(reason.split())[:_MAX_REASON]])
    os.write(1, f"\n{line}\n".encode())
    os._exit(0)


def try_solution(
    token: str,
    setup: str,
    tests: list[str],
    names: list[str],
    requests_fd: int,
    replies_fd: int,
) -> None:
    """Runs tests against the solution's process and gives the verdict.

    Args:
        token: Marks the verdict; the solution's process never sees it.
        setup: Code the tests need, run before the solution's functions get their names.
        tests: Run one after the other; the first that raises has failed.
        names: The solution's functions, as the tests call them.
        requests_fd, replies_fd: Where calls go to, and replies come from.
    """
    end = partial(give_verdict, token)
    solution = Solution(requests_fd, replies_fd, end)
    module = type(sys)("tests")
    sys.modules["tests"] = module
    sources = {f"<test {index}>": test for index, test in enumerate(tests)}
    try:
        exec(compile(setup, "<setup>", "exec", dont_inherit=True), module.__dict__)
        compiled = [
            compile(test, name, "exec", dont_inherit=True) for name, test in sources.items()
        ]
    except Exception as error:
        end(None, f"{type(error).__name__}: {error}")
    module.__dict__.update({name: solution.function(name) for name in names})
    try:
        solution.reply()
        for code in compiled:
            exec(code, module.__dict__)
    except BaseException as error:
        what = f"{type(error).__name__} {_place(error, sources)}"
        end(False, f"{what}: {error}" if str(error) else what)
    end(True, "all tests passed")


def _place(error: BaseException, sources: dict[str, str]) -> str:
    """The line of a test that raised an error; `sources` holds the tests by file name."""
    place = "while the solution loads"
    trace = error.__traceback__
    while trace is not None:
        source = sources.get(trace.tb_frame.f_code.co_filename)
        if source is not None:
            place = f"in {source.splitlines()[trace.tb_lineno - 1].strip()}"
        trace = trace.tb_next
    return place
