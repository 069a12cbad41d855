"""What `softgrpo plan` predicts against real updates on this machine: memory by phase, and times.

    python benchmarks/planner.py                            # the small cases, a process each
    python benchmarks/planner.py --cases smol-all-packed    # one of them
    python benchmarks/planner.py --cases qwen-lora r1-lora  # 5 to 9 GiB

The models have the configurations of published ones and random weights, so nothing is downloaded.
Each case trains two updates; times are of the second, whose memory holds the optimizer's moments.
The kernel's high-water mark (VmHWM) is set back between phases. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
R1: dict[str, Any] = {  # DeepSeek-R1-Distill-Qwen-1.5B
    "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "max_position_embeddings": 131_072, "tie_word_embeddings": False,
}  # fmt: skip
SHORT = {"prompts": 4, "samples": 4, "prompt": 32, "tokens": 64}
LONG = {"prompts": 2, "samples": 4, "prompt": 128, "tokens": 192}
CASES: dict[str, dict[str, Any]] = {
    "smol-all-packed": {"model": SMOL, **SHORT},
    "smol-all-padded": {"model": SMOL, "shares": False, **SHORT},
    "smol-lora-packed": {"model": SMOL, "lora": True, **SHORT},
    "smol-lora-padded": {"model": SMOL, "lora": True, "shares": False, **SHORT},
    "smol-all-packed-long": {"model": SMOL, **LONG},
    "smol-all-padded-long": {"model": SMOL, "shares": False, **LONG},
    "smol-lora-padded-long": {"model": SMOL, "lora": True, "shares": False, **LONG},
    "smol-all-budget-long": {"model": SMOL, "budget": 700, **LONG},
    "smol-all-checkpointed": {"model": SMOL, "checkpointing": True, **LONG},
    "qwen-lora": {"model": QWEN, "lora": True, **SHORT},
    "qwen-all": {"model": QWEN, **SHORT},
    "r1-lora": {"model": R1, "lora": True, "dtype": "bfloat16", **SHORT},
}
_RANK = 16


def main() -> None:
    """Run each case in a process of its own and print predicted against measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    small = [name for name in CASES if name.startswith("smol")]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=small)
    parser.add_argument("--json", default="planner.json")
    parser.add_argument("--again", action="store_true", help="measure only what the file lacks")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # the one case that this process runs
    options = parser.parse_args()
    if options.here:
        print(json.dumps(run(**CASES[options.here])))
        return
    import torch

    from softgrpo.planning.calibrate import measure

    file, device = Path(options.json), measure(torch.device("cpu"))
    known = json.loads(file.read_text()) if file.exists() and options.again else {}
    columns = ("peak GiB", "rollout s", "update s")
    print(f"| case | {' | '.join(f'{c}, planned | measured | off' for c in columns)} |")
    print(f"|{'---|' * 10}")
    for name in options.cases:
        if name not in known:
            command = [sys.executable, __file__, "--here", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            known[name] = json.loads(output.splitlines()[-1])
            file.write_text(json.dumps(known, indent=2))
        planned, real = plan(device, **CASES[name]), dict(known[name])
        real["peak GiB"] = max(value for key, value in real.items() if key.endswith("GiB"))
        cells = (
            f"{planned[c]:.2f} | {real[c]:.2f} | {planned[c] / real[c] - 1:+.0%}" for c in columns
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def plan(
    device: Any,
    model: dict[str, Any],
    prompts: int,
    samples: int,
    prompt: int,
    tokens: int,
    lora: bool = False,
    shares: bool = True,
    budget: int | None = None,
    checkpointing: bool = False,
    dtype: str = "float32",
) -> dict[str, float]:
    """What is planned for a case, under the names of what ``run`` measures."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig

    from softgrpo.planning import speed
    from softgrpo.planning.job import Job
    from softgrpo.planning.memory import memory, peak
    from softgrpo.planning.shapes import shape_of

    values = dict(model)
    shape = shape_of(
        AutoConfig.for_model(values.pop("model_type"), **values),
        dtype=getattr(torch, dtype),
        lora=LoraConfig(r=_RANK, target_modules="all-linear") if lora else None,
    )
    count = prompts * samples
    job = Job(
        updates=2, sequences=count, group=samples, micro_batch=count, prompt_tokens=prompt,
        completion_tokens=tokens, soft_share=7 / 8, shares_prompts=shares,
        train_batch_tokens=budget, checkpointing="all" if checkpointing else "none",
        is_prepacked=count * tokens >= 512 and dtype == "float32",
    )  # fmt: skip
    return {
        "peak GiB": peak(memory(shape, job))[1] / 2**30,
        "rollout s": speed.rollout(shape, job, device, count).seconds,
        "update s": speed.update(shape, job, device).seconds,
    }


def run(
    model: dict[str, Any],
    prompts: int,
    samples: int,
    prompt: int,
    tokens: int,
    lora: bool = False,
    shares: bool = True,
    budget: int | None = None,
    checkpointing: bool = False,
    dtype: str = "float32",
) -> dict[str, float]:
    """Two updates of a case: most memory of each phase (GiB), CPU-seconds of the second."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from rehearsal import _reward, _tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

    from softgrpo.training import SofTGRPOConfig, SofTGRPOTrainer

    torch.manual_seed(0)
    values = dict(model)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    tokenizer = _tokenizer(config.vocab_size)
    # From w30000 on: a word that begins as the special tokens w0, w1 and w2 do would be cut there.
    questions = [
        " ".join(f"w{30_000 + prompt * n + i}" for i in range(prompt)) for n in range(2 * prompts)
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
            output_dir=folder, max_steps=2, per_device_train_batch_size=samples * prompts,
            num_generations=samples, max_completion_length=tokens, beta=0.0, learning_rate=1e-6,
            think_end=["w7"], max_think_tokens=tokens * 7 // 8, use_cpu=True, bf16=False,
            gradient_checkpointing=checkpointing, save_strategy="no", report_to=[],
            train_batch_tokens=budget, share_prompts=shares, logging_steps=1, disable_tqdm=True,
            dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        adapter = LoraConfig(r=_RANK, target_modules="all-linear") if lora else None
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
