"""Tiny models that vLLM can run, engines over them, and how far a replay is from a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from softgrpo.rollout import Rollout, vllm_engine
from softgrpo.rollout.vllm_engine import VLLMEngine
from softgrpo.thinking import Objective, ThinkingConfig
from tests.helpers import VOCAB_SIZE, replay_rollouts, word_tokenizer

BOUND = 1e-4
# Prompts of different lengths; two of them begin alike.
PROMPTS = [
    [3, 4, 5],
    [*range(3, 33), *range(3, 33), 7],
    [*range(3, 33), *range(3, 33), 9, 11],
    [12, 20, 30, 4, 9],
]


def make_model(folder: Path, *, tied: bool, seed: int = 0) -> Any:
    """A random Llama, saved with the word tokenizer; vLLM wants heads of 32 at least."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model


@contextmanager
def running_engine(model: Path | str, **options: Any) -> Iterator[VLLMEngine]:
    """An engine in float32, and afterwards nothing of it."""
    defaults: dict[str, Any] = {
        "dtype": "float32", "max_model_len": 256, "max_num_seqs": 32, "enforce_eager": True,
        "kv_cache_memory_bytes": 2**24, "block_size": 32,
    }  # fmt: skip
    engine = VLLMEngine(str(model), **defaults | options)
    try:
        yield engine
    finally:
        engine.llm.llm_engine.engine_core.shutdown()
        del engine
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@contextmanager
def quick_to_start() -> Iterator[None]:
    """Engines that a trainer makes compile nothing and have a small cache."""
    small = {"enforce_eager": True, "kv_cache_memory_bytes": 2**24}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "VLLMEngine", partial(VLLMEngine, **small))
        yield


def gaps(
    model: Any,
    rollouts: Sequence[Rollout],
    configs: Sequence[ThinkingConfig],
    objectives: Sequence[Objective],
) -> list[float]:
    """Largest |replayed - drawn| log-density of each rollout, in nats."""
    found = []
    for rollout, config, objective in zip(rollouts, configs, objectives, strict=True):
        with torch.no_grad():
            replayed, drawn, mask = replay_rollouts(model, [rollout], config, objective)
        found.append((replayed.logps - drawn).abs()[mask].max().item())
    return found
