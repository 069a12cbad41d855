"""What SofTGRPOConfig has beside TRL's fields and the thinking's. Nothing heavy: help reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from softgrpo.thinking.fields import setting
from softgrpo.values import at_least

# Twelve hours. Processes meet when each has made its rollouts, or its share of an evaluation, and
# may be some waves apart: one of 32,768 tokens takes 14 minutes at 25 ms a step. The launcher
# notices a process that has died: patience costs little.
PATIENCE_SECONDS = 43_200

_LIMIT = at_least(1, ", or null for no limit")


@dataclass
class TrainingFields:
    """Fields of the training; a field's help says what it means.

    Those of TRL's stand here for another default: the published SofT-GRPO settings (arXiv
    2511.06411) are beta .001 and dual clip 3 (TRL's ``delta``, which is PPO's dual clip).
    """

    beta: Annotated[float, at_least(0)] = setting(
        0.001, "KL coefficient; 0 loads no reference model."
    )
    delta: float | None = setting(3.0, "PPO dual clip: the ratio's bound at negative advantages.")
    # See softgrpo.thinking.densities.
    density: str | None = setting(
        None,
        "Log-density to train: gumbel, concrete, argmax, censored (policy gumbel); default: the "
        "policy's own.",
    )
    reduction: str = setting(
        "masked_mean",
        "masked_mean: the authors' code; sum: the density itself.",
        choices=["masked_mean", "sum"],
    )
    # Those of vLLM are given the weights after each update. Of TRL's fields for it
    # vllm_max_model_length, vllm_gpu_memory_utilization and vllm_server_base_url are read.
    engine: str = setting(
        "transformers",
        "What makes the rollouts: transformers, vllm (in the process, one in each), vllm-server.",
        choices=["transformers", "vllm", "vllm-server"],
    )
    # A text may hold several, between commas; afterwards a list. Process 0 hands weights to all.
    vllm_server_base_url: list[str] | None = setting(
        None,
        "The address of softgrpo serve, for engine: vllm-server, or several: process i generates "
        "at server i modulo their number.",
    )
    rollout_dtype: str = setting(
        "auto",
        "dtype of the model copy that makes rollouts; model: no copy; auto: a copy where an "
        "accelerator would cast float32 weights at every step.",
        choices=["auto", "model", "float32", "bfloat16", "float16"],
    )
    rollout_batch_size: Annotated[int, at_least(1)] = setting(
        128, "Sequences decoded together in a rollout."
    )
    # None: as many as rollout_batch_size sequences take.
    rollout_batch_tokens: Annotated[int | None, _LIMIT] = setting(
        None, "Most positions of the rollout's key-value cache; bounds its memory."
    )
    # The gradient is the same. A sequence that is longer has a pass of its own.
    train_batch_tokens: Annotated[int | None, _LIMIT] = setting(
        None,
        "Most tokens of a pass through the policy or the reference, rollouts aside; a batch with "
        "more is passed in parts.",
    )
    # Where neither generation_batch_size nor steps_per_generation is set, a rollout has as many.
    update_batch_size: Annotated[int | None, at_least(1)] = setting(
        None,
        "Completions of an update, over all processes: gradient_accumulation_steps follows from "
        "it; default: as that says.",
    )
    # A text for the parser's sake, which takes a bool or text but not both. Afterwards a bool,
    # which transformers and TRL read; is_checkpointing_auto says whether it was auto.
    gradient_checkpointing: str = setting(
        "auto",
        "true, false, or auto: with train_batch_tokens only for a sequence that is longer, else "
        "true.",
        nargs="?",
        const="true",
    )
    # The numbers are the same, the tokens fewer. Layers must attend to every earlier token.
    share_prompts: bool | None = setting(
        None,
        "Train on common beginnings of prompts once, without padding (sdpa attention); default: on "
        "a CPU, where the model allows it.",
    )
    ddp_timeout: int = setting(
        PATIENCE_SECONDS, "Seconds that a process waits for the others in an exchange."
    )
    # [6]: see docs/paper_index.md.
    old_logps: str = setting(
        "trainer",
        "Old log-densities of the ratio: the trainer's own (the authors), or rollout.",
        choices=["trainer", "rollout"],
    )
