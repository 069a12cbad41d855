"""One call of each reward on a completion made up for it, before anything is spent on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import TrainerState

from softgrpo.rewards import CheckedAsyncReward, CheckedReward, RewardError
from softgrpo.runs.judging import Judge, as_completion
from softgrpo.tasks import Problem, reward_columns


def try_rewards(
    rewards: Sequence[CheckedReward | CheckedAsyncReward],
    row: Mapping[str, Any],
    tokenizer: Any,
    think_end: Sequence[str],
) -> None:
    """Call the rewards of training as TRL will, on a row of its data.

    Raises:
        ValueError: One fails; says how, and on what.
    """
    text = _right_answer(row["answer"], think_end)
    completion = as_completion(text, is_chat=not isinstance(row["prompt"], str))
    columns: dict[str, Any] = {name: [value] for name, value in row.items() if name != "prompt"}
    columns |= {
        "completion_ids": [tokenizer(text, add_special_tokens=False)["input_ids"]],
        "trainer_state": TrainerState(),
        "log_extra": lambda name, value: None,
        "log_metric": lambda name, value: None,
    }
    for reward in rewards:
        call = partial(reward.now, prompts=[row["prompt"]], completions=[completion], **columns)
        _try(call, completion, columns)


def try_judge(judge: Judge, problem: Problem, is_chat: bool, think_end: Sequence[str]) -> None:
    """Judge one completion as evaluation will, of whose training nothing is known.

    Raises:
        ValueError: It fails; says how, and on what.
    """
    text = _right_answer(problem.answer, think_end)
    _try(partial(judge, problem, text), as_completion(text, is_chat), reward_columns(problem))


def _try(call: Callable[[], object], completion: Any, columns: Iterable[str]) -> None:
    try:
        call()
    except Exception as error:  # a verifier of ours, too, may not be able to read a gold answer
        what = str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{what}; it was tried before the run on the completion {completion!r} (chat: true "
            f"gives messages, chat: false text) with the columns {', '.join(columns)}"
        ) from error


def _right_answer(answer: str, think_end: Sequence[str]) -> str:
    return f"{think_end[0] if think_end else ''}{answer}"
