"""A scheduler that keeps the prefix cache honest.

vLLM finds cached keys and values by a hash of token ids. Where a request has thought, the ids are
those of the reported tokens, but the keys and values are those of mixtures: another request with
the same ids would be served what it never saw. So from the first generated token on a thinking
request's blocks are hashed together with a number of its own. It finds them again after a
preemption; nobody else does. Blocks that hold the prompt only are shared as ever.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from softgrpo.rollout.vllm_plugin.wire import decode_request


class SoftScheduler(Scheduler):
    """vLLM's scheduler; only the hashes of blocks that hold soft tokens differ."""

    def add_request(self, request: Any) -> None:
        """See Scheduler.add_request."""
        if request._block_hasher is not None and request.sampling_params is not None:
            thinking = decode_request(request.sampling_params)
            if thinking is not None and thinking.config.policy != "discrete":
                _salt_generated_blocks(request)
        super().add_request(request)


def _salt_generated_blocks(request: Any) -> None:
    hash_blocks, salt = request._block_hasher, os.urandom(16)

    def salted(request: Any) -> list[Any]:
        hashes = hash_blocks(request)
        return [type(h)(hashlib.sha256(h + salt).digest()) for h in hashes]

    request._block_hasher = salted
