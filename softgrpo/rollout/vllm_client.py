"""Talking to a running ``softgrpo serve``. It needs neither vLLM nor the model here."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any

from softgrpo.rollout.engine import FinishReason
from softgrpo.rollout.request import Request
from softgrpo.rollout.transformers_engine import StreamedStep
from softgrpo.rollout.vllm_plugin.packed import unpack
from softgrpo.rollout.vllm_plugin.wire import (
    Record,
    RecordKind,
    decode_response,
    encode_request,
    num_logprobs,
)
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import MIXERS
from softgrpo.values import check

# Seconds without a byte from the server, when it connects too.
_TIMEOUT = 3600.0  # a rollout's answer may take so long
_PROMPT = 60.0  # for who it is, which a server that works says at once


class Client:
    """A client of one server.

    Args:
        url: The server's address, such as ``http://localhost:8000``.

    Attributes:
        model: The name of what the server serves.

    Raises:
        ServerError: No server answers there within a minute, or it lists no model.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._reading(), self._open("/v1/models", timeout=_PROMPT) as response:
            self.model: str = _mapping(response.read())["data"][0]["id"]
            check("id", self.model, str)

    def complete(self, request: Request, **more: Any) -> tuple[Record, FinishReason]:
        """One completion, whose record comes packed, and how it ended.

        Args:
            request: What is asked for.
            more: More fields of what is sent.

        Raises:
            ServerError: The server refused the request, ended it before its time, or answered what
            softgrpo serve does not; says why.
        """
        body = self._body(request, "packed") | more
        with self._reading():
            with self._open("/v1/completions", body) as response:
                answer = _mapping(response.read())
            record = unpack(answer.get("kv_transfer_params"), request, engine="vllm-server")
            finish_reason = answer["choices"][0]["finish_reason"]
            check("finish_reason", finish_reason, FinishReason)
        return record, finish_reason

    def stream(
        self, prompt: Sequence[int], config: ThinkingConfig, *, max_new_tokens: int, seed: int = 0
    ) -> Iterator[StreamedStep]:
        """Generate one sequence and yield each step as it comes, as TransformersEngine.stream.

        Raises:
            ServerError: The server refused the request, failed, or answered what softgrpo serve
            does not; says why.
        """
        request = Request(tuple(prompt), config, max_new_tokens, seed=seed)
        body = self._body(request, "logprobs") | {
            "stream": True,
            "logprobs": num_logprobs(request),
            "return_tokens_as_token_ids": True,
        }
        num_steps = 0
        with self._reading(), self._open("/v1/completions", body) as response:
            for line in response:
                event = line.strip().removeprefix(b"data: ")
                if event and event != b"[DONE]":
                    for step in _steps(_mapping(event), request):
                        num_steps += 1
                        yield step
            if num_steps == 0:
                raise ValueError("it ended without a step")

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Call an endpoint for what it does, not for what it answers."""
        with self._open(path, body) as response:
            response.read()

    def served(self) -> dict[str, Any]:
        """What ``SoftWorker.served`` says of the server.

        Raises:
            ServerError: It does not, as it has no development endpoints, or is no softgrpo serve.
        """
        body = {"method": "served"}
        with self._reading(), self._open("/collective_rpc", body, timeout=_PROMPT) as response:
            result: dict[str, Any] = _mapping(response.read())["results"][0]
            check("what it serves", result, dict[str, Any])
        return result

    def _body(self, request: Request, record: RecordKind) -> dict[str, Any]:
        sent, own = encode_request(request, record)
        return {"model": self.model, "prompt": request.prompt, "vllm_xargs": sent, **own}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever is wrong with an answer, it is refused as no answer of softgrpo serve."""
        try:
            yield
        except ServerError:
            raise
        except TimeoutError as error:
            raise ServerError(f"{self.url}: its answer stopped on the way ({error})") from error
        except (HTTPException, OSError, ArithmeticError, AttributeError, LookupError, RuntimeError,
                TypeError, ValueError) as error:  # fmt: skip
            raise ServerError(
                f"{self.url}: its answer is not that of softgrpo serve: {error or repr(error)}"
            ) from error

    def _open(
        self, path: str, body: Mapping[str, Any] | None = None, timeout: float = _TIMEOUT
    ) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self.url + path, data=data, headers=headers)
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ServerError(f"{self.url}{path} answered {error.code}: {said}") from error
        except (HTTPException, OSError, ValueError) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise ServerError(f"{self.url}{path}: no answer within {timeout:g} s") from error
            raise ServerError(
                f"no server answers at {self.url} ({error}); start one: softgrpo serve MODEL"
            ) from error


class ServerError(ValueError):
    """A server does not answer, or not as softgrpo serve does; the message names it."""


def _mapping(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    check("what it sent", value, dict[str, Any])
    return value


def _steps(event: dict[str, Any], request: Request) -> Iterator[StreamedStep]:
    if "error" in event:
        error = event["error"]
        said = error.get("message", error) if isinstance(error, dict) else error
        raise ServerError(f"the server: {said}")
    choices = event.get("choices") or []
    logprobs = choices[0].get("logprobs") if choices else None
    if not logprobs or not logprobs["top_logprobs"]:
        return
    trace = decode_response(logprobs["top_logprobs"], request).trace
    mixer = MIXERS[request.config.policy]
    weights = mixer.weights(trace.scores[0], trace.support[0], request.config)
    for t, token in enumerate(trace.tokens[0]):
        is_soft, is_forced = bool(trace.is_soft[0, t]), bool(trace.is_forced[0, t])
        ids, shares = [token], [1.0]
        if is_soft:
            kept = trace.support[0, t]
            ids, shares = trace.ids[0, t][kept].tolist(), weights[t][kept].tolist()
        yield StreamedStep(token, ids, shares, is_soft=is_soft, is_forced=is_forced)
