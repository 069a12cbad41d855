"""Talking to a running ``softgrpo serve``. It needs neither vLLM nor the model here."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http.client import HTTPResponse
from typing import Any

from softgrpo.rollout.engine import FinishReason
from softgrpo.rollout.transformers_engine import StreamedStep
from softgrpo.rollout.vllm_plugin.packed import unpack
from softgrpo.rollout.vllm_plugin.wire import (
    Record,
    ThinkingRequest,
    decode_response,
    encode_request,
)
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.policies import POLICIES

_TIMEOUT = 3600.0  # seconds without a byte from the server: a whole answer may take so long


class Server:
    """A server by its address.

    Args:
        url: Such as ``http://localhost:8000``.

    Attributes:
        model: The name of what it serves.

    Raises:
        ValueError: No server answers there.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._open("/v1/models") as response:
            self.model: str = json.load(response)["data"][0]["id"]

    def complete(
        self, prompt: Sequence[int], request: ThinkingRequest, max_new_tokens: int, **more: Any
    ) -> tuple[Record, FinishReason]:
        """One completion, whose record comes packed, and how it ended.

        Args:
            prompt: Its token ids.
            request: What is asked for.
            max_new_tokens: Longest completion.
            more: More fields of the request.

        Raises:
            ValueError: The server refused the request, or ended it before its time; says why.
        """
        request = replace(request, record="packed")
        body = self._body(prompt, request, max_new_tokens) | more
        with self._open("/v1/completions", body) as response:
            answer = json.load(response)
        record = unpack(answer.get("kv_transfer_params"), request, engine="vllm-server")
        return record, answer["choices"][0]["finish_reason"]

    def stream(
        self, prompt: Sequence[int], config: ThinkingConfig, *, max_new_tokens: int, seed: int = 0
    ) -> Iterator[StreamedStep]:
        """Generate one sequence and yield each step as it comes, as TransformersEngine.stream.

        Raises:
            ValueError: The server refused the request or failed; says why.
        """
        request = ThinkingRequest(config, seed=seed)
        body = self._body(prompt, request, max_new_tokens) | {
            "stream": True,
            "logprobs": request.num_logprobs,
            "return_tokens_as_token_ids": True,
        }
        with self._open("/v1/completions", body) as response:
            for line in response:
                event = line.decode().strip().removeprefix("data: ")
                if event and event != "[DONE]":
                    yield from _steps(json.loads(event), request)

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Call an endpoint for what it does, not for what it answers."""
        with self._open(path, body) as response:
            response.read()

    def _body(
        self, prompt: Sequence[int], request: ThinkingRequest, max_new_tokens: int
    ) -> dict[str, Any]:
        sent, answer = encode_request(request)
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_new_tokens,
            "vllm_xargs": sent,
            **answer,
        }

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ValueError(f"{self.url}{path} answered {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no server answers at {self.url} ({error}); start one: softgrpo serve MODEL"
            ) from error


def _steps(event: dict[str, Any], request: ThinkingRequest) -> Iterator[StreamedStep]:
    if "error" in event:
        raise ValueError(f"the server: {event['error'].get('message', event['error'])}")
    choices = event.get("choices") or []
    logprobs = choices[0].get("logprobs") if choices else None
    if not logprobs or not logprobs["top_logprobs"]:
        return
    trace = decode_response(logprobs["top_logprobs"], request).trace
    policy = POLICIES[request.config.policy]
    weights = policy.weights(trace.scores[0], trace.support[0], request.config)
    for t, token in enumerate(trace.tokens[0]):
        is_soft, is_forced = bool(trace.is_soft[0, t]), bool(trace.is_forced[0, t])
        ids, shares = [token], [1.0]
        if is_soft:
            kept = trace.support[0, t]
            ids, shares = trace.ids[0, t][kept].tolist(), weights[t][kept].tolist()
        yield StreamedStep(token, ids, shares, is_soft=is_soft, is_forced=is_forced)
