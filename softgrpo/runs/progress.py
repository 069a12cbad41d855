"""Training on a terminal as a bar, and elsewhere as lines: each log, a count now and then."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from softgrpo.runs.display import Display, duration

_QUIET_SECONDS = 30.0  # after so long without a log, training says that it goes on
_REFRESH_SECONDS = 0.2


class TrainingProgress(TrainerCallback):
    """Steps, reward, KL, tokens per second and time left; takes the trainer's dict prints' place.

    Its `on_rollout` method is meant for SofTGRPOTrainer.on_rollout.
    """

    def __init__(self, sequences: int, display: Display) -> None:
        self._sequences, self._display = sequences, display
        self._bar: Any = None
        self._state: Any = None
        self._status = ""
        self._done = 0
        self._clock = self._last_refresh = self._last_line = 0.0
        self._tokens: float | None = None
        self._started, self._first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._clock = self._last_line = time.monotonic()
        self._state, self._first_step = state, state.global_step
        self._bar = self._display.bar("training", state.max_steps, "step", state.global_step)

    def on_rollout(self, index: int, finished: Any) -> None:
        """Count a finished sequence of the rollout under way."""
        self._done += 1
        rollout = f"rollout {self._done}/{self._sequences}"
        if self._bar is None:
            if self._is_quiet():
                self._print_line(rollout)
        elif time.monotonic() - self._last_refresh > _REFRESH_SECONDS:
            self._last_refresh = time.monotonic()
            self._bar.set_postfix_str(f"{self._status} {rollout}".strip())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        elif self._is_quiet() and not control.should_log:
            self._print_line()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "reward" not in logs:
            return
        self._status = status(logs, self._tokens_per_second(logs.get("num_tokens")))
        if self._bar is not None:
            self._bar.set_postfix_str(self._status)
            return
        self._print_line(self._status)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._last_line > _QUIET_SECONDS

    def _print_line(self, status: str = "") -> None:
        self._last_line = time.monotonic()
        state = self._state
        made = max(state.global_step - self._first_step, 1)
        left = (self._last_line - self._started) / made * (state.max_steps - state.global_step)
        step = f"step {state.global_step}/{state.max_steps}"
        self._display.say("  ".join(filter(None, [step, status, f"{duration(left)} left"])))

    def _tokens_per_second(self, tokens: float | None) -> float | None:
        if tokens is None:
            return None
        now = time.monotonic()
        before, clock = self._tokens, self._clock
        self._tokens, self._clock = tokens, now
        return None if before is None else (tokens - before) / max(now - clock, 1e-9)


def status(logs: dict[str, Any], tokens_per_second: float | None) -> str:
    """The numbers of one log in a few words; its reward is None where nothing was judged."""
    reward = logs["reward"]
    parts = ["nothing judged" if reward is None else f"reward {reward:.3f}"]
    if logs.get("kl") is not None:
        parts.append(f"kl {logs['kl']:.4f}")
    if tokens_per_second is not None:
        parts.append(f"{tokens_per_second:.0f} tokens/s")
    return "  ".join(parts)
