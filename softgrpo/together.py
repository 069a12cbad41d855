"""What processes do at the same time, each on its own: they meet at its end, or all stop."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

_Value = TypeVar("_Value")


@contextmanager
def together() -> Iterator[None]:
    """What is done inside stops all processes where it stops one; they meet at its end.

    Every process enters it, and inside none waits for another. One that fails tells the others when
    they have come to the end too: nobody is left waiting in some later exchange.

        with together():
            rollouts = engine.generate(prompts, config, max_new_tokens=limit)

    Raises:
        Exception, KeyboardInterrupt: In all processes that of the first one, by its number, that
            was stopped; where it cannot be sent, a RuntimeError that says the same. A signal that
            comes while a process waits for the others stops them all as well.
    """
    if num_processes() == 1:
        yield
        return
    error: BaseException | None = None
    try:
        yield
    except (Exception, KeyboardInterrupt) as raised:
        error = raised
    with _patient() as interrupts:
        errors: list[BaseException | None] = gathered(error and _sendable(error))
        # Whoever came first may have been interrupted while the others were still at work.
        errors += gathered(next(iter(interrupts), None))
    if error is not None and not any(errors[: process_number()]):
        raise error  # it has its cause and its traceback
    for first in (*errors, *interrupts):
        if first is not None:
            first.is_from_another_process = True  # type: ignore[attr-defined]
            raise first


@contextmanager
def alike() -> Iterator[None]:
    """What every process does alike, before they know each other: one of a machine says its error.

    Raises:
        ValueError: Of what is done inside.
    """
    try:
        yield
    except ValueError as error:
        is_another = os.environ.get("LOCAL_RANK", "0") != "0"
        error.is_from_another_process = is_another  # type: ignore[attr-defined]
        raise


def gathered(value: _Value) -> list[_Value]:
    """The values of all processes, in the order of their numbers; each can be pickled.

    Every process must call it, and waits for the others.
    """
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def process_number() -> int:
    """This process's, from 0; that of the first writes what is written once."""
    return dist.get_rank() if _is_distributed() else 0


def num_processes() -> int:
    """How many there are."""
    return dist.get_world_size() if _is_distributed() else 1


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sendable(error: BaseException) -> BaseException:
    """The error, or its words where the other processes could not make it from what they get."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of the user's does
        kind = ValueError if isinstance(error, ValueError) else RuntimeError  # it is bad input
        return kind(f"{type(error).__name__}: {error}")


@contextmanager
def _patient() -> Iterator[list[KeyboardInterrupt]]:
    """Keep what Ctrl-C and SIGTERM would raise: who leaves an exchange halfway stops it for all.

    Yields:
        What they would have raised so far; signals reach the main thread alone.
    """
    kept: list[KeyboardInterrupt] = []
    former: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        try:
            former[number](number, frame)
        except KeyboardInterrupt as interrupt:
            kept.append(interrupt)

    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(handler := signal.getsignal(number)):
                former[number] = handler
                signal.signal(number, handle)
    try:
        yield kept
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
