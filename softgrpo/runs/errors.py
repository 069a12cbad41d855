"""Errors that a run or an evaluation ends with; whatever else is wrong is a plain ValueError."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softgrpo.rewards import RewardError

_logger = logging.getLogger(__name__)


class RunFailed(RuntimeError):
    """A run that had to stop on its way; the message says where, and what is left."""


class OptionError(ValueError):
    """An option of no use.

    Attributes:
        name, value, why: Of which the command line makes a message with its own spelling.
    """

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"{name}={value!r}: {why}")
        self.name, self.value, self.why = name, value, why


def reward_failed(error: RewardError, what_is_left: str) -> RunFailed:
    """The end of a run by a reward of the user's, whose own traceback goes to the log."""
    if error.__cause__ is not None:
        _logger.error("what the reward raised:", exc_info=error.__cause__)
    return RunFailed(f"{error}; {what_is_left}")
