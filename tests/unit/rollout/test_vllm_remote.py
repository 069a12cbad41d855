"""VLLMServerEngine over stand-in servers: which are refused, and how weights reach all of them."""

from __future__ import annotations

import socket
import threading
import time
from http.server import ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

from softgrpo import __version__
from softgrpo.rollout import vllm_client
from softgrpo.rollout.vllm_client import Client, ServerError
from softgrpo.rollout.vllm_remote import VLLMServerEngine, check_server
from softgrpo.rollout.weights import shapes, shapes_by
from tests.helpers import tiny_model, word_tokenizer
from tests.serving import JSONHandler

SHAPES = {"a.weight": [4, 2], "b.weight": [3]}


class Server(JSONHandler):
    """Says what it serves, and keeps what it is given."""

    served: dict | None = None
    taken: list

    def do_GET(self):
        self.reply({"data": [{"id": "m"}]})

    def do_POST(self):
        body = self.body()
        if self.served is None or self.path == "/reset_prefix_cache":
            return self.reply({"detail": "Not Found"}, 404 if self.served is None else 200)
        if body["method"] == "served":
            return self.reply({"results": [self.served]})
        self.taken.append(load_file(body["args"][0]))
        return self.reply({"results": [None]})


@pytest.fixture
def server():
    """Starts servers: the class that answers, with ``stop`` to end it, and the address."""
    running = []

    def stop(http):
        http.shutdown()
        http.server_close()

    def start(served):
        kind = type("Kind", (Server,), {"served": served, "taken": []})
        http = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        running.append(http)
        kind.stop = lambda: stop(running.pop(running.index(http)))
        return kind, f"http://127.0.0.1:{http.server_port}"

    yield start
    for http in running:
        stop(http)


def _served(**values):
    return {"softgrpo": __version__, "vllm": "0.31.0", "shapes": SHAPES} | values


def test_a_server_of_the_same_weights_is_taken(server):
    check_server(Client(server(_served())[1]), SHAPES)


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (None, r"answered 404.*start it as VLLM_SERVER_DEV_MODE=1 softgrpo serve"),
        ({}, rf"softgrpo None is there, and {__version__} here"),
        (_served(softgrpo="9.9"), rf"softgrpo 9.9 is there, and {__version__} here"),
        (_served(vllm="0.1.2"), r"vLLM 0.1.2: soft thinking is tested with"),
        (_served(shapes=5), r"a.weight is missing there and \[4, 2\] here"),
        (_served(shapes=SHAPES | {"b.weight": [5]}), r"\(m\): b.weight is \[5\] there and \[3\]"),
        (_served(shapes=SHAPES | {"c": [5]}), r"c is \[5\] there and missing here"),
    ],
)
def test_another_server_is_refused_by_name(served, said, server):
    url = server(served)[1]
    with pytest.raises(ServerError, match=said) as refused:
        check_server(Client(url), SHAPES)
    assert url in str(refused.value)


def test_a_slow_server_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(vllm_client, "_PROMPT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ServerError, match=rf"{url}/v1/models: no answer within 0.3 s"):
            Client(url)
    assert time.monotonic() - began < 30


def _engine(urls, model, process=0, folder=None):
    return VLLMServerEngine(
        urls, word_tokenizer(), eos_token_ids=[1], source=model, process=process, folder=folder
    )


def test_every_server_is_given_every_weight_by_the_first_process_alone(server, tmp_path):
    model = tiny_model("untied")
    servers = [server(_served(shapes=shapes(model))) for _ in range(3)]
    urls = [url for _, url in servers]
    engines = [_engine(urls, model, process, str(tmp_path)) for process in range(4)]
    assert [engine.client.url for engine in engines] == [*urls, urls[0]]
    for engine in engines:
        engine.sync()
    for kind, _ in servers:
        (taken,) = kind.taken
        wanted = dict(model.named_parameters())
        assert taken.keys() == wanted.keys()
        assert all(torch.equal(taken[name], wanted[name]) for name in wanted)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_shape_is_refused_when_the_engine_is_made(server):
    url = server(_served(shapes=shapes(tiny_model("untied"))))[1]
    with pytest.raises(ServerError, match=r"lm_head.weight is \[\d+, 32\] there and missing here"):
        _engine([url], tiny_model("tied"))


def test_a_server_that_has_gone_is_named_and_the_others_have_the_weights(server, tmp_path):
    model = tiny_model("untied")
    (first, url), (last, gone) = (server(_served(shapes=shapes(model))) for _ in range(2))
    engine = _engine([url, gone], model, folder=str(tmp_path))
    last.stop()
    with pytest.raises(ServerError, match=f"weights could not be handed over: .*{gone}"):
        engine.sync()
    assert len(first.taken) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tied", "untied", "bias"])
def test_a_config_alone_says_the_shapes(name):
    model = tiny_model(name)
    assert shapes_by(model.config) == shapes(model)
    assert list(shapes(model).items()) == [(n, list(p.shape)) for n, p in model.named_parameters()]
