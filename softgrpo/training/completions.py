"""What TRL would do to a completion's text before a reward reads it, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unparsed(tokenizer: Any) -> Iterator[None]:
    """Let rewards read completions as they are: TRL would parse the thinking out of them."""
    names = ("response_template", "response_schema")
    kept = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None)}
    for name in kept:
        setattr(tokenizer, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(tokenizer, name, value)


def check_visible(think_end: tuple[str, ...], tokenizer: Any) -> None:
    """Refuse a marker that TRL strips from a completion before its reward is called."""
    for marker in think_end:
        ids = tokenizer.encode(marker, add_special_tokens=False)
        if marker not in tokenizer.decode(ids, skip_special_tokens=True):
            raise ValueError(
                f"think_end={marker!r}: is a special token of the tokenizer, which rewards never "
                "see; add it as an ordinary token, or choose another marker"
            )
