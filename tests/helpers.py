"""What the tests share: tiny models and tokenizers made from nothing, golden vectors, a trainer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from softgrpo.replay import Replayed, replay
from softgrpo.replay.packing import Packed
from softgrpo.rollout import Rollout, TransformersEngine
from softgrpo.thinking import Objective, SoftTrace, ThinkingConfig

ROOT = Path(__file__).parents[1]
SHARED = ROOT / ".." / "shared"
VECTORS = SHARED / "vectors"

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrst", *"0123456789", "</t>", "#", "##"]
VOCAB_SIZE = len(WORDS)


# Golden vectors -----------------------------------------------------------------------------------
def golden(name: str) -> dict[str, Tensor]:
    """One file of the authors' inputs and outputs; skips, saying so, where it is not there."""
    path = VECTORS / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"golden vectors not found: {os.path.relpath(path, ROOT)}")
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


# Tiny models and tokenizers -----------------------------------------------------------------------
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, split at spaces; "</t>" ends a thought."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "attention_dropout": 0.0,
}
_LLAMA = _SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}


def _gptj() -> GPTJConfig:
    return GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=8,
        initializer_range=0.25,
        eos_token_id=1,
        bos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )


# Every way a head differs from a plain product.
MODELS = {
    "tied": lambda: LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "untied": lambda: LlamaConfig(**_LLAMA, tie_word_embeddings=False),
    "bias": lambda: PhiConfig(**_LLAMA, tie_word_embeddings=False),
    "bias_gptj": _gptj,
    "scale_divides": lambda: GraniteConfig(
        **_LLAMA, logits_scaling=3.0, embedding_multiplier=2.0, tie_word_embeddings=True
    ),
    "scale_multiplies": lambda: CohereConfig(**_LLAMA, logit_scale=0.4),
    "softcap": lambda: Gemma2Config(
        **_LLAMA, head_dim=8, final_logit_softcapping=4.0, attn_logit_softcapping=20.0,
        sliding_window=8, hidden_activation="gelu_pytorch_tanh",
    ),
}  # fmt: skip


def tiny_model(
    name: str = "tied", seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "eager"
) -> Any:
    """A random causal LM of MODELS, in eval mode; its biases are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation=attention)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    return model.to(dtype).eval()


def save_tiny_model(folder: Path, name: str = "tied", seed: int = 0) -> str:
    """A tiny model and the word tokenizer as a checkpoint folder."""
    tiny_model(name, seed).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def give_home(model: Any, folder: Path) -> None:
    """Save a model where TRL will look for its reference."""
    model.save_pretrained(folder)
    model.config._name_or_path = str(folder)


# Rollouts and their replay ------------------------------------------------------------------------
PROMPTS = [[3], [4, 5, 6, 7, 8], [9, 10, 11]]  # mixed lengths: left padding is at work

POLICY_DENSITIES = [
    ("gumbel", "gumbel", "masked_mean"),
    ("gumbel", "gumbel", "sum"),
    ("gumbel", "concrete", "sum"),
    ("gumbel", "argmax", "sum"),
    ("gumbel", "censored", "sum"),
    ("dirichlet", "dirichlet", "masked_mean"),
    ("dirichlet", "dirichlet", "sum"),
    ("gaussian", "gaussian", "masked_mean"),
    ("gaussian", "gaussian", "sum"),
    ("embedding_gaussian", "embedding_gaussian", "masked_mean"),
    ("embedding_gaussian", "embedding_gaussian", "sum"),
    ("soft", "none", "sum"),
    ("discrete", "token", "sum"),
]


def thinking(policy: str = "gumbel", **settings: Any) -> ThinkingConfig:
    """A ThinkingConfig that mixes visibly and ends its thought at </t>."""
    defaults: dict[str, Any] = {
        "top_k": 4, "temperature": 1.3, "tau": 0.7, "think_end": ("</t>",), "sigma": 0.2,
        "answer_temperature": 0.8,
    }  # fmt: skip
    settings = defaults | settings
    if policy == "discrete":  # trained at one temperature
        settings["answer_temperature"] = settings["temperature"]
    return ThinkingConfig(policy=policy, **settings)


def roll_out(
    model: Any,
    config: ThinkingConfig,
    objective: Objective | None = None,
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    max_new_tokens: int = 12,
    tokenizer: Any = None,
    max_batch_size: int = 128,
    **options: Any,
) -> list[Rollout]:
    """Rollouts of a model; ``options`` go to ``generate``."""
    engine = TransformersEngine(model, tokenizer or word_tokenizer(), max_batch_size=max_batch_size)
    options = {"num_generations": 4, "seed": 7} | options
    return engine.generate(
        prompts, config, max_new_tokens=max_new_tokens, objective=objective, **options
    )


def batch_of(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, SoftTrace, Tensor]:
    """Left-padded ids and attention mask, the trace, and the rollout's log-densities [B, T]."""
    trace = SoftTrace.cat([r.trace for r in rollouts])
    longest = max(len(r.prompt_ids) for r in rollouts)
    ids = torch.zeros(len(rollouts), longest + trace.num_steps, dtype=torch.long)
    mask, logps = torch.zeros_like(ids), torch.zeros(len(rollouts), trace.num_steps)
    for i, r in enumerate(rollouts):
        start, end = longest - len(r.prompt_ids), longest + len(r.token_ids)
        ids[i, start:end] = torch.tensor(r.prompt_ids + r.token_ids)
        mask[i, start:end] = 1
        if r.logps is not None:
            logps[i, : len(r.logps)] = torch.tensor(r.logps)
    return ids, mask, trace, logps


