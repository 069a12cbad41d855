"""What `softgrpo plan` predicts against real updates on this machine: memory by phase, and times.

    python benchmarks/planner.py --again                    # memory: cases that are not yet known
    python benchmarks/planner.py --cases smol-all-packed    # of one case
    python benchmarks/planner.py --times                    # times too, on a quiet machine

The models have the configurations of published ones and random weights, so nothing is downloaded.
Each case trains two updates in a process of its own, 4 to 14 GiB; times are of the second, whose
memory holds the optimizer's moments. The kernel's high-water mark (VmHWM) is set back between
phases. Memory does not depend on what else the machine does; times, in CPU-seconds, do. Prints a
Markdown table, and keeps what was measured in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal import R1_1_5B

SMOL: dict[str, Any] = {  # SmolLM2-135M
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
QWEN: dict[str, Any] = {  # Qwen2.5-0.5B
    "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "max_position_embeddings": 32_768, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, how it is trained, and on what; lengths are in tokens."""

    model: dict[str, Any]
    lora: bool
    shares: bool  # packed, else padded
    dtype: str = "float32"
    prompts: int = 4
    samples: int = 4
    prompt: int = 32
    tokens: int = 64
    budget: int | None = None
    checkpointing: bool = False

    @property
    def sequences(self) -> int:
        """Of a rollout, which is an update's."""
        return self.prompts * self.samples


_SIZES: dict[str, dict[str, Any]] = {
    "smol": {"model": SMOL},
    "qwen": {"model": QWEN, "prompts": 2},
    "r1": {"model": R1_1_5B, "dtype": "bfloat16", "prompts": 2, "samples": 2, "tokens": 32},
}
_LONG = {"model": SMOL, "prompts": 2, "prompt": 128, "tokens": 192}
CASES = {
    f"{name}-{'lora' if lora else 'all'}-{'packed' if shares else 'padded'}": Case(
        lora=lora, shares=shares, **sizes
    )
    for name, sizes in _SIZES.items()
    for lora in (False, True)
    for shares in (True, False)
}
MORE = {
    "smol-all-packed-long": Case(lora=False, shares=True, **_LONG),
    "smol-all-padded-long": Case(lora=False, shares=False, **_LONG),
    "smol-lora-padded-long": Case(lora=True, shares=False, **_LONG),
    "smol-all-budget-long": Case(lora=False, shares=True, budget=700, **_LONG),
    "smol-all-checkpointed": Case(lora=False, shares=True, checkpointing=True, **_LONG),
}
_RANK = 16


def main() -> None:
    """Run each case in a process of its own and print predicted against measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = CASES | MORE
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(CASES))
    parser.add_argument("--times", action="store_true", help="calibrate, and print times too")
    parser.add_argument("--json", default="planner.json")
    parser.add_argument("--again", action="store_true", help="measure only what the file lacks")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # the one case that this process runs
    options = parser.parse_args()
    if options.here:
        print(json.dumps(run(cases[options.here])))
        return
    import torch

    from softgrpo.planning.calibrate import measure
    from softgrpo.planning.devices import DEVICES

    file = Path(options.json)
    device = measure(torch.device("cpu")) if options.times else DEVICES["cpu"]
    known = json.loads(file.read_text()) if file.exists() and options.again else {}
    columns = ["peak GiB", *["rollout s", "update s"] * options.times]
    print(f"| case | {' | '.join(f'{c}, planned | measured | off' for c in columns)} |")
    print(f"|{'---|' * (1 + 3 * len(columns))}")
    for name in options.cases:
        if name not in known:
            command = [sys.executable, __file__, "--here", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            known[name] = json.loads(output.splitlines()[-1])
            file.write_text(json.dumps(known, indent=2))
        planned, real = plan(cases[name], device), dict(known[name])
        real["peak GiB"] = max(value for key, value in real.items() if key.endswith("GiB"))
        cells = (
            f"{planned[c]:.2f} | {real[c]:.2f} | {planned[c] / real[c] - 1:+.0%}" for c in columns
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def plan(case: Case, device: Any) -> dict[str, float]:
    """What is planned for a case, under the names of what ``run`` measures."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig

    from softgrpo.planning import speed
    from softgrpo.planning.job import Job
    from softgrpo.planning.memory import memory, peak
    from softgrpo.planning.shapes import shape_of
    from softgrpo.rollout.prepacked import WORTH_TOKENS

    shape = shape_of(
        AutoConfig.for_model(**case.model),
        dtype=getattr(torch, case.dtype),
        lora=LoraConfig(r=_RANK, target_modules="all-linear") if case.lora else None,
    )
    job = Job(
        updates=2, sequences=case.sequences, group=case.samples, micro_batch=case.sequences,
        prompt_tokens=case.prompt, completion_tokens=case.tokens, soft_share=7 / 8,
        shares_prompts=case.shares, train_batch_tokens=case.budget,
        checkpointing="all" if case.checkpointing else "none",
        is_prepacked=case.sequences * case.tokens >= WORTH_TOKENS and case.dtype == "float32",
    )  # fmt: skip
    return {
        "peak GiB": peak(memory(shape, job))[1] / 2**30,
        "rollout s": speed.rollout(shape, job, device, case.sequences).seconds,
        "update s": speed.update(shape, job, device).seconds,
    }


