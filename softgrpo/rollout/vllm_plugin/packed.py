"""A sequence's record in one piece, a text that comes back when the sequence has ended.

Logprobs are an object a step and column on their way through vLLM's front end, and JSON after it:
more work than all the rest of a token. A request that asks for ``soft_record: "packed"`` is spared
them. The scheduler, where the steps come in as arrays, keeps their bytes, and hands them over with
the last step in the one field that vLLM passes on to a client as it is, ``kv_transfer_params``.

It knows no vLLM: both sides use it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from softgrpo.rollout.request import Request
from softgrpo.rollout.vllm_plugin.wire import Record, decode_steps, num_logprobs

# Where the text lies in a response's kv_transfer_params.
KEY = "soft_record"


class PackedRecord:
    """A request's steps so far; each is K ids in int32, then C values in float32."""

    def __init__(self, request: Request) -> None:
        self._num_ids, self._num_values = request.config.num_columns, num_logprobs(request)
        self._bytes = bytearray()

    def append(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Take a step's logprobs as vLLM has them, the reported token in front.

        Both are [1 + C] or more, contiguous, int32 and float32.
        """
        self._bytes += ids[1 : 1 + self._num_ids].data
        self._bytes += values[1 : 1 + self._num_values].data

    def text(self) -> str:
        """All steps, in base64."""
        return base64.b64encode(self._bytes).decode()


def unpack(handed_over: Mapping[str, Any] | None, request: Request, engine: str) -> Record:
    """Read a record that came back in a response's ``kv_transfer_params``.

    Raises:
        ValueError: There is no record.
    """
    text = (handed_over or {}).get(KEY)
    if text is None:
        raise ValueError(
            "a sequence came back without its record: vLLM ended it before its time, or does not "
            "run with the scheduler of softgrpo serve"
        )
    steps = np.frombuffer(bytearray(base64.b64decode(text)), dtype="<i4")
    steps = steps.reshape(-1, request.config.num_columns + num_logprobs(request))
    ids, values = np.split(steps, [request.config.num_columns], axis=1)
    columns = torch.from_numpy(ids), torch.from_numpy(values.view("<f4"))
    return decode_steps(*columns, request, engine)
