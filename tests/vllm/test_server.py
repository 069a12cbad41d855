"""The HTTP server: many clients at once, traces that replay, errors that say what is wrong."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from softgrpo.replay import replay
from softgrpo.rollout import Request, TransformersEngine
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.rollout.vllm_remote import VLLMServerEngine
from softgrpo.thinking import Objective
from tests.helpers import (
    ROOT,
    assert_same,
    free_port,
    run_processes,
    thinking,
    tiny_model,
    word_tokenizer,
)
from tests.integration.test_servers import train
from tests.vllm.engines import BOUND, PROMPTS, make_model

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from softgrpo.rollout.vllm_server import serve
from softgrpo.thinking import ThinkingConfig
thinking = ThinkingConfig(think_end=("</t>",), max_think_tokens=4)  # of who does not say how
serve(sys.argv[1], thinking, sys.argv[2:])
"""
OPTIONS = (
    "--dtype float32 --enforce-eager --max-model-len 256 --kv-cache-memory-bytes 16777216 "
    "--block-size 32 --max-num-seqs 32"
)
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
KINDS = [
    ("gumbel", "gumbel", {}),
    ("gumbel", "argmax", {"top_k": 9, "tau": 0.2, "max_think_tokens": 6}),
    ("dirichlet", "dirichlet", {"max_think_tokens": 9}),
    ("discrete", "token", {}),
]


