"""A logits processor that changes no logits: vLLM asks it whether a request's settings are right.

It runs where requests come in. There a server's defaults are put into them, and a wrong one is
refused (HTTP 400 with the entry's name): it never reaches a worker, which it would bring down.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.tokenizers import get_tokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as ProcessorV2

from softgrpo.rollout.vllm_plugin.wire import (
    complete_request,
    decode_request,
    default_settings,
    is_packed,
)
from softgrpo.thinking.phases import Markers, Tokenizer

# Where a server keeps its tokenizer's folder or id, by which end markers are judged.
TOKENIZER_VARIABLE = "SOFTGRPO_TOKENIZER"


class RequestValidator(ProcessorV1, ProcessorV2):
    """Both model runners' interface, of which only ``validate_params`` does anything."""

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Complete a request by the server's defaults, in place: vLLM sends on what it validates.

        Raises:
            ValueError: Its soft thinking is malformed; names the entry.
        """
        # A client is answered step by step or at the end. In neither way vLLM asks itself, for the
        # log-probabilities that beam search and scoring are made of: they do not think.
        if sampling_params.output_kind is not RequestOutputKind.CUMULATIVE:
            complete_request(sampling_params, default_settings())
        request = decode_request(sampling_params)
        if request is not None and is_packed(sampling_params):
            _check_packed(sampling_params)
        if request is not None and TOKENIZER_VARIABLE in os.environ:
            Markers(request.config.think_end, _tokenizer(os.environ[TOKENIZER_VARIABLE]))

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False

    def apply(self, logits: Any, *_: Any) -> Any:
        return logits


def _check_packed(params: Any) -> None:
    """A packed record comes with the one and only answer, which the engine itself has ended."""
    if params.output_kind is not RequestOutputKind.FINAL_ONLY:
        raise ValueError("stream=True: soft_record='packed' comes when the answer is whole")
    for name, needed in {"n": 1, "stop": [], "logprobs": None}.items():
        value = getattr(params, name)
        if value != needed:
            raise ValueError(f"{name}={value!r}: soft_record='packed' needs {needed!r}")


@functools.cache
def _tokenizer(place: str) -> Tokenizer:
    tokenizer = get_tokenizer(place)
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer
