"""What the host does for a step of soft thinking beside the model, in microseconds a sequence.

    OMP_NUM_THREADS=1 python benchmarks/host_overhead.py
    OMP_NUM_THREADS=1 python benchmarks/host_overhead.py --sections worker --sequences 64 1024

A step's host work decides how many sequences a fast GPU can decode at a time, and no GPU is needed
to count it: it is CPU-time. Each section prints a Markdown table.

in-process  What the engine does in process, with a model whose forward costs nothing: waits for
         the device, operations and uploads of a step, counted on the tests' pretend accelerator,
         and the host's own time, which is all that does more than launch operations, as a clock on
         the wall and as the thread's own (other programs are in the former). Medians of steps: the
         few that draw noise for hundreds of steps ahead, or in which sequences end, are not in it.
length   A step of one sequence at the end of 32,768 steps against one at the beginning, in turn.
worker   What a vLLM worker and its scheduler do for soft thinking, called as they call it, without
         vLLM and without a model. The vocabulary is small, so that the arithmetic on logits, which
         a GPU does, takes next to no time: what is left is the host's part and our bookkeeping.
http     What it costs to get a record from a running server, in the server's processes and in the
         client, beyond the same completion without a record. It needs vLLM (make vllm).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from softgrpo.lab.chains import THINK_END
from softgrpo.lab.tokenizer import make_tokenizer
from softgrpo.rollout import Request
from softgrpo.rollout import batch as rollout_batch
from softgrpo.rollout.batch import DecodingBatch
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.vllm_plugin.packed import PackedRecord
from softgrpo.rollout.vllm_plugin.thoughts import Thoughts
from softgrpo.rollout.vllm_plugin.wire import (
    decode_response,
    encode_request,
    num_logprobs,
)
from softgrpo.thinking import Objective, ThinkingConfig, transfer
from softgrpo.thinking import advance as advancing
from softgrpo.thinking.noise import NoiseTable
from softgrpo.thinking.phases import Markers

# Nothing ends it: every sequence thinks at all of its steps.
CONFIG = ThinkingConfig(think_end=())
OBJECTIVE = Objective(CONFIG, "gumbel")
PROMPT = (4, 5, 6, 7)
VOCABULARY = 64

Clock = Callable[[], float]
CLOCKS: tuple[Clock, ...] = (time.perf_counter, time.thread_time)


def main() -> None:
    """Measure and print the sections asked for."""
    sections = {"in-process": in_process, "length": length, "worker": worker, "http": http}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections))
    parser.add_argument(
        "--sequences", nargs="+", type=int, default=[64, 256, 1024], help="decoded together"
    )
    parser.add_argument("--steps", type=int, default=128, help="of each sequence")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.sections:
        print(sections[name](arguments.sequences, arguments.steps, arguments.rounds), flush=True)


def _asked(steps: int, index: int) -> Request:
    """The sequences that every section decodes."""
    return Request(PROMPT, CONFIG, steps, OBJECTIVE, index=index)


def table(title: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table, a blank line after it."""
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


# in process -------------------------------------------------------------------------------------
def in_process(sequences: list[int], steps: int, rounds: int) -> str:
    """The engine's own part of a decoding step, by sequences decoded together."""
    rows = {}
    for count in sequences:
        times = [_in_process(count, steps, rounds, clock) for clock in CLOCKS]
        rows[f"{count} sequences"] = [
            *(f"{x:.0f}" for x in _counted(count)), *(f"{x:.2f}" for x in times)
        ]  # fmt: skip
    columns = ["waits", "launches", "uploads", "us a sequence", "of the CPU"]
    return table("in process, a step", columns, rows)


def _in_process(count: int, steps: int, rounds: int, clock: Clock) -> float:
    """Host microseconds a sequence and step: all but what would run on the device."""
    taken = []
    for _ in range(rounds):
        run = _batch(count, steps + 1, torch.device("cpu")).run(lambda *_, **__: "")
        with torch.no_grad(), _stopwatch(clock) as on_device:
            next(run)
            for _ in range(steps):
                on_device[0], start = 0.0, clock()
                next(run)
                taken.append(clock() - start - on_device[0])
    return 1e6 * statistics.median(taken) / count


def length(sequences: list[int], steps: int, rounds: int) -> str:
    """One step of a long sequence, whatever the arguments, by how far it is."""
    total, window = 32_768, 1024
    old, young = (
        _batch(1, total, torch.device("cpu")).run(lambda *_, **__: "") for _ in range(2)
    )  # fmt: skip
    taken: dict[str, list[float]] = {"first": [], "last": []}
    with torch.no_grad():
        for run, before in ((old, total - window), (young, 64)):
            for _ in range(before):
                next(run)
        for _ in range(window):
            for name, run in (("first", young), ("last", old)):
                start = time.thread_time()
                next(run)
                taken[name].append(time.thread_time() - start)
    first, last = (1e6 * statistics.median(seconds) for seconds in taken.values())
    rows = {"us of the CPU": [f"{first:.0f}", f"{last:.0f}", f"{last / first:.3f}"]}
    return table("one sequence, a step", [*taken, "ratio"], rows)


