"""What SofTGRPOConfig has beside TRL's fields and the thinking's. Nothing heavy: help reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from softgrpo.values import at_least

# Twelve hours. Processes meet when each has made its rollouts, and process 0 evaluates alone: by
# default 3,200 sequences, 25 waves of 128. A wave of 32,768 tokens takes 14 minutes at 25 ms a
# step, all of them six hours. The launcher notices a process that has died: patience costs little.
PATIENCE_SECONDS = 43_200

_LIMIT = at_least(1, ", or null for no limit")


@dataclass
class TrainingFields:
    """Fields of the training, with their help. Those of TRL's stand here for another default.

    Such defaults are the published SofT-GRPO settings (arXiv 2511.06411): beta .001, dual clip 3
    (TRL's ``delta``, which is PPO's dual clip).

    Attributes:
        density: The log-density that is trained; None: the policy's default (``gumbel`` for
            ``gumbel``). See softgrpo.thinking.densities.
        reduction: ``masked_mean`` (the authors' code, the default) or ``sum``.
        engine: ``transformers``: the model itself makes the rollouts; ``vllm``: vLLM in the same
            process; ``vllm-server``: a running ``softgrpo serve``. Both are given the weights after
            each update. Of TRL's ``vllm_*`` fields ``vllm_max_model_length``,
            ``vllm_gpu_memory_utilization`` and ``vllm_server_base_url`` are read.
        rollout_dtype: ``model``: the model itself makes the rollouts; a dtype: a copy in it;
            ``auto``: a copy in bf16 or fp16 where those are on, the weights are float32 and an
            accelerator decodes, else the model.
        rollout_batch_size: Sequences decoded together.
        rollout_batch_tokens: Positions of the rollout's key-value cache; see TransformersEngine's
            ``max_batch_tokens``. None: as many as rollout_batch_size sequences take.
        train_batch_tokens: Most tokens of a pass through the policy or the reference, rollouts
            aside: a batch with more is passed in parts, with the same gradient. A sequence that is
            longer has a pass of its own. None: no limit.
        gradient_checkpointing: ``auto`` (the default), True or False. What is set holds for every
            pass; ``auto`` checkpoints all of them where train_batch_tokens is None, as TRL does,
            and else those of a sequence that is longer. Afterwards a bool, which transformers and
            TRL read; ``is_checkpointing_auto`` says whether it was ``auto``.
        share_prompts: Lay each micro-batch out without padding and compute what its prompts have in
            common once (the same numbers, fewer tokens). It needs sdpa attention and
            full-attention layers; null: on a CPU, where the model allows it.
        ddp_timeout: Seconds that a process waits for the others; PATIENCE_SECONDS says why so many.
        old_logps: ``trainer`` recomputes the old log-densities ([6], the authors' way), ``rollout``
            takes the rollout's.
    """

    beta: Annotated[float, at_least(0)] = field(
        default=0.001, metadata={"help": "KL coefficient; 0 loads no reference model."}
    )
    delta: float | None = field(
        default=3.0, metadata={"help": "PPO dual clip: the ratio's bound at negative advantages."}
    )
    density: str | None = field(
        default=None,
        metadata={
            "help": "Log-density to train: gumbel, concrete, argmax, censored (policy gumbel); "
            "default: the policy's own."
        },
    )
    reduction: str = field(
        default="masked_mean",
        metadata={
            "help": "masked_mean: the authors' code; sum: the density itself.",
            "choices": ["masked_mean", "sum"],
        },
    )
    engine: str = field(
        default="transformers",
        metadata={
            "help": "What makes the rollouts: transformers, vllm (same process), vllm-server.",
            "choices": ["transformers", "vllm", "vllm-server"],
        },
    )
    rollout_dtype: str = field(
        default="auto",
        metadata={
            "help": "dtype of the model copy that makes rollouts; model: no copy; auto: a copy "
            "where an accelerator would cast float32 weights at every step.",
            "choices": ["auto", "model", "float32", "bfloat16", "float16"],
        },
    )
    rollout_batch_size: Annotated[int, at_least(1)] = field(
        default=128, metadata={"help": "Sequences decoded together in a rollout."}
    )
    rollout_batch_tokens: Annotated[int | None, _LIMIT] = field(
        default=None,
        metadata={"help": "Most positions of the rollout's key-value cache; bounds its memory."},
    )
    train_batch_tokens: Annotated[int | None, _LIMIT] = field(
        default=None,
        metadata={
            "help": "Most tokens of a pass through the policy or the reference, rollouts aside; a "
            "batch with more is passed in parts."
        },
    )
    # A text for the parser's sake, which takes a bool or text but not both.
    gradient_checkpointing: str = field(
        default="auto",
        metadata={
            "help": "true, false, or auto: with train_batch_tokens only for a sequence that is "
            "longer, else true.",
            "nargs": "?",
            "const": "true",
        },
    )
    share_prompts: bool | None = field(
        default=None,
        metadata={
            "help": "Train on common beginnings of prompts once, without padding (sdpa attention); "
            "default: on a CPU, where the model allows it."
        },
    )
    ddp_timeout: int = field(
        default=PATIENCE_SECONDS,
        metadata={"help": "Seconds that a process waits for the others in an exchange."},
    )
    old_logps: str = field(
        default="trainer",
        metadata={
            "help": "Old log-densities of the ratio: the trainer's own (the authors), or rollout.",
            "choices": ["trainer", "rollout"],
        },
    )
