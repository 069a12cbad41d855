"""Whether a completion's program passes a problem's tests: HumanEval and MBPP.

Nothing of a completion is run or even parsed in this process: `softgrpo.sandbox` does that. A gold
object is trusted: its tests are run, in a sandbox all the same.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from softgrpo.sandbox import CodeVerdict, judge_solution

_FENCE = re.compile(r"(?P<indent>[ \t]*+)(?P<ticks>`{3,}+|~{3,}+)(?P<tag>[^\n`]*+)\n?")
_FUTURE = re.compile(r"^from __future__ import (?:\([^()]*\)|[^(\n]*)\n", re.MULTILINE)
_PYTHON_TAGS = {"", "python", "python3", "py"}


def last_block(text: str, name: str | None = None) -> str | None:
    """The last fenced block of Python in a text; None where there is none.

    A block that is never closed reaches to the end of the text. Blocks of other languages do not
    count.

    Args:
        text: An answer part.
        name: A function; the last block that defines it is preferred, so that an example of its
            use may follow.
    """
    blocks: list[str] = []
    lines: list[str] | None = None
    fence = indent = ""
    for line in io.StringIO(text):
        match = _FENCE.fullmatch(line)
        if match and not fence:
            fence, indent = match["ticks"], match["indent"]
            lines = [] if match["tag"].strip().lower() in _PYTHON_TAGS else None
        elif match and match["ticks"].startswith(fence) and not match["tag"].strip():
            blocks += [] if lines is None else ["".join(lines)]
            fence, lines = "", None
        elif lines is not None:
            lines.append(line.removeprefix(indent))
    blocks += [] if lines is None else ["".join(lines)]
    defining = [block for block in blocks if name is not None and _defines(block, name)]
    return (defining or blocks)[-1] if blocks else None


def humaneval_program(answer: str, prompt: str, entry_point: str) -> str:
    """The program that an answer to a HumanEval problem makes.

    The answer's last block of Python, or without a block the answer itself. Where that defines the
    function, it follows the prompt, whose imports and helpers it may need. Otherwise it is read as
    the function's body, up to the first line that is not indented.
    """
    block = last_block(answer, entry_point)
    code = answer if block is None else block
    is_body = code.lstrip("\r\n")[:1] in (" ", "\t") or not _defines(code, entry_point)
    if is_body:
        return prompt + _body(code)
    # Python takes these at a program's beginning alone.
    futures = "".join(_FUTURE.findall(code))
    return f"{futures}{prompt}\n{_FUTURE.sub('', code)}"


def mbpp_program(answer: str, names: Sequence[str]) -> str:
    """The last block of Python in an answer; without a block the answer itself."""
    block = last_block(answer, names[0] if names else None)
    return answer if block is None else block


def verify_humaneval(answer: str, gold: Mapping[str, Any]) -> CodeVerdict:
    """Whether an answer solves a HumanEval problem.

    Args:
        answer: What follows the thinking: see `extraction.answer_part`.
        gold: `prompt`, `test` and `entry_point`, as the data set has them.

    Raises:
        ValueError: The problem's tests cannot be run, whatever the solution.
        SandboxUnavailable: This machine cannot sandbox it.
        OSError: It has no memory, process or file left for it: the solution is not judged.
    """
    entry_point = gold["entry_point"]
    return judge_solution(
        humaneval_program(answer, gold["prompt"], entry_point),
        # The prompt alone is a program: its function has a docstring for a body. Its helpers are
        # the tests' own, so that a solution cannot put others in their place.
        setup=gold["prompt"],
        tests=[f"{gold['test']}\ncheck({entry_point})"],
        names=[entry_point],
    )


def verify_mbpp(answer: str, gold: Mapping[str, Any]) -> CodeVerdict:
    """Whether an answer solves an MBPP problem; as `verify_humaneval`.

    Args:
        answer: What follows the thinking.
        gold: `code`, `test_list` and `test_import`, as the sanitized data set has them. Of `code`
            only the names it defines are used.
    """
    names = _tested_names(gold["code"], gold["test_list"])
    return judge_solution(
        mbpp_program(answer, names),
        setup="\n".join(gold["test_import"]),
        tests=gold["test_list"],
        names=names,
    )


def _defines(code: str, name: str) -> bool:
    name = re.escape(name)
    kinds = rf"^(?:(?:async )?def|class) {name}\b|^{name}\s*(?::[^=\n]*)?=(?!=)"
    return re.search(kinds, code, re.MULTILINE) is not None


def _body(code: str) -> str:
    """The first lines of a text that are indented or empty, or close a bracket."""
    lines = []
    for line in io.StringIO(code):
        if line.strip() and line[0] not in " \t)]}":
            break
        lines.append(line)
    return "".join(lines)


def _tested_names(code: str, tests: Sequence[str]) -> list[str]:
    """The functions and classes that the gold solution defines and the tests name, sorted."""
    defined = re.findall(r"^(?:def|class)\s+(\w+)", code, re.MULTILINE)
    return sorted(set(defined) & set(re.findall(r"\w+", " ".join(tests))))
