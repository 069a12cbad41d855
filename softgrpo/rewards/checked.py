"""Rewards held to their promise: for each completion a finite number, a bool, or None.

Every reward passes through here, in training and in evaluation. Not what a reward is worth.
"""

import asyncio
import copy
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from softgrpo.values import shown

_LARGEST = 1e16  # TRL squares and sums rewards in float32, which ends at 3e38


class RewardError(ValueError):
    """A reward raised an error or returned what is no reward; the error is its cause."""


@dataclass(frozen=True)
class _Checked:
    """A reward in TRL's signature and under its own name.

    It is given copies of its lists: what it changes in them, no other reward sees. A class and not
    a closure, so that it can be pickled.

    Attributes:
        reward: The reward, fn(prompts, completions, **columns) -> a value for each completion.
    """

    reward: Callable[..., Any]

    @property
    def __name__(self) -> str:
        # As TRL names it in its logs.
        function = _innermost(self.reward)
        return getattr(function, "__name__", type(function).__name__)

    @contextmanager
    def _blamed(self, columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Copies of the columns for the reward; an error inside is told as the reward's."""
        own = {k: copy.deepcopy(v) if isinstance(v, list) else v for k, v in columns.items()}
        given = list(own["completions"])
        try:
            yield own
        except RewardError:
            raise
        except (Exception, SystemExit) as error:  # a reward cannot end a run in silence
            what = f"{type(error).__name__}: {error}{_place(error)}"
            at = _completion_in_hand(error, given)
            raise RewardError(f"reward {self.__name__!r}: {what}{at}") from error

    def _values(self, returned: Any, completions: Sequence[Any]) -> list[float | None]:
        if isinstance(returned, str | Mapping) or not isinstance(returned, Iterable):
            raise RewardError(
                f"reward {self.__name__!r}: returned {shown(returned)}; it must be a list with a "
                "value for each completion"
            )
        values = list(returned)
        if len(values) != len(completions):
            raise RewardError(
                f"reward {self.__name__!r}: returned {len(values)} values for {len(completions)} "
                "completions; it must be one for each"
            )
        return [self._value(value, index, completions) for index, value in enumerate(values)]

    def _value(self, value: Any, index: int, completions: Sequence[Any]) -> float | None:
        # A scalar of numpy or torch, neither of which is imported here.
        number = value.item() if getattr(value, "shape", None) == () else value
        if number is None:
            return None
        if isinstance(number, int | float) and -_LARGEST <= number <= _LARGEST:  # which NaN is not
            return float(number)
        raise RewardError(
            f"reward {self.__name__!r}: returned {shown(value)}{_at(index, completions)}; it must "
            f"be a finite int or float (at most {_LARGEST:.0e}), a bool, or None: not judged"
        )


class CheckedReward(_Checked):
    """A reward that is a function."""

    def __call__(self, **columns: Any) -> list[float | None]:
        """One reward for each completion, as TRL asks for them.

        Args:
            columns: `prompts`, `completions`, the data's columns and what else TRL passes.

        Raises:
            RewardError: The reward raised an error, or returned something else.
        """
        with self._blamed(columns) as own:
            return self._values(self.reward(**own), columns["completions"])

    def now(self, **columns: Any) -> list[float | None]:
        """The same for whoever has no event loop."""
        return self(**columns)


class CheckedAsyncReward(_Checked):
    """A reward that is a coroutine function, which TRL runs beside others."""

    async def __call__(self, **columns: Any) -> list[float | None]:
        """As `CheckedReward`, when awaited."""
        with self._blamed(columns) as own:
            return self._values(await self.reward(**own), columns["completions"])

    def now(self, **columns: Any) -> list[float | None]:
        """As `CheckedReward.now`."""
        return asyncio.run(self(**columns))


def checked(reward: Callable[..., Any]) -> CheckedReward | CheckedAsyncReward:
    """A reward that stops with its name where it breaks its promise; once is enough."""
    if isinstance(reward, CheckedReward | CheckedAsyncReward):
        return reward
    function = _innermost(reward)
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return CheckedAsyncReward(reward)
    return CheckedReward(reward)


def _innermost(reward: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(reward, partial):
        reward = reward.func
    return reward


def _place(error: BaseException) -> str:
    """The deepest line of the reward's own file that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _completion_in_hand(error: BaseException, completions: Sequence[Any]) -> str:
    """Which completion a reward was looking at, by the variables that it leaves behind."""
    numbers = {id(completion): index for index, completion in enumerate(completions)}
    at = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if frame.f_code.co_filename != __file__ and id(value) in numbers:
                at = _at(numbers[id(value)], completions)
    return at


def _at(index: int, completions: Sequence[Any]) -> str:
    return f" for completion {index + 1} of {len(completions)}, {shown(completions[index])}"
