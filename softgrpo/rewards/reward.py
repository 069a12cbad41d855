"""Rewards as TRL calls them, and how a recipe names them.

Not their sum: several rewards are weighed by TRL's `reward_weights`.
"""

import importlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from softgrpo.rewards.checked import CheckedAsyncReward, CheckedReward, checked
from softgrpo.rewards.code import verify_humaneval, verify_mbpp
from softgrpo.rewards.extraction import Completion, answer_part, completion_text
from softgrpo.rewards.math_verifier import math_answer, math_verify
from softgrpo.rewards.verdicts import (
    answer_number,
    chosen_letter,
    exact,
    has_answer,
    letter,
    numeric,
)

_NUM_THREADS = 2


class Verifier(NamedTuple):
    """How answers of one kind are read and judged.

    Attributes:
        verdict: (answer part, gold) -> 1.0, 0.0, or None where gold is not of this kind.
        extract: What of an answer part is the answer, as text; None where there is none.
    """

    verdict: Callable[[str, str], float | None]
    extract: Callable[[str], str | None]


def _humaneval(answer: str, gold: str) -> float:
    return float(verify_humaneval(answer, _tests(gold, "prompt", "test", "entry_point")).passed)


def _mbpp(answer: str, gold: str) -> float:
    return float(verify_mbpp(answer, _tests(gold, "code", "test_list", "test_import")).passed)


def _tests(gold: str, *names: str) -> dict[str, Any]:
    """The tests that a gold answer holds; ValueError where it is something else."""
    try:
        tests = json.loads(gold)
    except (ValueError, RecursionError):
        tests = None
    if not isinstance(tests, dict) or not tests.keys() >= set(names):
        raise ValueError(
            f"the gold answer {gold[:40]!r} holds no tests: it must be a JSON object with "
            f"{', '.join(names)}"
        )
    return tests


VERIFIERS = {
    "exact": Verifier(exact, str.strip),
    "numeric": Verifier(numeric, answer_number),
    "math_verify": Verifier(math_verify, math_answer),
    "letter": Verifier(letter, chosen_letter),
    "format": Verifier(has_answer, math_answer),
    # Their gold answers are JSON objects: see rewards.code and tasks.benchmarks. Programs are not
    # answers that a majority could agree on.
    "humaneval": Verifier(_humaneval, lambda answer: None),
    "mbpp": Verifier(_mbpp, lambda answer: None),
}


@dataclass(frozen=True)
class Judgement:
    """What a verifier says of one completion.

    Attributes:
        correct: The verdict.
        answer: What was taken for the answer; None where there is none, or nobody can tell.
    """

    correct: bool
    answer: str | None


def judge(name: str, text: str, gold: str, think_end: Sequence[str]) -> Judgement:
    """Judge a completion by a key of `VERIFIERS`; one that never ends its thinking is wrong.

    Raises:
        OSError: The machine has no memory, process or file left to judge with.
    """
    part = answer_part(text, think_end)
    if part is None:
        return Judgement(False, None)
    verifier = VERIFIERS[name]
    return Judgement(verifier.verdict(part, gold) == 1.0, verifier.extract(part))


@dataclass(frozen=True)
class Reward:
    """A verdict on each completion's answer part, in TRL's signature.

    A class and not a closure, so that it can be pickled, and so that TRL logs it by its own name:
    `rewards/numeric/mean`.

    Attributes:
        name: A key of `VERIFIERS`.
        think_end: The markers that end thinking; see `extraction.answer_part`.
    """

    name: str
    think_end: tuple[str, ...]

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        answer: Sequence[str],
        **columns: Any,
    ) -> list[float | None]:
        """One reward each; of the data set's columns the gold answers, `answer`, are read.

        Returns:
            1.0 or 0.0; 0.0 where the thinking was never closed; None where the gold answer is not
            of the verdict's kind, or the machine has no memory, process or file left to judge with.
        """
        texts = map(completion_text, completions)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:  # they wait for the verifiers' processes
            return list(pool.map(self._judge, texts, answer))

    def _judge(self, text: str, gold: str) -> float | None:
        part = answer_part(text, self.think_end)
        try:
            return 0.0 if part is None else VERIFIERS[self.name].verdict(part, gold)
        except OSError as error:
            warnings.warn(f"reward {self.name!r}: not judged: {error}", stacklevel=2)
            return None


def load_reward(spec: str, *, think_end: Sequence[str]) -> CheckedReward | CheckedAsyncReward:
    """The reward a recipe names, held to its promise by `checked`.

    Args:
        spec: A key of `VERIFIERS`, or `module:function` for a function of the user's with TRL's
            signature, fn(prompts, completions, **columns) -> list[float | None], from where Python
            finds modules or else the current directory.
        think_end: The markers that end thinking, none for a model that does not think. A function
            of the user's is given them where it has a parameter `think_end`.

    Raises:
        ValueError: Unknown name, no such module or function, not callable, or malformed markers.
    """
    if isinstance(think_end, str) or not all(think_end):
        raise ValueError(f"think_end={think_end!r}: must be a list of strings, none of them empty")
    if spec in VERIFIERS:
        return checked(Reward(spec, tuple(think_end)))
    module_name, colon, function_name = spec.partition(":")
    if not colon:
        raise ValueError(
            f"reward {spec!r}: unknown; there are {', '.join(VERIFIERS)}, and module:function"
        )
    module = _import(spec, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"reward {spec!r}: {function_name!r} in {getattr(module, '__file__', module_name)} "
            + ("does not exist" if function is None else f"is a {type(function).__name__}")
            + "; it must be a function(prompts, completions, **columns)"
        )
    if "think_end" in inspect.signature(function).parameters:
        return checked(partial(function, think_end=tuple(think_end)))
    return checked(function)


def _import(spec: str, module_name: str) -> ModuleType:
    """A module of the user's; what it raises while it is imported is told as its own."""
    # Last: a file that lies there by chance must not stand in for an installed module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"reward {spec!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); it "
            "is looked for on PYTHONPATH and in the current directory"
        ) from error
