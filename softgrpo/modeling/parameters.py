"""A model's parameters, whichever way they are kept."""

from __future__ import annotations

from typing import Any


def whole(parameter: Any) -> Any:
    """The whole parameter where FSDP2 keeps a shard (with its gradient), else itself."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
