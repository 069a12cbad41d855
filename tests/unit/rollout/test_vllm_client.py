"""A server's answers read as steps, from a small HTTP server that answers what vLLM answers."""

import json
import threading
from http.server import HTTPServer

import pytest
import torch

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.vllm_plugin.packed import KEY, PackedRecord
from softgrpo.rollout.vllm_plugin.wire import encode_steps
from softgrpo.thinking import ThinkingConfig, draw_step
from tests.serving import JSONHandler

CONFIG = ThinkingConfig(top_k=3, top_p=1.0, tau=0.5, think_end=("#",))


class _Server(JSONHandler):
    """Answers /v1/models, and /v1/completions with the events or the answer it was given."""

    events: list = []
    answer: dict | None = None  # to a request that does not stream
    status = 200

    def do_GET(self):
        self.reply({"data": [{"id": "m"}]})

    def do_POST(self):
        type(self).asked = self.body()
        if self.status != 200:
            return self.reply({"error": {"message": "soft_tau: must be a number"}}, self.status)
        if self.answer is not None:
            return self.reply(self.answer)
        lines = [f"data: {json.dumps(event)}\n\n" for event in self.events]
        self.send("".join([*lines, "data: [DONE]\n\n"]).encode())


@pytest.fixture
def http():
    handler = type("Handler", (_Server,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def _event(step, is_soft, ended_by=None):
    ids, values = encode_steps(step, torch.tensor([is_soft]), [ended_by], None, 20)
    pairs = zip(ids[0].tolist(), values[0].tolist(), strict=True)
    top = {f"token_id:{token}": value for token, value in pairs}
    return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}


def test_steps_come_as_they_were_drawn(http):
    handler, url = http
    torch.manual_seed(0)
    soft = draw_step(torch.randn(1, 20), CONFIG)
    handler.events = [_event(soft, True), {"choices": []}, _event(soft, False, "marker")]
    first, second = Client(url).stream([1, 2], CONFIG, max_new_tokens=4)
    assert first.is_soft and first.ids == soft.ids[0].tolist()
    assert first.weights == pytest.approx(soft.weights[0].tolist(), abs=1e-6)
    assert not second.is_soft and second.ids == [first.token] and second.weights == [1.0]


def test_a_whole_answer_comes_with_its_record(http):
    handler, url = http
    request = Request((1, 2), CONFIG, 3, seed=4)
    packed = PackedRecord(request)
    torch.manual_seed(0)
    steps = [draw_step(torch.randn(1, 20), CONFIG) for _ in range(3)]
    for step in steps:
        columns = encode_steps(step, torch.tensor([True]), [None], None, 20)
        packed.append(*(torch.cat([c[0, :1], c[0]]).numpy() for c in columns))
    choice = {"text": "abc", "finish_reason": "length"}
    handler.answer = {"choices": [choice], "kv_transfer_params": {KEY: packed.text()}}
    record, finish_reason = Client(url).complete(request, stop_token_ids=[9])
    assert finish_reason == "length" and record.logps is None
    assert torch.equal(record.trace.ids, torch.stack([step.ids[0] for step in steps])[None].int())
    assert torch.equal(record.trace.scores[0], torch.cat([step.scores for step in steps]))
    asked = handler.asked
    assert asked["vllm_xargs"]["soft_record"] == "packed" and asked["stop_token_ids"] == [9]
    assert (asked["prompt"], asked["max_tokens"]) == ([1, 2], 3)
    assert "logprobs" not in asked  # the server would make objects of them
    handler.answer = {"choices": [choice], "kv_transfer_params": None}
    with pytest.raises(ValueError, match="came back without its record"):
        Client(url).complete(request)


def test_a_refusal_says_what_the_server_said(http):
    handler, url = http
    handler.status = 400
    with pytest.raises(ValueError, match="answered 400: .*soft_tau: must be a number"):
        list(Client(url).stream([1], CONFIG, max_new_tokens=4))


def test_an_error_within_the_stream_is_heard(http):
    handler, url = http
    handler.events = [{"error": {"message": "the engine is dead"}}]
    with pytest.raises(ValueError, match="the engine is dead"):
        list(Client(url).stream([1], CONFIG, max_new_tokens=4))


def _logged(top):
    return [{"choices": [{"logprobs": {"top_logprobs": [top]}}]}]


_NOTE = 1 + 16 * 3  # of a soft step with a support of three


@pytest.mark.parametrize(
    "events",
    [
        [5],
        ["text"],
        [{"choices": 5}],
        [{"choices": [5]}],
        [{"choices": [{"logprobs": {"top_logprobs": 5}}]}],
        _logged({"a": 1}),
        _logged({"token_id:1": 1}),
        _logged({f"token_id:-{i}": _NOTE for i in range(1, 5)}),
        _logged({f"token_id:{2**40 + i}": _NOTE for i in range(4)}),
        _logged({f"token_id:{10**30 + i}": _NOTE for i in range(4)}),
        _logged({f"token_id:{i}": "x" for i in range(4)}),
        _logged({f"token_id:{i}": float("nan") for i in range(4)}),
        _logged({f"token_id:{i}": 1 for i in range(4)}),
        [{"error": "text"}],
        [{"error": None}],
        [],
        [{"choices": []}],
    ],
    ids=lambda events: str(events)[:60],
)
def test_a_stream_of_something_else_is_refused(http, events):
    handler, url = http
    handler.events = events
    with pytest.raises(ValueError, match=r"answer is not that of softgrpo serve: .|the server: "):
        list(Client(url).stream([1], CONFIG, max_new_tokens=4))


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"kv_transfer_params": 5},
        *({"kv_transfer_params": {KEY: text}} for text in ("!", "AAAA", "", 5)),
        {"choices": [], "kv_transfer_params": {KEY: "A" * 64}},
        {"choices": [{"finish_reason": "loud"}], "kv_transfer_params": {KEY: "A" * 64}},
    ],
    ids=str,
)
def test_an_answer_of_something_else_is_refused(http, answer):
    handler, url = http
    handler.answer = answer
    with pytest.raises(ValueError, match="answer is not that of softgrpo serve: ."):
        Client(url).complete(Request((1, 2), CONFIG, 3, seed=4))


@pytest.mark.parametrize(
    "listed",
    [b"", b"<html>", b"[]", b"{}", b'{"data": []}', b"\xff", b'{"data": [{"id": 5}]}', b"[" * 9999],
)
def test_a_list_of_models_of_something_else_is_refused(http, listed):
    handler, url = http
    handler.do_GET = lambda self: self.send(listed)
    with pytest.raises(ValueError, match="answer is not that of softgrpo serve: ."):
        Client(url)


@pytest.mark.parametrize("url", ["localhost", "http://", "http://a b", "ftp://x", "http://x:port"])
def test_an_address_of_no_server(url):
    with pytest.raises(ValueError, match=r"no server answers at .*softgrpo serve MODEL"):
        Client(url)


def test_no_server_says_how_to_start_one():
    with pytest.raises(ValueError, match="softgrpo serve MODEL"):
        list(Client("http://127.0.0.1:9").stream([1], CONFIG, max_new_tokens=4))
