"""The output head of a training step against the vocabulary's size: k columns and full logits.

    OMP_NUM_THREADS=1 python benchmarks/head.py

Forward and backward from hidden states to log-densities, in float32, four ways: our k columns at
soft steps, our chunked log-softmax at ordinary tokens, full logits, and TRL's fused head (its
chunked torch path: Triton and Liger do not run on a CPU). Each is measured in a forked process, in
turn. Memory is the peak above what was there before, less the gradient of the head's weight, which
any optimiser needs. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from softgrpo.replay import OutputHead, logps_from_hidden, logps_from_logits

COLUMNS, TOKENS, FULL, FUSED = "k columns (ours, soft)", "chunks (ours)", "full logits", "TRL fused"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=576, help="hidden size; SmolLM2-135M's")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument(
        "--vocabularies", type=int, nargs="+", default=[32_000, 64_000, 100_000, 152_000]
    )
    parser.add_argument("--heads", nargs="+", choices=_WAYS, default=list(_WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="128 steps, two vocabularies, once")
    parser.add_argument("--json", default="head.json")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.repeats = 128, 1
        options.vocabularies = [options.vocabularies[0], options.vocabularies[-1]]
    context = multiprocessing.get_context("fork")
    rows = []
    print("| head | vocabulary | CPU-seconds | wall seconds | memory (MiB) | over the first |")
    print("|---|---|---|---|---|---|")
    for vocabulary in options.vocabularies:
        turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in options.heads}
        for _ in range(options.repeats):
            for name, taken in turns.items():
                with context.Pool(1) as pool:
                    taken.append(pool.apply(_measure, (name, vocabulary, options)))
        for name, taken in turns.items():
            cpu, wall, memory = (statistics.median(x) for x in zip(*taken, strict=True))
            first_ways = turns[options.heads[0]]
            pairs = [a[0] / b[0] for a, b in zip(taken, first_ways, strict=True)]
            ratio = statistics.median(pairs)
            rows.append(
                {"head": name, "vocabulary": vocabulary, "cpu": cpu, "wall": wall,
                 "memory": memory, "pairs": pairs}
            )  # fmt: skip
            print(
                f"| {name} | {vocabulary} | {cpu:.3f} | {wall:.3f} | {memory:.1f} | {ratio:.1f}x |",
                flush=True,
            )
    print()
    for name in options.heads:
        memory = [row["memory"] for row in rows if row["head"] == name]
        first, last = memory[0], memory[-1]
        print(f"- {name}: memory grows by {last / first - 1:+.1%} over the vocabularies")
    values = {"settings": vars(options), "rows": rows}
    Path(options.json).write_text(json.dumps(values, indent=2))


def _measure(name: str, vocabulary: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """CPU-seconds, wall seconds and MiB of one forward and backward."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, options.hidden, generator=generator) * 0.05
    weight.requires_grad_()
    hidden = torch.randn(options.steps, options.hidden, generator=generator, requires_grad=True)
    ids = torch.randint(vocabulary, (options.steps, options.columns), generator=generator)
    scores = -torch.rand(options.steps, options.columns, generator=generator)
    _WAYS[name](hidden[:8], weight, ids[:8], scores[:8]).sum().backward()  # libraries warm up
    weight.grad = hidden.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _peak()
    start = time.process_time(), time.perf_counter()
    _WAYS[name](hidden, weight, ids, scores).sum().backward()
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    assert weight.grad is not None
    return cpu, wall, (_peak() - before) - weight.grad.nbytes / 2**20


def _peak() -> float:
    """Peak memory of this process since the counter was cleared, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _ours(is_soft: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def run(hidden: Tensor, weight: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
        support = torch.ones_like(ids, dtype=torch.bool)
        soft = torch.full((len(ids),), is_soft)
        return logps_from_hidden(hidden, OutputHead(weight), ids, scores, support, soft)

    return run


def _full(hidden: Tensor, weight: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    support, soft = torch.ones_like(ids, dtype=torch.bool), torch.ones(len(ids), dtype=torch.bool)
    return logps_from_logits(F.linear(hidden, weight), ids, scores, support, soft)


def _fused(hidden: Tensor, weight: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    outputs = ("log_probs", "entropy")
    size = _CHUNKED_LOGPROB_CHUNK_SIZE
    return ChunkedLogProbFunction.apply(
        hidden, weight, None, ids[:, 0], 1.0, size, None, 1.0, outputs
    )[0]


_WAYS = {COLUMNS: _ours(True), TOKENS: _ours(False), FULL: _full, FUSED: _fused}

if __name__ == "__main__":
    main()
