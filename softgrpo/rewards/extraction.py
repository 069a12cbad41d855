"""Where the answer is in a completion.

Not what it is worth: that is `numbers.py`, `verdicts.py` and `math_verifier.py`. Pure functions,
each linear in the length of its text, since the text is a model's and may be anything.
"""

import re
from collections.abc import Mapping, Sequence

Completion = str | Sequence[Mapping[str, str]]
"""What TRL passes to a reward: plain text, or chat messages where the prompt was conversational."""

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
