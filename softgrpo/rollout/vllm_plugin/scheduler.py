"""A scheduler that keeps the prefix cache honest, and records until they are asked for.

vLLM finds cached keys and values by a hash of token ids. Where a request has thought, the ids are
those of the reported tokens, but the keys and values are those of mixtures: another request with
the same ids would be served what it never saw. So from the first generated token on a thinking
request's blocks are hashed together with a number of its own. It finds them again after a
preemption; nobody else does. Blocks that hold the prompt only are shared as ever.

A packed record is kept here, since here a step's logprobs are arrays still. The worker makes them
for the request, but its front end, which did not ask for any, never sees them.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from softgrpo.rollout.vllm_plugin.packed import KEY, PackedRecord
from softgrpo.rollout.vllm_plugin.wire import decode_request, is_packed, num_logprobs


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
            if is_packed(params):
                params.logprobs = num_logprobs(thinking)  # of the worker, which is told next
                self._records[request.request_id] = PackedRecord(thinking)
        super().add_request(request)

    def update_from_output(self, scheduled: Any, computed: Any) -> Any:
        """See Scheduler.update_from_output."""
        if self._records and computed.logprobs is not None:
            rows = computed.req_id_to_index.items()
            records = {row: self._records[name] for name, row in rows if name in self._records}
            computed.logprobs = _Steps(computed.logprobs, records)
        outputs = super().update_from_output(scheduled, computed)
        for of_client in outputs.values() if self._records else ():
            for output in of_client.outputs:
                if output.finish_reason is not None and output.request_id in self._records:
                    text = self._records.pop(output.request_id).text()
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: text}
        return outputs

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """See Scheduler.finish_requests; these are ended from outside, and nobody wants more."""
        ended = super().finish_requests(*args, **kwargs)
        for request in ended:
            self._records.pop(request.request_id, None)
        return ended


class _Steps:
    """A batch's logprobs in the place of vLLM's own: what it gives out of them is recorded instead.

    Records go by the index of a request in the batch; they are those that asked for packed ones.
    """

    def __init__(self, logprobs: Any, records: dict[int, PackedRecord]) -> None:
        self._logprobs, self._records = logprobs, records
        self._ids = logprobs.logprob_token_ids.astype("<i4", copy=False)
        self._values = logprobs.logprobs.astype("<f4", copy=False)
        self._rows = logprobs.cu_num_generated_tokens  # None: a row a request

    def slice_request(self, index: int, count: int) -> Any:
        """What vLLM sends on of a request's step; ``count`` is 0 where it has drawn none."""
        record = self._records.get(index)
        if record is None:
            return self._logprobs.slice_request(index, count)
        if count:
            row = index if self._rows is None else self._rows[index]
            record.append(self._ids[row], self._values[row])
        return None


def _salt_generated_blocks(request: Any) -> None:
    hash_blocks, salt = request._block_hasher, os.urandom(16)

    def salted(request: Any) -> list[Any]:
        hashes = hash_blocks(request)
        return [type(h)(hashlib.sha256(h + salt).digest()) for h in hashes]

    request._block_hasher = salted