def _post(port, path, body, timeout=60):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model in transformers, its folder, the port and the process of a server over it."""
    folder = tmp_path_factory.mktemp("model")
    model = make_model(folder, tied=True)
    (folder / "template.jinja").write_text(TEMPLATE)
    port = free_port()
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]  # a server's engine has its own process
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *OPTIONS.split(), "--port", str(port),
         "--chat-template", str(folder / "template.jinja")],
        env=environment, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, "the server did not start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                continue
        yield model, str(folder), port, process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _request(index):
    policy, density, settings = KINDS[index % len(KINDS)]
    config = thinking(policy, **settings)
    objective = Objective(config, density, "sum")
    return config, Request((), config, 24, objective, seed=7, index=index)


def _body(folder, request, prompt, **values):
    sent, own = wire.encode_request(request)
    return {
        "model": folder, "prompt": prompt, "vllm_xargs": sent,
        "logprobs": wire.num_logprobs(request), "return_tokens_as_token_ids": True,
    } | own | values  # fmt: skip


def _gap(model, prompt, record, config, request):
    trace = record.trace
    ids = torch.tensor([prompt + trace.tokens[0]])
    with torch.no_grad():
        found = replay(model, ids, torch.ones_like(ids), trace, request.objective)
    return (found.logps[0] - torch.tensor(record.logps)).abs().max().item()


def test_many_clients_some_of_which_hang_up(served):
    """Soft, discrete and plain requests; every eighth client goes away in the middle."""
    model, folder, port, _ = served

    def client(index):
        config, request = _request(index)
        prompt = PROMPTS[index % 4]
        if index % 8 == 7:
            body = _body(folder, request, prompt, stream=True, max_tokens=180)
            data = json.dumps(body).encode()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                    b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data
                )
                connection.recv(100)
            return None
        if index % 8 == 3:
            plain = {"model": folder, "prompt": prompt, "max_tokens": 24, "temperature": 0,
                     "vllm_xargs": {"soft_policy": "off"}}  # fmt: skip
            return _post(port, "/v1/completions", plain)["choices"][0]["text"]
        choice = _post(port, "/v1/completions", _body(folder, request, prompt))["choices"][0]
        record = wire.decode_response(choice["logprobs"]["top_logprobs"], request)
        return _gap(model, prompt, record, config, request)

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(client, range(64)))
    found = [r for r in results if isinstance(r, float)]
    assert len(found) == 48 and max(found) < BOUND
    left, end = None, time.monotonic() + 30
    while left != ["0"] and time.monotonic() < end:  # the cancelled are noticed a little later
        time.sleep(0.2)
        left = _post(port, "/collective_rpc", {"method": "num_thoughts"})["results"]
    assert left == ["0"]


def test_who_does_not_say_how_thinks_as_the_server_does(served):
    """However the request comes, and with several samples of it; beam search is none of it."""
    _, folder, port, _ = served
    body = {"model": folder, "max_tokens": 12, "ignore_eos": True, "temperature": 0.01}
    plain = body | {"prompt": PROMPTS[0], "vllm_xargs": {"soft_policy": "off"}}
    (unthought,) = _post(port, "/v1/completions", plain)["choices"]
    assert "</t>" not in unthought["text"]
    completions = body | {"prompt": PROMPTS[:2], "n": 3}
    texts = [c["text"] for c in _post(port, "/v1/completions", completions)["choices"]]
    chat = body | {"messages": [{"role": "user", "content": "a b c"}], "n": 3}
    choices = _post(port, "/v1/chat/completions", chat)["choices"]
    texts += [choice["message"]["content"] for choice in choices]
    # The budget of four soft steps, and the marker that it forces.
    assert len(texts) == 9 and all("</t>" in text.split()[:5] for text in texts)
    beams = body | {"prompt": PROMPTS[0], "n": 2, "use_beam_search": True, "temperature": 0.0}
    found = [choice["text"] for choice in _post(port, "/v1/completions", beams)["choices"]]
    assert len(set(found)) == 2 and not any("</t>" in text.split()[:5] for text in found)


def test_a_thought_is_shown_step_by_step(served):
    """What ``softgrpo generate --server URL --show-thoughts`` draws its lines from."""
    model, _, port, _ = served
    config = thinking("gumbel", max_think_tokens=6)
    client = Client(f"http://127.0.0.1:{port}")
    steps = list(client.stream(PROMPTS[0], config, max_new_tokens=12, seed=3))
    engine = TransformersEngine(model, word_tokenizer())
    wanted = list(engine.stream(PROMPTS[0], config, max_new_tokens=12, seed=3))
    assert [(s.token, s.ids, s.is_soft, s.is_forced) for s in steps] == [
        (s.token, s.ids, s.is_soft, s.is_forced) for s in wanted
    ]
    for found, other in zip(steps, wanted, strict=True):
        assert found.weights == pytest.approx(other.weights, abs=1e-4)
    with pytest.raises(ValueError, match="max_tokens|400"):
        list(client.stream(PROMPTS[0], config, max_new_tokens=10_000))


def test_an_engine_over_http_follows_the_weights(served):
    """What ``engine: vllm-server`` trains with."""
    model, _, port, _ = served
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config = thinking("gumbel", max_think_tokens=6)
    options = {"max_new_tokens": 12, "num_generations": 4, "seed": 2}
    for source in (other, model):  # the server is left as it was
        remote = VLLMServerEngine(
            [f"http://127.0.0.1:{port}"], word_tokenizer(), eos_token_ids=[1], source=source
        )
        remote.sync()
        seen = {}
        found = remote.generate(
            PROMPTS[:2], config, objective=Objective(config, "gumbel"),
            on_finished=seen.setdefault, **options,
        )  # fmt: skip
        wanted = TransformersEngine(source, word_tokenizer()).generate(
            PROMPTS[:2], config, **options
        )
        assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
        assert sorted(seen) == list(range(8)) and all(r.logps for r in found)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_packed_record_is_the_one_in_the_logprobs(served, kind):
    _, folder, port, _ = served
    _, request = _request(kind)
    client = Client(f"http://127.0.0.1:{port}")
    for index, prompt in enumerate(PROMPTS):
        sent = replace(request, prompt=tuple(prompt), index=index)
        packed, finish_reason = client.complete(sent)
        choice = _post(port, "/v1/completions", _body(folder, sent, prompt))["choices"][0]
        loose = wire.decode_response(choice["logprobs"]["top_logprobs"], sent)
        assert finish_reason == choice["finish_reason"]
        assert packed.thinking_ended_by == loose.thinking_ended_by
        # JSON has as many digits as a float32 needs; the two answers are of other batches.
        assert packed.logps == pytest.approx(loose.logps, abs=BOUND)
        for name, kept in loose.trace.tensors().items():
            torch.testing.assert_close(packed.trace.tensors()[name], kept, rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"n": 2}, "n=2"),
        ({"stop": ["a"]}, "stop=['a']"),
        ({"logprobs": 3}, "logprobs=3"),
    ],
)
def test_what_a_packed_record_does_not_go_with_is_answered_with_400(served, values, named):
    _, folder, port, _ = served
    sent = {"soft_tau": 0.5, "soft_think_end": "</t>", "soft_record": "packed"}
    body = {"model": folder, "prompt": [3], "max_tokens": 3, "vllm_xargs": sent} | values
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(port, "/v1/completions", body)
    said = refused.value.read().decode()
    assert refused.value.code == 400 and f"{named}: soft_record='packed'" in said


def test_a_packed_record_is_not_streamed(served):
    """A stream has begun when its request is refused: it is told within."""
    _, folder, port, _ = served
    sent = {"soft_tau": 0.5, "soft_think_end": "</t>", "soft_record": "packed"}
    body = {"model": folder, "prompt": [3], "stream": True, "vllm_xargs": sent}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert "stream=True: soft_record='packed'" in response.read().decode()


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({"soft_tau": "warm"}, "soft_tau"),
        ({"soft_top_k": 99}, "top_k"),
        ({"soft_think_end": "nowhere"}, "think_end"),  # no such word in the vocabulary
        ({"soft_sigma": [1, 2]}, "soft_sigma"),
        ({"soft_unheard_of": 1}, "soft_unheard_of"),
    ],
)
def test_malformed_settings_are_answered_with_400_and_their_name(served, sent, named):
    _, folder, port, _ = served
    body = {"model": folder, "prompt": [3], "max_tokens": 3, "vllm_xargs": sent}
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(port, "/v1/completions", body)
    assert refused.value.code == 400 and named in refused.value.read().decode()


def test_the_openai_client_chats_and_streams(served):
    import openai

    _, folder, port, _ = served
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    sent = {"soft_tau": 0.5, "soft_think_end": "</t>", "soft_max_think_tokens": 4}
    question = [{"role": "user", "content": "a b c"}]
    options = {"model": folder, "messages": question, "max_tokens": 12, "seed": 5}
    body = {"vllm_xargs": sent}
    whole = client.chat.completions.create(**options, extra_body=body).choices[0].message.content
    parts = client.chat.completions.create(**options, stream=True, extra_body=body)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    assert "</t>" in whole


TRAIN = """
import sys, torch
from pathlib import Path
from tests.integration.test_servers import train
torch.set_num_threads(1)
folder, model, url = Path(sys.argv[1]), *sys.argv[2:]
for name, lora in (("all", None), ("lora", ["q_proj", "down_proj"])):
    settings = {"engine": "vllm-server", "vllm_server_base_url": url}
    found, rank = train(folder / name, lora, 2, model, **settings)
    torch.save(found, folder / f"{name}_{rank}.pt")