def replay_rollouts(
    model: Any, rollouts: Sequence[Rollout], config: ThinkingConfig, objective: Objective
) -> tuple[Replayed, Tensor, Tensor]:
    """Replayed, the rollout's own log-densities, and the mask of generated steps."""
    ids, mask, trace, logps = batch_of(rollouts)
    return replay(model, ids, mask, trace, objective), logps, trace.mask


def write_recipe(folder: Path, model: Path, /, **fields: object) -> str:
    """A recipe of a run in ``folder`` that takes a second, with its data; other fields win."""
    data = folder / "data.jsonl"
    pairs = [(x, y) for x in "abcdefghij" for y in "klmnopqrst"]
    rows = ({"question": f"{x} {y}", "answer": str(i % 3)} for i, (x, y) in enumerate(pairs))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": str(model), "task": str(data), "num_train_problems": 16, "chat": False,
        "rewards": ["format"], "num_eval_problems": 3, "eval_samples": 2, "sample_steps": 2,
        "num_samples_kept": 2, "output_dir": str(folder / "run"), "use_cpu": True,
        "bf16": False, "think_end": ["</t>"], "max_think_tokens": 5,
        "max_completion_length": 8, "per_device_train_batch_size": 4, "num_generations": 4,
        "max_steps": 4, "logging_steps": 1, "save_steps": 2, "learning_rate": 0.01,
        "tau": 0.7, "seed": 3,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | fields))
    return str(path)


# vLLM asleep --------------------------------------------------------------------------------------
class SleepingLLM:
    """Stands in for a ``vllm.LLM``: records what is asked of it, refuses what needs what is asleep.

    Attributes:
        asleep: What of it is.
        calls: Asked for, in order.
        fails: The call that fails the next time.
    """

    def __init__(self) -> None:
        self.asleep = {"weights", "kv_cache"}
        self.calls: list[str] = []
        self.fails: str | None = None
        self._running: list[str] = []
        parallel = SimpleNamespace(distributed_executor_backend="uni")
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(parallel_config=parallel),
            add_request=self._add,
            step=self._step,
            abort_request=self._abort,
        )

    def require(self, name: str, *needs: str) -> None:
        """Record a call, which needs parts of it awake."""
        assert not self.asleep & set(needs), f"{name} while {self.asleep} are asleep"
        self.calls.append(name)
        if self.fails == name:
            self.fails = None
            raise MemoryError(name)

    def wake_up(self, tags: list[str]) -> None:
        for tag in tags:
            self.require(f"wake {tag}")
        assert self.asleep >= set(tags), "awake already"
        self.asleep = self.asleep - set(tags)

    def sleep(self, level: int) -> None:
        self.require(f"sleep {level}")
        assert not self._running, "sequences are still running"
        self.asleep = {"weights", "kv_cache"}

    def collective_rpc(self, method: str, args: Any = ()) -> None:
        self.require(method, "weights")

    def reset_prefix_cache(self) -> None:
        self.require("reset_prefix_cache")

    def _add(self, name: str, prompt: Any, parameters: Any) -> None:
        self.require("add", "weights", "kv_cache")
        self._running.append(name)

    def _abort(self, names: list[str]) -> None:
        self._running = [name for name in self._running if name not in names]

    def _step(self) -> list[Any]:
        self.require("step", "weights", "kv_cache")
        return [SimpleNamespace(request_id=self._running.pop())] if self._running else []


