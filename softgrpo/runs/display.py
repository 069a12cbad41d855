"""What a run says while it works, all by one object: replace it, or silence it.

    runs.train("recipe.yaml", display=Silent())

A subclass of `Display` that overrides `say` has the lines elsewhere. It imports nothing heavy.
"""

from __future__ import annotations

import sys
import time
from threading import Lock
from typing import Any

_LINE_SECONDS = 10.0


class Display:
    """Lines on standard output, warnings on standard error, and a bar where that is a terminal."""

    def say(self, line: str) -> None:
        """Tell something; it may have several lines."""
        print(line, flush=True)

    def warn(self, line: str) -> None:
        """Tell what is wrong with something that is used all the same."""
        print(line, file=sys.stderr)

    def bar(self, label: str, total: int, unit: str, initial: int) -> Any:
        """A tqdm bar; None where nobody would see it move, and lines are said instead."""
        if not sys.stderr.isatty():
            return None
        from tqdm import tqdm

        return tqdm(
            total=total, desc=label, unit=unit, initial=initial, file=sys.stderr, dynamic_ncols=True
        )


class Silent(Display):
    """Says and shows nothing."""

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...

    def bar(self, label: str, total: int, unit: str, initial: int) -> None: ...


class Counter:
    """Progress of samples, some from before (``initial``): call it at each new one. Thread-safe."""

    def __init__(self, display: Display, label: str, total: int, initial: int) -> None:
        self._display, self._label, self._total = display, label, total
        self._started = self._last_line = time.monotonic()
        self._initial = self._count = initial
        self._lock = Lock()
        self._bar = display.bar(label, total, "samples", initial)

    def __call__(self, status: str) -> None:
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if self._bar is not None:
                self._bar.set_postfix_str(status, refresh=False)
                self._bar.update(1)
            elif now - self._last_line > _LINE_SECONDS:
                self._last_line = now
                pace = (now - self._started) / (self._count - self._initial)
                left = duration(pace * (self._total - self._count))
                done = f"{self._label}: {self._count}/{self._total} samples"
                self._display.say(f"{done}  {status}  {left} left")

    def close(self) -> None:
        """Leave one line that says how long it took."""
        if self._bar is not None:
            self._bar.close()
        took = duration(time.monotonic() - self._started)
        newly = self._count - self._initial
        self._display.say(f"{self._label}: {newly} samples in {took}")


def duration(seconds: float) -> str:
    """90 -> 1m30s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"