@contextmanager
def _stopwatch(clock: Clock) -> Iterator[list[float]]:
    """Seconds spent in what does nothing but launch operations on the device.

    Looking at the clock is part of them: what it takes is measured first.
    """
    on_device, own = [0.0], 0.0

    def timed(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                on_device[0] += clock() - start + own

        return run

    nothing, start = timed(lambda: None), clock()
    for _ in range(10_000):
        nothing()
    own = (clock() - start - on_device[0]) / 10_000

    names = [(advancing, "_draw"), (advancing, "_join"), (transfer, "spread")]
    names += [(rollout_batch, name) for name in ("settle", "mix")]
    names += [(DecodingBatch, name) for name in ("_keep", "_next_logits")]
    names += [(NoiseTable, "next")]
    originals = [getattr(module, name) for module, name in names]
    for (module, name), function in zip(names, originals, strict=True):
        setattr(module, name, timed(function))
    try:
        yield on_device
    finally:
        for (module, name), function in zip(names, originals, strict=True):
            setattr(module, name, function)


def _counted(count: int) -> list[float]:
    """Waits, launches and uploads of a step on the pretend accelerator of the tests."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.accelerator import pretend

    run = _batch(count, 6, pretend.DEVICE).run(lambda *_, **__: "")
    with torch.no_grad():
        next(run)
        with pretend.counting() as counts:
            for _ in range(4):
                next(run)
    return [counts.waits.total() / 4, counts.launches / 4, counts.uploads / 4]


def _batch(count: int, steps: int, device: torch.device) -> DecodingBatch:
    tokenizer = make_tokenizer(512)
    config = replace(CONFIG, think_end=(THINK_END,))  # looked for at every step, never found
    model = _NoModel(count, tokenizer.convert_tokens_to_ids(THINK_END)).to(device)
    requests = [_asked(steps, index).under(config) for index in range(count)]
    return DecodingBatch(
        model, requests, markers=Markers(config.think_end, tokenizer),
        eos_token_ids={VOCABULARY}, slots=count, capacity=len(PROMPT) + steps,
    )  # fmt: skip


class _NoModel(nn.Module):
    """A causal LM whose forward costs nothing: the same logits for whatever it is fed."""

    def __init__(self, count: int, never: int) -> None:
        super().__init__()
        self.config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=1, intermediate_size=8, attn_implementation="sdpa",
        )  # fmt: skip
        self.embedding = nn.Embedding(VOCABULARY, 16).requires_grad_(False)
        logits = torch.randn(count, VOCABULARY)
        logits[:, never] = -30.0
        self.register_buffer("logits", logits)

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, past_key_values: Any, **inputs: Any) -> Any:
        tokens = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"]
        states = torch.zeros(len(tokens), 1, tokens.shape[1], 1, device=self.device)
        past_key_values.update(states, states, 0)
        return SimpleNamespace(logits=self.logits[: len(tokens), None])


# worker -----------------------------------------------------------------------------------------
def worker(sequences: list[int], steps: int, rounds: int) -> str:
    """The worker's and the scheduler's part of soft thinking, by sequences decoded together."""
    measured = [_worker(count, steps, rounds) for count in sequences]
    rows = {name: [f"{times[name]:.1f}" for times in measured] for name in measured[0]}
    return table("us a sequence and step", [f"{count} sequences" for count in sequences], rows)


def _worker(count: int, steps: int, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {"draw": [], "mix_inputs": [], "packed record": []}
    for _ in range(rounds):
        run = _Run(count)
        for step in range(steps):
            for name, work in {
                "draw": run.draw, "mix_inputs": run.mix_inputs, "packed record": run.record
            }.items():  # fmt: skip
                start = time.process_time()
                work(step)
                taken[name].append(time.process_time() - start)
    times = {name: 1e6 * statistics.median(seconds) / count for name, seconds in taken.items()}
    return times | {"together": sum(times.values())}


class _Run:
    """``count`` requests from their start, driven as vLLM drives them."""

    def __init__(self, count: int, vocabulary: int = 64, hidden: int = 16) -> None:
        tokenizer = make_tokenizer(512)
        config = replace(CONFIG, think_end=(THINK_END,))  # looked for at every step, never found
        self._thoughts = Thoughts(tokenizer, vocabulary)
        self._names = [str(index) for index in range(count)]
        for index, name in enumerate(self._names):
            request = _asked(1, index).under(config)
            self._thoughts.start(name, _parameters(request), len(PROMPT))
        self._records = [PackedRecord(request) for _ in self._names]
        self._logits = torch.randn(count, vocabulary)
        self._logits[:, tokenizer.convert_tokens_to_ids(THINK_END)] = -30.0
        self._embed = nn.Embedding(vocabulary, hidden).requires_grad_(False)
        self._inputs = torch.empty(count, hidden)

    def draw(self, step: int) -> None:
        ends = [len(PROMPT) + step] * len(self._names)
        (self._drawn,) = self._thoughts.draw(self._logits, self._names, ends)

    def mix_inputs(self, step: int) -> None:
        starts = [len(PROMPT) + step] * len(self._names)
        self._thoughts.mix_inputs(
            self._inputs, self._embed, self._names, starts, [1] * len(self._names)
        )

    def record(self, step: int) -> None:
        columns = [
            torch.cat([x[:, :1], x], dim=-1).numpy() for x in (self._drawn.ids, self._drawn.values)
        ]
        for record, ids, values in zip(self._records, *columns, strict=True):
            record.append(ids, values)


def _parameters(request: Request) -> Any:
    """A request as the worker gets it, without vLLM's SamplingParams."""
    sent, answer = encode_request(request)
    penalties = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    others = ("min_tokens", "logit_bias", "allowed_token_ids", "bad_words", "structured_outputs")
    return SimpleNamespace(
        seed=None, extra_args=sent, **answer, **penalties, **dict.fromkeys(others)
    )


# http -------------------------------------------------------------------------------------------
def http(sequences: list[int], steps: int, rounds: int) -> str:
    """A record's way from a server to a trace, by the way it takes, beyond no record at all."""
    whose = ("front end", "engine", "client")
    columns = [f"{count} clients: {who}" for count in sequences for who in whose]
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder), max(sequences)) as served:
        for count in sequences:
            for way, costs in _http(*served, count, steps, rounds).items():
                rows.setdefault(way, []).extend(costs)
    return table("us a sequence and step beyond a completion without a record", columns, rows)


