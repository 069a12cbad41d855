"""What an answer part is worth: verdicts that need no mathematics beyond fractions.

Not a reward by themselves: `reward.py` finds the answer part and gives them TRL's signature. A
verdict is 1.0 or 0.0, or None where the gold answer is not of its kind. None reads the thinking.
"""

import re
from fractions import Fraction

from softgrpo.rewards.extraction import last_boxed
from softgrpo.rewards.numbers import last_number, only_number, written

_LETTER = re.compile("[A-J]")
# Alone, or with what it stands for behind it: (C), C. 5, C) 5.
_CHOSEN = re.compile(r"\s*\(?\s*([A-J])\s*(?:\Z|[).:])")
_ANNOUNCED = re.compile(
    r"(?i:answer(?:\s+is)?)\s{0,3}:?(?:[\s*$(]|\\\(){0,6}(?:\\(?:text|math)[a-z]{0,2}\{)?\(?"
    r"([B-HJ]\b|[AI]\b(?!\s+[a-z]))"  # "a number" and "I think" choose nothing
)


def exact(answer: str, gold: str) -> float:
    """Whether both are the same text, white space around them aside."""
    return float(answer.strip() == gold.strip())


def numeric(answer: str, gold: str) -> float | None:
    """Whether the answer's number equals gold's, exactly: .5 is 1/2, not .50001.

    See ``number_of``. None where gold has no number.
    """
    expected = number_of(gold)
    return None if expected is None else float(number_of(answer) == expected)


def has_answer(answer: str, gold: str) -> float:
    """Whether there is a box or a number to find in the answer, right or wrong."""
    return float(last_boxed(answer) is not None or last_number(answer) is not None)


def letter(answer: str, gold: str) -> float | None:
    """Whether the answer chooses gold's letter. None where gold is no letter from A to J."""
    expected = gold.strip()
    return float(chosen_letter(answer) == expected) if _LETTER.fullmatch(expected) else None


def chosen_letter(answer: str) -> str | None:
    """The letter in the last box, or without a box the last one announced ("the answer is (C)")."""
    boxed = last_boxed(answer)
    if boxed is not None:
        chosen = _CHOSEN.match(
            re.sub(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it|sf))\b|[{}$]", "", boxed)
        )
        return chosen[1] if chosen else None
    announced = _ANNOUNCED.findall(answer)
    return announced[-1] if announced else None


def number_of(answer: str) -> Fraction | None:
    """The number that the last box is, or without a box the one that the text ends with."""
    boxed = last_boxed(answer)
    return last_number(answer) if boxed is None else only_number(boxed)


def answer_number(answer: str) -> str | None:
    """``number_of`` as one writes it, the same for equal numbers."""
    number = number_of(answer)
    return None if number is None else written(number)
