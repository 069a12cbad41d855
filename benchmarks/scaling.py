"""How a rollout's cost grows: with sequences, length, columns, samples, model size, steps.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Soft rollouts of random Llama models, no token of which ends a sequence. One quantity is varied at a
time; its values are measured in turn, and again. Prints Markdown tables of median CPU-seconds and
the exponent: the slope of log cost over log quantity, by least squares (1: cost is proportional,
0: it does not depend on it). For steps it is one rollout of 4,096 tokens, whose steps are timed at
several places, attention by itself. The numbers go to a JSON file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softgrpo import ThinkingConfig, TransformersEngine

_VOCABULARY = 8192


@dataclass(frozen=True)
class Setting:
    """One rollout.

    Attributes:
        sequences: Of the rollout; at most 32 run at a time.
        length: Generated tokens of each.
        columns: K, ids that a soft step mixes.
        generations: G, samples of a prompt.
        prompt: Tokens of a prompt.
        size: Hidden size of the model, which has a layer for each 64 of it.
    """

    sequences: int = 32
    length: int = 64
    columns: int = 5
    generations: int = 8
    prompt: int = 32
    size: int = 256


# What is varied, over which values, and what else differs from the default while it is.
SWEEPS: dict[str, tuple[list[int], Setting]] = {
    "sequences": ([32, 64, 128, 256], Setting(length=32)),
    "length": ([64, 128, 256, 512, 1024], Setting(sequences=16)),
    "columns": ([1, 2, 5, 10, 20, 40], Setting()),
    "generations": ([1, 2, 4, 8, 16, 32], Setting(prompt=256, length=32)),
    "size": ([128, 256, 384, 512], Setting(length=32)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sweeps = [*SWEEPS, "steps"]
    parser.add_argument("--sweeps", nargs="+", default=sweeps, choices=sweeps)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first two values, once")
    parser.add_argument("--json", default="scaling.json")
    options = parser.parse_args()
    results = []
    for quantity in options.sweeps:
        if quantity == "steps":
            results.append(_steps(512 if options.quick else 4096))
            print(_table_of_steps(results[-1]), flush=True)
            continue
        values, base = SWEEPS[quantity]
        if options.quick:
            values, options.repeats = values[:2], 1
        results.append(_sweep(quantity, values, base, options.repeats))
        print(_table(results[-1]), flush=True)
    Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def _sweep(quantity: str, values: list[int], base: Setting, repeats: int) -> dict[str, Any]:
    settings = [replace(base, **{quantity: value}) for value in values]
    models_ = {size: _model(size) for size in {setting.size for setting in settings}}
    _seconds(models_[settings[0].size], settings[0])  # warm up
    taken: list[list[float]] = [[] for _ in settings]
    for _ in range(repeats):
        for setting, seconds in zip(settings, taken, strict=True):
            seconds.append(_seconds(models_[setting.size], setting))
    if quantity == "size":
        values = [sum(p.numel() for p in models_[value].parameters()) for value in values]
        quantity = "parameters"
    medians = [statistics.median(seconds) for seconds in taken]
    return {
        "quantity": quantity,
        "base": asdict(base),
        "values": values,
        "CPU-seconds": medians,
        "exponent": _slope([math.log(x) for x in values], [math.log(y) for y in medians]),
        "runs": taken,
    }


def _steps(length: int, sequences: int = 8, window: int = 64) -> dict[str, Any]:
    """Median CPU-milliseconds of a step, and of attention in it, at growing distances."""
    model = _model(256)
    attend = functional.scaled_dot_product_attention
    begun: list[float] = []
    attention: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.process_time()
        result = attend(*args, **kwargs)
        attention[-1] += time.process_time() - start
        return result

    def begin(*_: Any) -> None:
        begun.append(time.process_time())
        attention.append(0.0)

    hook = model.register_forward_pre_hook(begin)
    functional.scaled_dot_product_attention = timed
    try:
        _seconds(model, Setting(sequences, length, generations=sequences))
    finally:
        functional.scaled_dot_product_attention = attend
        hook.remove()
    taken = [later - earlier for earlier, later in itertools.pairwise(begun)]
    ends = [end for end in (128, 256, 512, 1024, 2048, 4096) if end <= length]
    places = [slice(end - window, end) for end in ends]
    whole = [1000 * statistics.median(taken[place]) for place in places]
    inside = [1000 * statistics.median(attention[place]) for place in places]
    return {"quantity": "steps", "values": ends, "step": whole, "attention": inside}


def _table_of_steps(result: dict[str, Any]) -> str:
    line = "|---" * (len(result["values"]) + 1) + "|"
    rest = [a - b for a, b in zip(result["step"], result["attention"], strict=True)]
    rows = {"a step": result["step"], "attention": result["attention"], "the rest": rest}
    return "\n".join(
        [
            "\n| CPU-ms at step | " + " | ".join(f"{value:,}" for value in result["values"]) + " |",
            line,
        ]
        + [
            f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"
            for name, values in rows.items()
        ]
    )


def _model(size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=size // 64,
        num_attention_heads=size // 32,
        num_key_value_heads=size // 64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({str(i): i for i in range(_VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _seconds(model: LlamaForCausalLM, setting: Setting) -> float:
    """CPU-seconds of one rollout."""
    engine = TransformersEngine(model, _tokenizer(), max_batch_size=32, eos_token_ids=())
    draw = torch.Generator().manual_seed(0)
    count = setting.sequences // setting.generations
    prompts = torch.randint(_VOCABULARY, (count, setting.prompt), generator=draw).tolist()
    config = ThinkingConfig(top_k=setting.columns, think_end=())
    start = time.process_time()
    engine.generate(
        prompts, config, max_new_tokens=setting.length, num_generations=setting.generations
    )
    return time.process_time() - start


def _slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope


def _table(result: dict[str, Any]) -> str:
    values = " | ".join(f"{value:,}" for value in result["values"])
    seconds = " | ".join(f"{value:.2f}" for value in result["CPU-seconds"])
    line = "|---" * (len(result["values"]) + 2) + "|"
    return (
        f"\n| {result['quantity']} | {values} | exponent |\n{line}\n"
        f"| CPU-seconds | {seconds} | {result['exponent']:.2f} |"
    )


if __name__ == "__main__":
    main()