def _http(
    client: Client, process: int, count: int, steps: int, rounds: int
) -> dict[str, list[str]]:
    """CPU-microseconds of each way to get a record, with their standard errors."""
    ways = {"no record (in all)": _complete, "packed": _packed, "logprobs as JSON": _logprobs}
    taken = np.empty((rounds + 1, len(ways), 3))
    for turn in range(rounds + 1):
        order = list(enumerate(ways.values()))
        for index, ask in order[:: -1 if turn % 2 else 1]:  # what goes on beside it drifts
            before = _cpu_seconds(process)
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(partial(ask, client, steps), range(count)))
            taken[turn, index] = np.subtract(_cpu_seconds(process), before)
    taken = taken[1:] * 1e6 / (count * steps)  # the first turn warms up
    taken[:, 1:] -= taken[:, :1]
    # Of a median of numbers that are spread as a normal distribution is.
    errors = 1.25 * taken.std(axis=0) / rounds**0.5
    medians = np.median(taken, axis=0)
    return {
        way: [f"{x:.1f} ± {e:.1f}" for x, e in zip(medians[index], errors[index], strict=True)]
        for index, way in enumerate(ways)
    }


def _packed(client: Client, steps: int, index: int) -> None:
    record, _ = client.complete(_asked(steps, index), ignore_eos=True)
    assert record.trace.num_steps == steps


def _logprobs(client: Client, steps: int, index: int) -> None:
    request = _asked(steps, index)
    more = {"logprobs": num_logprobs(request), "return_tokens_as_token_ids": True}
    choice = _complete(client, steps, index, **more)["choices"][0]
    record = decode_response(choice["logprobs"]["top_logprobs"], request)
    assert record.trace.num_steps == steps


def _complete(client: Client, steps: int, index: int, **more: Any) -> dict[str, Any]:
    """A completion whose thinking is drawn alike, whatever comes back of it."""
    sent, own = encode_request(_asked(steps, index))
    body = {
        "model": client.model, "prompt": PROMPT, "ignore_eos": True, "vllm_xargs": sent,
        **own, **more,
    }  # fmt: skip
    asked = urllib.request.Request(
        f"{client.url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=600) as response:
        return json.load(response)


@contextmanager
def _served(folder: Path, max_num_seqs: int) -> Iterator[tuple[Client, int]]:
    """A server over a tiny random model, and the id of its first process."""
    tokenizer = make_tokenizer(2048)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "softgrpo.cli.main", "serve", str(folder)]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-num-seqs", str(max_num_seqs), "--kv-cache-memory-bytes", str(2**29)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        yield _wait_for(f"http://127.0.0.1:{port}", process), process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen) -> Client:
    while process.poll() is None:
        time.sleep(0.5)
        with suppress(ValueError):
            return Client(url)
    raise SystemExit("the server did not start")


def _cpu_seconds(server: int) -> tuple[float, float, float]:
    """CPU-seconds so far of a server's front end, of the processes it has made, and of this one."""
    front, *made = _family(server)
    return _used(front), sum(map(_used, made)), time.process_time()


def _family(process: int) -> list[int]:
    """A process and all its descendants (Linux)."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def _used(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
