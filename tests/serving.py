"""A server that answers as ``softgrpo serve`` does, by a TransformersEngine, without vLLM."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from softgrpo import __version__
from softgrpo.rollout import Request, Rollout, TransformersEngine
from softgrpo.rollout.vllm_plugin.packed import KEY
from softgrpo.rollout.vllm_plugin.wire import decode_request
from softgrpo.rollout.weights import shapes
from softgrpo.thinking.phases import ThinkingEnd
from tests.helpers import word_tokenizer

_UNUSED = {
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
    "logit_bias": None, "allowed_token_ids": None, "bad_words": None, "structured_outputs": None,
}  # fmt: skip
_ENDS = (None, *get_args(ThinkingEnd))


def packed(rollout: Rollout) -> str:
    """A rollout's record as a server sends it."""
    trace = rollout.trace
    note = trace.is_soft[0] + 16 * trace.support[0].sum(-1)
    note[-1] += 4 * _ENDS.index(rollout.thinking_ended_by)
    values = [trace.scores[0].float(), note[:, None].float()]
    if rollout.logps is not None:
        values.append(torch.tensor(rollout.logps)[:, None])
    ids = trace.ids[0].int().numpy()
    steps = np.concatenate([ids, torch.cat(values, 1).numpy().view("<i4")], axis=1)
    return base64.b64encode(steps.tobytes()).decode()


class JSONHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and keeps no log."""

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status)

    def send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> Any:
        """The body of a request."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_: Any) -> None:
        pass


class _Handler(JSONHandler):
    model: Any
    engine: TransformersEngine
    name: str
    options: dict[str, Any]
    counts: dict[str, int]
    lock: threading.Lock
    server: _Server

    def do_GET(self) -> None:
        self.reply({"data": [{"id": self.name}]})

    def do_POST(self) -> None:
        body = self.body()
        with self.lock:
            self.reply(getattr(self, "_" + self.path.strip("/").replace("/", "_"))(body))

    def _v1_completions(self, body: dict[str, Any]) -> dict[str, Any]:
        self._count("completions")
        sent = body.pop("vllm_xargs")
        request = decode_request(SimpleNamespace(**_UNUSED | body, extra_args=sent))
        assert request is not None
        found: list[Rollout] = []
        self.engine.eos_token_ids = set(body["stop_token_ids"])
        asked = Request(**vars(request) | {"prompt": tuple(body["prompt"])})
        self.engine.run([asked], lambda _, rollout: found.append(rollout))
        choice = {"text": found[0].text, "finish_reason": found[0].finish_reason}
        return {"choices": [choice], "kv_transfer_params": {KEY: packed(found[0])}}

    def _collective_rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["method"] == "served":
            true = {"softgrpo": __version__, "vllm": "0.31.0", "shapes": shapes(self.model)}
            return {"results": [true | self.options.get("served", {})]}
        assert body["method"] == "update_weights_from"
        self._count("updates")
        self.model.load_state_dict(load_file(body["args"][0]), strict=False)
        return {"results": [None]}

    def _reset_prefix_cache(self, body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self.counts[what] == self.options.get(what):
            self.server.die()
        if self.server.is_dead:
            raise ConnectionAbortedError("dead")


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True
    is_dead = False

    def die(self) -> None:
        """From here on nothing is answered, and soon nothing listens."""
        self.is_dead = True
        threading.Thread(target=self.stop).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def wait_for(url: str) -> None:
    """Until it answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


@contextmanager
def served(model: str, port: int, **options: Any) -> Iterator[str]:
    """The URL of a server in threads of this process, until the block ends.

    Args:
        model: A folder.
        port: Where it listens.
        options: ``completions`` and ``updates``: at which one it dies; ``served``: what it says of
            itself that is not true.
    """
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    values = {
        "model": whole, "engine": TransformersEngine(whole, word_tokenizer()), "name": model,
        "options": options, "counts": {"completions": 0, "updates": 0}, "lock": threading.Lock(),
    }  # fmt: skip
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), values))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if not server.is_dead:
            server.stop()
