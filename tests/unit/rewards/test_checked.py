"""What a reward may return, and how it stops a run where it returns something else."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from softgrpo.rewards import CheckedReward, RewardError, checked

COMPLETIONS = ["one", "two", "three"]


def _returning(values: Any) -> Callable[..., Any]:
    def score(completions: list[str], **columns: Any) -> Any:
        return values

    return score


def _call(reward: Callable[..., Any], **columns: Any) -> list[float | None]:
    columns = {"prompts": ["p"] * 3, "completions": list(COMPLETIONS)} | columns
    return checked(reward).now(**columns)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 0.5, -2], [1.0, 0.5, -2.0]),
        ([True, False, None], [1.0, 0.0, None]),
        ([np.float32(0.5), np.int64(2), np.bool_(True)], [0.5, 2.0, 1.0]),
        ([torch.tensor(0.5), torch.tensor(True), np.array(3)], [0.5, 1.0, 3.0]),
        ([torch.tensor(2, dtype=torch.bfloat16), -3, 1e16], [2.0, -3.0, 1e16]),
        ((1, 2, 3), [1.0, 2.0, 3.0]),
        (np.array([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), [1.0, 2.0, 3.0]),
        ((float(n) for n in range(3)), [0.0, 1.0, 2.0]),
    ],
)
def test_numbers_are_numbers_whoever_made_them(values: Any, wanted: list[float | None]) -> None:
    found = _call(_returning(values))
    assert found == wanted
    assert {type(value) for value in found} <= {float, type(None)}


@pytest.mark.parametrize(
    "value",
    [
        float("inf"), float("nan"), 1e308, -1e17, 10**400, torch.tensor(float("nan")),
        np.float64("inf"), "1.0", [1.0], torch.ones(1), 1j, Decimal("1"), Fraction(1, 2), {},
        pytest.param(10**5000, id="5000 digits"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_finite_number_stops_with_its_place(value: Any) -> None:
    with pytest.raises(RewardError) as error:
        _call(_returning([1.0, value, 0.0]))
    for words in ("reward 'score'", "completion 2 of 3", "'two'", "finite int or float"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.0], "returned 2 values for 3 completions"),
        ([], "returned 0 values for 3"),
        (1.0, "returned 1.0; it must be a list"),
        (None, "returned None"),
        ("abc", "returned 'abc'"),
        ({"one": 1, "two": 2, "three": 3}, "returned {'one'"),
        (torch.tensor(1.0), "must be a list|0-d tensor"),
    ],
    ids=str,
)
def test_what_is_no_list_of_one_for_each_stops(values: Any, said: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'score': .*({said})"):
        _call(_returning(values))


def _raise_at_two(completions: list[str], **columns: Any) -> list[float]:
    return [json.loads("{" if completion == "two" else "1") for completion in completions]


def _exit(completions: list[str], **columns: Any) -> list[float]:
    raise SystemExit(0)


def test_an_error_is_told_with_its_line_and_the_completion_in_hand() -> None:
    with pytest.raises(RewardError) as error:
        _call(_raise_at_two)
    line = inspect.getsourcelines(_raise_at_two)[1] + 1
    for words in ("reward '_raise_at_two'", "JSONDecodeError", f"test_checked.py, line {line}",
                  "completion 2 of 3, 'two'"):  # fmt: skip
        assert words in str(error.value)
    assert isinstance(error.value.__cause__, json.JSONDecodeError)


def test_a_reward_cannot_end_the_process_but_ctrl_c_can() -> None:
    with pytest.raises(RewardError, match="reward '_exit': SystemExit: 0"):
        _call(_exit)

    def interrupted(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _call(interrupted)


def test_a_missing_column_is_told() -> None:
    def by_level(completions: list[str], level: list[int], **columns: Any) -> list[float]:
        return [float(n) for n in level]

    assert _call(by_level, level=[1, 2, 3]) == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="'by_level': TypeError: .*'level'"):
        _call(by_level)


def test_what_a_reward_changes_in_its_lists_nobody_sees() -> None:
    def vandal(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        completions[0][0]["content"] = "x"
        columns["level"].clear()
        return [float(len(prompts.pop())) for _ in completions]

    state = object()
    chat = [[{"role": "assistant", "content": "one"}]]
    columns = {"prompts": ["pp"], "completions": chat, "level": [1], "trainer_state": state}
    assert checked(vandal).now(**columns) == [2.0]
    assert chat == [[{"role": "assistant", "content": "one"}]]
    assert columns["prompts"] == ["pp"] and columns["level"] == [1]


def test_what_is_no_list_is_passed_on_as_it_is() -> None:
    state = object()

    def reads(completions: list[str], trainer_state: Any, **columns: Any) -> list[bool]:
        return [trainer_state is state for _ in completions]

    assert _call(reads, trainer_state=state) == [1.0, 1.0, 1.0]


# TRL's conventions --------------------------------------------------------------------------------
async def slow(completions: list[str], factor: float = 1.0, **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [factor * len(completion) for completion in completions]


class SlowJudge:
    async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return await slow(completions)


class Judge:
    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]


@pytest.mark.parametrize(
    "reward", [_raise_at_two, Judge(), SlowJudge(), slow, partial(slow, factor=2.0)]
)
def test_trl_sees_the_same_name_and_kind(reward: Callable[..., Any]) -> None:
    assert get_callable_name(checked(reward)) == get_callable_name(reward)
    assert is_async_callable(checked(reward)) == is_async_callable(reward)
    once = checked(reward)
    assert checked(once) is once


@pytest.mark.parametrize("reward", [slow, SlowJudge()])
def test_an_asynchronous_reward(reward: Callable[..., Any]) -> None:
    columns = {"prompts": ["p"] * 3, "completions": COMPLETIONS}
    assert asyncio.run(checked(reward)(**columns)) == [3.0, 3.0, 5.0]  # type: ignore[arg-type]
    assert checked(reward).now(**columns) == [3.0, 3.0, 5.0]

    async def fails(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        raise SystemExit(0)

    with pytest.raises(RewardError, match="reward 'fails': SystemExit"):
        checked(fails).now(**columns)


def test_it_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(checked(_exit))) == CheckedReward(_exit)
