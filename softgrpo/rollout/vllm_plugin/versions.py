"""Which vLLM this works with. Its extension points are not a public interface: a release may move
them, and only a test of rollout against replay can tell whether soft thinking still is what it was.
"""

from __future__ import annotations

import importlib.util
import os
import re

# The releases tests/vllm has passed with.
TESTED = ((0, 31), (0, 31))
OVERRIDE = "SOFTGRPO_ANY_VLLM"


def require_vllm() -> None:
    """Raise ValueError, with what would do, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed: pip install softgrpo[vllm], or, without a GPU, make vllm"
        )


def check_version(version: str) -> None:
    """Raise ValueError, with the range and the way to override, at a vLLM that is not tested."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    low, high = TESTED
    if not low <= found <= high and not os.environ.get(OVERRIDE):
        releases = [".".join(map(str, release)) for release in (low, high)]
        span = releases[0] if low == high else " to ".join(releases)
        raise ValueError(
            f"vLLM {version}: soft thinking is tested with vLLM {span} and uses parts of it that "
            f"other releases may have moved. Install one of those, or set {OVERRIDE}=1 to go on "
            "and run tests/vllm to see whether it holds"
        )
