"""Where the answer is in a completion.

Not what it is worth: that is `verdicts.py` and `math_verifier.py`. Pure functions, each linear in
the length of its text, since the text is a model's and may be anything.
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence

Completion = str | Sequence[Mapping[str, str]]
"""What TRL passes to a reward: plain text, or chat messages where the prompt was conversational."""

_NUMBER = re.compile(
    r"""
    (?: (?<! [\w)\]}] ) - )?                        # a minus after an operand is a subtraction
    (?: (?: [0-9]{1,3} (?: ,[0-9]{3} )++ (?![0-9])  # 1,234,567
          | [0-9]++ ) (?: \.[0-9]++ )?
      | \.[0-9]++ )
    (?: [eE][-+]?[0-9]++ )?
    (?: \s?/\s?[0-9]++ (?: \.[0-9]++ )? )?          # 3/4
    """,
    re.VERBOSE | re.ASCII,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(-?[0-9]++)\s?\}\s?\{\s?([0-9]++)\s?\}")
_BRACES = re.compile(r"(?P<box>\\boxed\s?\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)


def completion_text(completion: Completion) -> str:
    """The text of a completion, messages joined."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def answer_part(text: str, think_end: Sequence[str]) -> str | None:
    """What follows the last marker that ends thinking.

    Args:
        text: A whole completion.
        think_end: The markers, any of which ends thinking; none for a model that does not think,
            whose answer is the whole text.

    Returns:
        The answer part; None where the thinking was never closed.
    """
    if not think_end:
        return text
    found = [text.rfind(marker) + len(marker) for marker in think_end if marker in text]
    return text[max(found) :] if found else None


def last_number(text: str) -> str | None:
    r"""The last number of a text, written as Python would: 1,234 as 1234, \frac{3}{4} as 3/4.

    Reads signs, decimals, exponents, thousands' commas and fractions of two numbers. A percent
    sign or unit behind the number is not read.
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",")
    text = _LATEX_FRACTION.sub(r"\1/\2", text)
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return re.sub(r"[,\s]", "", last[0][0]) if last else None


def last_boxed(text: str) -> str | None:
    r"""What the last closed \boxed{...} holds, inner boxes first; None where there is none.

    Escaped braces are text, as in LaTeX: \boxed{\{1, 2\}} holds \{1, 2\}.
    """
    # The starts of the open groups; None for a group that is not a box.
    stack: list[int | None] = []
    boxes: list[tuple[int, int]] = []
    for match in _BRACES.finditer(text):
        if match.lastgroup == "close":
            start = stack.pop() if stack else None
            if start is not None:
                boxes.append((start, match.start()))
        elif match.lastgroup is not None:
            stack.append(match.end() if match.lastgroup == "box" else None)
    if not boxes:
        return None
    start, end = max(boxes)
    return text[start:end]
