"""One update of a model of real size, end to end, on this machine: does it fit, and what holds it?

    python benchmarks/rehearsal.py                         # every case, each in its own process
    python benchmarks/rehearsal.py --cases r1-lora-short   # one of them

The models have the configurations of published ones and random weights (--dtype), so nothing is
downloaded and nothing is learnt: what is rehearsed are shapes, memory and the agreement of rollout
and trainer. A GRPO group needs two samples, so the long case has one prompt with two, of which one
at a time goes through the model. Prints a Markdown table and writes JSON; it takes half an hour and
20 GiB.
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

import torch

R1_1_5B: dict[str, Any] = {  # DeepSeek-R1-Distill-Qwen-1.5B
    "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3B: dict[str, Any] = {  # Llama-3.2-3B
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
SHORT = {"prompts": 2, "tokens": 64, "gradient_checkpointing": False}
LONG = {"prompts": 1, "tokens": 2048, "gradient_checkpointing": True}
CASES: dict[str, dict[str, Any]] = {
    "r1-lora-short": {"model": R1_1_5B, "lora": True, **SHORT},
    "r1-all-short": {"model": R1_1_5B, "lora": False, **SHORT},
    "llama-lora-short": {"model": LLAMA_3B, "lora": True, **SHORT},
    "r1-lora-long": {"model": R1_1_5B, "lora": True, **LONG},
    "r1-all-long": {"model": R1_1_5B, "lora": False, **LONG},
}
SAMPLES, PROMPT_TOKENS = 2, 32


def main() -> None:
    """Run each case in a process of its own and print what it measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, help="completion tokens, in the place of the case's")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the weights; float32 where the processor's bfloat16 products take days",
    )
    parser.add_argument("--json", default="rehearsal.json")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # the one case that this process runs
    options = parser.parse_args()
    if options.here:
        case = CASES[options.here] | ({"tokens": options.tokens} if options.tokens else {})
        print(json.dumps(run(dtype=getattr(torch, options.dtype), **case)))
        return
    columns = (
        "parameters", "trainable", "weights GiB", "gradients GiB", "optimizer GiB",
        "largest rollout GiB", "peak GiB", "rollout s", "update s", "gap max", "gap mean",
    )  # fmt: skip
    print(f"| case | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    results = {}
    for name in options.cases:
        tokens = ["--tokens", str(options.tokens)] if options.tokens else []
        command = [sys.executable, __file__, "--here", name, "--dtype", options.dtype, *tokens]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
        print(f"| {name} | {' | '.join(str(results[name][c]) for c in columns)} |", flush=True)
    Path(options.json).write_text(json.dumps(results, indent=2))


def run(
    model: dict[str, Any],
    dtype: torch.dtype,
    lora: bool,
    prompts: int,
    tokens: int,
    gradient_checkpointing: bool,
) -> dict[str, Any]:
    """One update; sizes in GiB, times in seconds, log-density gaps in nats."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    from softgrpo.training import SofTGRPOConfig, SofTGRPOTrainer

    torch.manual_seed(0)
    values = dict(model)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = _tokenizer(config.vocab_size)
    marks: dict[str, float] = {}
    questions = [
        " ".join(f"w{100 * row + i}" for i in range(PROMPT_TOKENS)) for row in range(prompts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = SofTGRPOConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=SAMPLES * prompts,
            num_generations=SAMPLES, max_completion_length=tokens, beta=0.0, learning_rate=1e-6,
            think_end=["w7"], max_think_tokens=tokens * 7 // 8, use_cpu=True, bf16=False,
            gradient_checkpointing=gradient_checkpointing, save_strategy="no", report_to=[],
            train_batch_tokens=tokens + PROMPT_TOKENS, logging_steps=1, disable_tqdm=True,
            dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        adapter = LoraConfig(r=16, target_modules="all-linear") if lora else None
        trainer = SofTGRPOTrainer(
            causal_lm, _reward, args, train_dataset=Dataset.from_dict({"prompt": questions}),
            processing_class=tokenizer, peft_config=adapter,
        )  # fmt: skip
        generate = trainer.engine.generate

        def timed(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            rollouts = generate(*arguments, **more)
            marks["rollout s"], marks["rollout peak"] = time.perf_counter() - start, _peak()
            return rollouts

        trainer.engine.generate = timed
        start = time.perf_counter()
        trainer.train()
        update = time.perf_counter() - start - marks["rollout s"]
        logged = trainer.state.log_history[0]
        parameters = list(trainer.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        states = [x for s in trainer.optimizer.state.values() for x in s.values()]
    gib = 2**30
    return {
        "parameters": f"{sum(p.numel() for p in parameters) / 1e9:.2f}B",
        "trainable": f"{sum(p.numel() for p in trained) / 1e9:.3f}B",
        "weights GiB": round(sum(p.nbytes for p in parameters) / gib, 2),
        "gradients GiB": round(sum(p.nbytes for p in trained) / gib, 2),
        "optimizer GiB": round(sum(x.nbytes for x in states if torch.is_tensor(x)) / gib, 2),
        "largest rollout GiB": round(marks["rollout peak"], 2),
        "peak GiB": round(_peak(), 2),
        "rollout s": round(marks["rollout s"]),
        "update s": round(update),
        "gap max": f"{logged['soft/logp_gap_max']:.3g}",
        "gap mean": f"{logged['soft/logp_gap_mean']:.3g}",
        "loss": logged["loss"],
        "grad_norm": logged["grad_norm"],
    }


def _reward(completions: list[str], **_: Any) -> list[float]:
    """Something that differs between samples."""
    return [len(set(text.split())) / 100 for text in completions]


def _tokenizer(size: int) -> Any:
    """A word for every id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w1")


def _peak() -> float:
    """The most that this process has held, GiB (Linux)."""
    from softgrpo.training.memory import held

    memory = held(torch.device("cpu"))
    assert memory is not None
    return memory[1] / 2**30


if __name__ == "__main__":
    main()
