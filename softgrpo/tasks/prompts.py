"""How a problem is put to a model: as chat messages, or as plain text.

Not the chat template: that is the tokenizer's, applied by the trainer and the engines.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softgrpo.tasks.problems import Problem
from softgrpo.values import shown

if TYPE_CHECKING:
    from datasets import Dataset

_PLACEHOLDER = "{question}"
# A name alone in braces. After a letter, a backslash or a brace it is LaTeX: \boxed{answer}.
_UNKNOWN_PLACEHOLDER = re.compile(r"(?<![\\}\w])\{(?!question\})\w+\}")


@dataclass(frozen=True)
class PromptFormat:
    r"""What stands around a question.

    Attributes:
        system: The system message, or None.
        examples: Few-shot turns, (question, answer) each; their questions go through `template`.
        template: The user's message, with {question} where the question goes.
        separator: What stands between a question and its answer in plain text.

    Raises:
        ValueError: A template without {question} or with another {name}, or a malformed example.
    """

    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    template: str = _PLACEHOLDER
    separator: str = "\n"

    def __post_init__(self) -> None:
        if _PLACEHOLDER not in self.template:
            raise ValueError(f"template {self.template!r}: must contain {_PLACEHOLDER}")
        if unknown := _UNKNOWN_PLACEHOLDER.search(self.template):
            raise ValueError(
                f"template {self.template!r}: only {_PLACEHOLDER} is filled, not {unknown[0]}"
            )
        for index, example in enumerate(self.examples):
            match example:
                case [str(), str()]:
                    continue
            raise ValueError(f"examples[{index}] is {example!r}: must be a question and an answer")

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Chat messages, the last of them the question's.

        A problem with a `context` of its own keeps that, without `system` and `examples`.
        """
        context = [dict(message) for message in problem.context] or self._context()
        return [*context, _message("user", self._fill(problem.question))]

    def text(self, problem: Problem) -> str:
        """Plain text, for a model without a chat template.

        Blocks with a blank line between them: the system message, then each question, the
        separator and its answer; it ends with the question and the separator. Without system
        and examples it is the filled template and the separator, nothing else.
        """
        text = ""
        for message in self.messages(problem):
            text += message["content"] + (self.separator if message["role"] == "user" else "\n\n")
        return text

    def _context(self) -> list[dict[str, str]]:
        context = [] if self.system is None else [_message("system", self.system)]
        for question, answer in self.examples:
            context += [_message("user", self._fill(question)), _message("assistant", answer)]
        return context

    def _fill(self, question: str) -> str:
        # replace, as str.format would read the braces of a question or of LaTeX.
        return self.template.replace(_PLACEHOLDER, question)


# What TRL passes to rewards itself, or takes for something else.
_TRLS = {"prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra",
         "log_metric", "environments", "image", "images"}  # fmt: skip


def reward_columns(problem: Problem) -> dict[str, Any]:
    """What a reward is told of a problem, besides its prompt.

    Returns:
        `answer` and `problem_id`, and the source's own columns; without those that bear a name of
        TRL's.
    """
    own = {k: v for k, v in problem.metadata.items() if k not in {"prompt", *_TRLS}}
    return own | {"answer": problem.answer, "problem_id": problem.id}


def to_dataset(
    problems: Sequence[Problem], prompt_format: PromptFormat, conversational: bool
) -> "Dataset":
    """Rows for a TRL trainer.

    Args:
        problems: One row each, in order.
        prompt_format: What stands around the questions.
        conversational: Whether `prompt` is chat messages, for a model with a chat template, or
            plain text.

    Returns:
        A data set with the column `prompt` and those of `reward_columns`; None where a problem has
        not what another has.

    Raises:
        ValueError: A column holds what Arrow cannot, such as whole numbers of more than 64 bits.
    """

    prompt = prompt_format.messages if conversational else prompt_format.text
    rows = [{"prompt": prompt(problem), **reward_columns(problem)} for problem in problems]
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return _dataset(rows, names)
    except Exception as error:  # of many kinds, none of which says which column
        for name in names:
            try:
                _dataset(rows, [name])
            except Exception as cause:
                raise ValueError(
                    f"column {shown(name)} of the problems: a data set cannot hold it: {cause}"
                ) from error
        raise


def _dataset(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> "Dataset":
    from datasets import Dataset

    # A column may hold values of several types, as JSON may.
    return Dataset.from_list(
        [{name: row.get(name) for name in names} for row in rows], on_mixed_types="use_json"
    )


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
