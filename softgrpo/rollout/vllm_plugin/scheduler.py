"""A scheduler that keeps the prefix cache honest, and records until they are asked for.

vLLM finds cached keys and values by a hash of token ids. Where a request has thought, the ids are
those of the reported tokens, but the keys and values are those of mixtures: another request with
the same ids would be served what it never saw. So from the first generated token on a thinking
request's blocks are hashed together with a number of its own. It finds them again after a
preemption; nobody else does. Blocks that hold the prompt only are shared as ever.

A packed record is kept here, since here a step's logprobs are arrays still. The request gets them
from the worker, but its front end, which did not ask for any, never sees them.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from softgrpo.rollout.vllm_plugin.packed import KEY, PackedRecord
from softgrpo.rollout.vllm_plugin.wire import decode_request


class SoftScheduler(Scheduler):
    """vLLM's scheduler, with other hashes of blocks that hold soft tokens, and packed records."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._records: dict[str, PackedRecord] = {}  # by the id of a request that has not ended

    def add_request(self, request: Any) -> None:
        """See Scheduler.add_request."""
        params = request.sampling_params
        thinking = None if params is None else decode_request(params)
        if thinking is not None:
            if request._block_hasher is not None and thinking.config.policy != "discrete":
                _salt_generated_blocks(request)
            if thinking.record == "packed":
                params.logprobs = thinking.num_logprobs  # of the worker, which is told next
                self._records[request.request_id] = PackedRecord(thinking)
        super().add_request(request)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """See Scheduler.update_from_output."""
        outputs = super().update_from_output(*args, **kwargs)
        if self._records:
            for of_client in outputs.values():
                for output in of_client.outputs:
                    self._take_record(output)
        return outputs

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """See Scheduler.finish_requests; these are ended from outside, and nobody wants more."""
        ended = super().finish_requests(*args, **kwargs)
        for request in ended:
            self._records.pop(request.request_id, None)
        return ended

    def _take_record(self, output: Any) -> None:
        """Move a step's logprobs into its request's record, and hand that over with the last."""
        record = self._records.get(output.request_id)
        if record is None:
            return
        if output.new_logprobs is not None:
            steps = output.new_logprobs
            for ids, values in zip(steps.logprob_token_ids, steps.logprobs, strict=True):
                record.append(ids, values)
            output.new_logprobs = None
        if output.finish_reason is not None:
            del self._records[output.request_id]
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: record.text()}


def _salt_generated_blocks(request: Any) -> None:
    hash_blocks, salt = request._block_hasher, os.urandom(16)

    def salted(request: Any) -> list[Any]:
        hashes = hash_blocks(request)
        return [type(h)(hashlib.sha256(h + salt).digest()) for h in hashes]

    request._block_hasher = salted