# A trainer on a tiny model ------------------------------------------------------------------------
TRAIN_PROMPTS = ["a b", "c d e f", "g", "h i j", "k l", "m n o", "p", "q r s t"]


def letter_reward(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between samples: the share of words before "k", and a little length."""
    return [
        sum(word < "k" for word in text.split()) / 8 + 0.01 * len(text.split())
        for text in completions
    ]


def train_config(folder: Path | str, **settings: Any) -> Any:
    from softgrpo.training import SofTGRPOConfig

    defaults: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 8, "max_steps": 1, "learning_rate": 1e-2, "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "beta": 0.0, "seed": 3, "think_end": ["</t>"],
        "disable_tqdm": True, "temperature": 1.3, "tau": 0.7, "top_k": 4, "sigma": 0.2,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    settings = defaults | settings
    if settings.get("policy") == "discrete":  # trained at one temperature
        settings["answer_temperature"] = settings["temperature"]
    return SofTGRPOConfig(**settings)


def make_trainer(model: Any, args: Any, reward: Any = letter_reward, **options: Any) -> Any:
    """A SofTGRPOTrainer on TRAIN_PROMPTS. ``model`` is a model or a name of MODELS."""
    from softgrpo.training import SofTGRPOTrainer

    if isinstance(model, str) and model in MODELS:
        model = tiny_model(model)
    if args.beta:
        give_home(model, Path(args.output_dir) / "base")
        # Only the first process writes it; the others must not read it before.
        args.distributed_state.wait_for_everyone()
    return SofTGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": TRAIN_PROMPTS}),
        processing_class=word_tokenizer(),
        **options,
    )


def parameters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


# Processes ----------------------------------------------------------------------------------------
def generated_tokens(trainer: Any) -> list[list[list[int]]]:
    """What a trainer's engine will have generated: of each rollout the sequences' tokens."""
    tokens: list[list[list[int]]] = []
    generate = trainer.engine.generate

    def kept(*arguments: Any, **options: Any) -> Any:
        rollouts = generate(*arguments, **options)
        tokens.append([rollout.token_ids for rollout in rollouts])
        return rollouts

    trainer.engine.generate = kept
    return tokens


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_processes(script: str, *arguments: str, processes: int = 1, timeout: float = 120) -> str:
    """Run a script under torchrun's environment, one thread a process; its output, or a failure."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(processes)
    ]  # fmt: skip
    outputs = []
    try:
        for process in running:
            outputs.append(process.communicate(timeout=timeout)[0])
    except subprocess.TimeoutExpired:
        pytest.fail(f"{processes} processes did not finish within {timeout} s")
    finally:
        for process in running:
            process.kill()
            process.wait()
    failed = [o for p, o in zip(running, outputs, strict=True) if p.returncode]
    # One that fails takes the others along: all of them have to be heard.
    assert not failed, "\n".join(output[-3000:] for output in failed)
    return outputs[0]


def ancestor_matrix(packed: Packed) -> Tensor:
    """[S, S] bool, True where the row's token attends to the column's: what layouts stand for."""
    size = len(packed.source)
    matrix = torch.zeros(size, size, dtype=torch.bool, device=packed.source.device)
    for path in packed.paths:
        own, length = torch.from_numpy(path).to(matrix.device), len(path)
        matrix[own[:, None], own] |= torch.ones_like(matrix[:length, :length]).tril()
    return matrix