"""


def test_two_processes_train_as_one(served, tmp_path):
    """Against one process without a server. It leaves the server with other weights."""
    _, folder, port, _ = served
    url = f"http://127.0.0.1:{port}"
    run_processes(TRAIN, str(tmp_path), folder, url, processes=2, timeout=300)
    for name, lora in (("all", None), ("lora", ["q_proj", "down_proj"])):
        wanted, _ = train(tmp_path / "one", lora, 1, folder)
        halves = [torch.load(tmp_path / f"{name}_{rank}.pt") for rank in range(2)]
        tokens = [one + other for one, other in zip(*(h["tokens"] for h in halves), strict=True)]
        assert tokens == wanted["tokens"]
        for half in halves:
            assert_same(half["numbers"], wanted["numbers"], 1e-4)


def test_a_model_of_another_shape_is_refused_by_its_first_tensor(served):
    _, _, port, _ = served
    model = tiny_model("tied")
    with pytest.raises(
        ValueError, match=r"embed_tokens.weight is \[\d+, 64\] there and \[\d+, 32\]"
    ):
        VLLMServerEngine(
            [f"http://127.0.0.1:{port}"], word_tokenizer(), eos_token_ids=[1], source=model
        )


def test_a_dead_engine_gives_an_error_and_no_hang(served):
    """Last: nothing answers afterwards."""
    _, folder, port, process = served
    body = {"model": folder, "prompt": PROMPTS[0], "max_tokens": 190, "ignore_eos": True, "n": 32,
            "vllm_xargs": {"soft_policy": "off"}}  # fmt: skip
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    children = [int(child) for child in listed.stdout.split()]
    for child in children:  # stopped first: however fast the machine, the request is not done
        os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_post, port, "/v1/completions", body)
        time.sleep(0.5)
        assert not waiting.done()
        for child in children:
            os.kill(child, signal.SIGKILL)
        with pytest.raises((urllib.error.URLError, OSError)):
            waiting.result(timeout=60)
