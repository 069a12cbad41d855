"""The laboratory's task: chains of five numbers, calculated from left to right modulo ten.

A problem reads ``7 + 4 * 3 - 8 + 5 =``. The thought takes one step after the other, each as
operator, operand and result (``+ 4 1 * 3 3 - 8 5 + 5 0``), and the answer follows ``</t>``: ``0``.
Every word is one token of the laboratory's tokenizer.

It is text only: no tokenizer, no tensor, no reward.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Split = Literal["train", "heldout"]

THINK_END = "</t>"
OPERATORS = ("+", "-", "*")
NUM_OPERANDS = 5
MODULUS = 10

_HELDOUT_SHARE = 10  # one problem in ten is never trained on


@dataclass(frozen=True)
class ChainProblem:
    """One problem with a thought about it.

    Attributes:
        prompt: The problem's text, ``7 + 4 * 3 - 8 + 5 =``.
        thought: The worked steps, without the marker; with slips where the problem was made so.
        answer: The right answer, whatever the thought comes to.
    """

    prompt: str
    thought: str
    answer: str

    @property
    def completion(self) -> str:
        """Thought, marker and the thought's own last result: an answer follows from its thought."""
        return f"{self.thought} {THINK_END} {self.thought.split()[-1]}"


def make_problems(
    n: int, seed: int, split: Split = "train", *, corrupt: float = 0.0
) -> list[ChainProblem]:
    """Draws problems of one split; the same arguments give the same problems.

    Args:
        n: How many.
        seed: Seed of the draw. Splits are disjoint whatever their seeds.
        split: ``train`` or ``heldout``; a problem's hash decides where it belongs.
        corrupt: Share of wrong results in the thoughts, in [0, .5], unevenly spread: a share
            ``2 * corrupt`` of the facts ("3 * 7 is 1") is shaky, each with its own odds anywhere
            between always right and always wrong, and wrong always in the same way. So no lowering
            of a temperature mends what is learnt from them, only practice does, fact by fact.
            A slip is carried on: later steps calculate from it. Prompts and answers are the same
            for every `corrupt`.

    Returns:
        The problems, in the order drawn. A repetition is possible, as in any draw from 8.1 million.
    """
    draws, slips = random.Random(seed), random.Random(f"slips {seed}")
    problems: list[ChainProblem] = []
    while len(problems) < n:
        start = draws.randrange(MODULUS)
        steps = [
            (draws.choice(OPERATORS), draws.randrange(MODULUS)) for _ in range(NUM_OPERANDS - 1)
        ]
        prompt = " ".join([str(start), *(f"{op} {operand}" for op, operand in steps), "="])
        if _split_of(prompt) == split:
            right = _work(start, steps, 0.0, slips)
            thought = _work(start, steps, corrupt, slips)
            problems.append(ChainProblem(prompt, thought, answer=right.split()[-1]))
    return problems


def stated_answer(completion: str) -> str | None:
    """The first word after the end of thinking, or None where thinking never ended."""
    words = completion.partition(THINK_END)[2].split()
    return words[0] if words else None


def _split_of(prompt: str) -> Split:
    return "train" if zlib.crc32(prompt.encode()) % _HELDOUT_SHARE else "heldout"


def _work(
    value: int, steps: Sequence[tuple[str, int]], corrupt: float, slips: random.Random
) -> str:
    words = []
    for op, operand in steps:
        value = _result(op, value, operand, corrupt, slips)
        words.append(f"{op} {operand} {value}")
    return " ".join(words)


def _result(op: str, left: int, right: int, corrupt: float, slips: random.Random) -> int:
    value = {"+": left + right, "-": left - right, "*": left * right}[op]
    firmness, offset = _character(op, left, right)
    # Firmness is uniform on [0, 1]: facts below 2 * corrupt are shaky, the mean odds are corrupt.
    is_slip = corrupt > 0 and slips.random() < 1 - firmness / (2 * corrupt)
    return (value + is_slip * offset) % MODULUS


@cache
def _character(op: str, left: int, right: int) -> tuple[float, int]:
    """How firmly a fact is known, in [0, 1], and by how much it is missed when it is."""
    draws = random.Random(f"{left} {op} {right}")
    return draws.random(), draws.randrange(1, MODULUS)
