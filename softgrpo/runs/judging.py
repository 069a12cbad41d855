"""What tells whether a completion solves a problem: a verifier, or a reward of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from softgrpo.rewards import VERIFIERS, Judgement, judge, load_reward
from softgrpo.sandbox import SandboxUnavailable, run_python
from softgrpo.tasks import Problem, reward_columns

Judge = Callable[[Problem, str], Judgement]


def make_judge(
    spec: str,
    put: Callable[[Problem], Any],
    *,
    think_end: Sequence[str],
    threshold: float = 0.5,
) -> Judge:
    """What tells whether a completion solves a problem.

    Args:
        spec: As in load_reward.
        put: A problem as it is put to the model, in messages or in text. A reward of the user's is
            given completions of the same kind.
        think_end: The markers that end thinking.
        threshold: A completion is correct when a reward of the user's is above it.

    Raises:
        ValueError: As load_reward; or programs are to be judged and there is no sandbox.
    """
    reward = load_reward(spec, think_end=think_end)
    if spec in ("humaneval", "mbpp"):
        try:
            run_python("")
        except SandboxUnavailable as error:
            raise ValueError(f"{spec}: programs cannot be run safely here: {error}") from error
    if spec in VERIFIERS:
        return lambda problem, text: judge(spec, text, problem.answer, think_end)

    def by_reward(problem: Problem, text: str) -> Judgement:
        prompt = put(problem)
        columns = {name: [value] for name, value in reward_columns(problem).items()}
        completion = as_completion(text, is_chat=not isinstance(prompt, str))
        [value] = reward.now(prompts=[prompt], completions=[completion], **columns)
        return Judgement(value is not None and value > threshold, None)

    return by_reward


def as_completion(text: str, is_chat: bool) -> Any:
    """A completion as TRL gives it to rewards: messages where the prompt is, and else text."""
    return [{"role": "assistant", "content": text}] if is_chat else text
