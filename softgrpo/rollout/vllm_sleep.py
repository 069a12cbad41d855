"""vLLM's sleep: its weights and its key-value cache leave the device while the model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def awake(llm: Any, *tags: str) -> Iterator[None]:
    """Have parts of a sleeping ``vllm.LLM`` on the device; afterwards it sleeps, whatever happens.

    It sleeps at level 1: its weights wait in the host's memory, the cache is dropped. Level 2 drops
    both, and they would have to be loaded before the next generation: where the model is sharded
    all processes would have to take part in it, but an evaluation may generate in one of them, and
    as often as it likes. So every generation wakes what it needs and waits for nobody.

    Args:
        llm: Asleep.
        *tags: ``weights``, ``kv_cache`` or both. One after the other, so that where there is no
            room for the second the first is let go of again.
    """
    try:
        for tag in tags:
            llm.wake_up(tags=[tag])
        yield
    finally:
        llm.sleep(level=1)
