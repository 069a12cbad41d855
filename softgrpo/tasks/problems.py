"""A problem, and whether it is for training or for evaluation.

Not a prompt: how a problem is put to a model is `prompts.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "eval"]

EVAL_SHARE = 0.2
"""The share of all possible questions that is held out for evaluation, unless told otherwise."""


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    Attributes:
        id: Names the problem in records; distinct within a source and stable from run to run.
        question: The bare question, before any prompt format.
        answer: The gold answer, as text.
        metadata: Whatever else the source says about the problem.
        context: Chat messages that the source puts before the question (a system message, earlier
            turns). Where there are any, they stand in place of the prompt format's own.
    """

    id: str
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    context: tuple[Mapping[str, str], ...] = ()


def question_digest(question: str) -> str:
    """A hexadecimal digest of a question, blind to differences in white space."""
    return hashlib.sha256(" ".join(question.split()).encode(errors="surrogatepass")).hexdigest()


def split_of(question: str, eval_share: float = EVAL_SHARE) -> Split:
    """The side a question belongs to, decided by its text alone.

    No seed, order or file enters, so a question seen in training is never one of evaluation.
    """
    return "eval" if int(question_digest(question)[:8], 16) < eval_share * 2**32 else "train"