def run(case: Case) -> dict[str, float]:
    """Two updates of a case: most memory of each phase (GiB), CPU-seconds of the second."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from rehearsal import _reward, _tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

    from softgrpo.training import SofTGRPOConfig, SofTGRPOTrainer

    torch.manual_seed(0)
    config = AutoConfig.for_model(**case.model)
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    tokenizer = _tokenizer(config.vocab_size)
    # From w30000 on: a word that begins as the special tokens w0, w1 and w2 do would be cut there.
    questions = [
        " ".join(f"w{30_000 + case.prompt * n + i}" for i in range(case.prompt))
        for n in range(2 * case.prompts)
    ]
    measured: dict[str, float] = {}

    def mark(phase: str) -> None:
        """The end of a phase, whose high-water mark is kept; the next begins."""
        measured[f"{phase} GiB"] = max(measured.get(f"{phase} GiB", 0), _high_water())
        Path("/proc/self/clear_refs").write_text("5")

    class Marks(TrainerCallback):
        def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
            mark("update")

        def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
            mark("step")
            measured["update s"] = time.process_time() - measured["end of rollout"]

    mark("start")
    with tempfile.TemporaryDirectory() as folder:
        args = SofTGRPOConfig(
            output_dir=folder, max_steps=2, per_device_train_batch_size=case.sequences,
            num_generations=case.samples, max_completion_length=case.tokens, beta=0.0,
            learning_rate=1e-6, think_end=["w7"], max_think_tokens=case.tokens * 7 // 8,
            use_cpu=True, bf16=False, gradient_checkpointing=case.checkpointing,
            save_strategy="no", report_to=[], train_batch_tokens=case.budget,
            share_prompts=case.shares, logging_steps=1, disable_tqdm=True,
            dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        adapter = LoraConfig(r=_RANK, target_modules="all-linear") if case.lora else None
        trainer = SofTGRPOTrainer(
            causal_lm, _reward, args, train_dataset=Dataset.from_dict({"prompt": questions}),
            processing_class=tokenizer, peft_config=adapter, callbacks=[Marks()],
        )  # fmt: skip
        generate = trainer.engine.generate

        def timed(*arguments: Any, **more: Any) -> Any:
            mark("start")
            start = time.process_time()
            rollouts = generate(*arguments, **more)
            measured["rollout s"] = time.process_time() - start
            measured["end of rollout"] = time.process_time()
            measured["steps"] = sum(len(rollout.token_ids) for rollout in rollouts)
            mark("rollout")
            return rollouts

        trainer.engine.generate = timed
        trainer.train()
    del measured["end of rollout"]
    return measured


def _high_water() -> float:
    """The most that this process has held since it was set back, GiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
