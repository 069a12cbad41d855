"""SofTGRPOConfig: TRL's GRPOConfig and what SofT-GRPO adds to it. Values only, no model.

The fields of thinking have ThinkingConfig's names. TRL's own ``temperature``, ``top_k``, ``top_p``
and ``min_p`` are those of the thinking steps; the answer has its own.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.hf_argparser import string_to_bool
from trl import GRPOConfig

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import check_density
from softgrpo.thinking.objective import Objective
from softgrpo.values import Bounds, check, check_bounds

# What GRPOTrainer can do and this trainer cannot (yet): field, value that switches it off, why.
_UNSUPPORTED = (
    ("use_vllm", False, "its sampler does not think softly; write engine: vllm"),
    ("use_transformers_continuous_batching", False, "it cannot feed embeddings"),
    ("repetition_penalty", 1.0, "a density under it is not defined"),
    ("generation_kwargs", None, "generation is softgrpo's; use the fields of this config"),
    ("cache_implementation", None, "the rollout engine has its own cache"),
    ("cast_lm_head_to_fp32", False, "soft steps are scored in float32 already"),
    ("use_liger_kernel", False, "it replaces the model's forward"),
    ("remove_unused_columns", False, "rewards are told the data's columns"),
)

_SEED: Bounds = (0, 2**32 - 1)  # numpy takes no other
_BOUNDS: dict[str, Bounds] = {
    # What TRL divides by.
    "num_generations": (1, None),
    "gradient_accumulation_steps": (1, None),
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "steps_per_generation": (1, None),
    "num_iterations": (1, None),
    "learning_rate": (0, None),
    "beta": (0, None),
    "rollout_batch_size": (1, None),
    "seed": _SEED,
    "data_seed": _SEED,
}

# Twelve hours. Processes meet when each has made its rollouts, and process 0 evaluates alone: by
# default 3,200 sequences, 25 waves of 128. A wave of 32,768 tokens takes 14 minutes at 25 ms a
# step, all of them six hours. The launcher notices a process that has died: patience costs little.
PATIENCE_SECONDS = 43_200


@dataclass
class SofTGRPOConfig(GRPOConfig):
    """Configuration of SofTGRPOTrainer.

    Every field of GRPOConfig is inherited. Defaults that differ are the published SofT-GRPO
    settings (arXiv 2511.06411): beta .001, dual clip 3 (TRL's ``delta``, which is PPO's dual clip).

    Attributes:
        policy, temperature, top_k, top_p, min_p, tau, prob_floor, noise_clamp, alpha, sigma,
            answer_temperature, answer_top_k, answer_top_p, answer_min_p, think_end,
            max_think_tokens, cold_stop_entropy, cold_stop_steps: See ThinkingConfig.
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

    Raises:
        ValueError: A field is out of its range or not supported; the message names it.
    """

    beta: float = field(
        default=0.001, metadata={"help": "KL coefficient; 0 loads no reference model."}
    )
    delta: float | None = field(
        default=3.0, metadata={"help": "PPO dual clip: the ratio's bound at negative advantages."}
    )
    policy: str = field(
        default="gumbel",
        metadata={
            "help": "What a thinking step feeds the model.",
            "choices": [
                "discrete",
                "soft",
                "gumbel",
                "dirichlet",
                "gaussian",
                "embedding_gaussian",
            ],
        },
    )
    top_k: int | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Support's columns; default 5 (discrete: vocabulary)."}
    )
    top_p: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Support's nucleus; default .95 (discrete: 1)."}
    )
    tau: float = field(default=0.1, metadata={"help": "Gumbel-Softmax temperature, > 0."})
    prob_floor: float = field(
        default=1e-6, metadata={"help": "Added to p before log p + Gumbel noise; 0 is exact."}
    )
    noise_clamp: list[float] | None = field(
        default_factory=lambda: [-1.5, 3.0],
        metadata={"help": "Range of the Gumbel noise; null leaves it alone."},
    )
    alpha: float = field(default=1.0, metadata={"help": "Dirichlet concentration, > 0."})
    sigma: float = field(default=0.05, metadata={"help": "Standard deviation of Gaussian noise."})
    answer_temperature: float = field(
        default=1.0, metadata={"help": "Temperature after thinking, > 0."}
    )
    answer_top_k: int | None = field(default=None, metadata={"help": "Top-k after thinking."})
    answer_top_p: float = field(default=1.0, metadata={"help": "Top-p after thinking."})
    answer_min_p: float = field(default=0.0, metadata={"help": "Min-p after thinking."})
    think_end: list[str] = field(
        default_factory=lambda: ["</think>"],
        metadata={"help": "Texts that end the thinking; the first is the one that is forced."},
    )
    max_think_tokens: int | None = field(
        default=None, metadata={"help": "Thinking budget in steps; then the marker is forced."}
    )
    cold_stop_entropy: float | None = field(
        default=None, metadata={"help": "End the thinking below this entropy (nats)."}
    )
    cold_stop_steps: int = field(
        default=256, metadata={"help": "Consecutive steps below cold_stop_entropy."}
    )
    density: str | None = field(
        default=None,
        metadata={
            "help": "Log-density to train: gumbel, concrete, argmax (policy gumbel); default: the "
            "policy's own."
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
    rollout_batch_size: int = field(
        default=128, metadata={"help": "Sequences decoded together in a rollout."}
    )
    rollout_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Most positions of the rollout's key-value cache; bounds its memory."},
    )
    train_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a pass through the policy or the reference, rollouts aside; a "
            "batch with more is passed in parts."
        },
    )
    # A text for the parser's sake, which takes a bool or text but not both.
    gradient_checkpointing: str = field(  # type: ignore[assignment]
        default="auto",
        metadata={
            "help": "true, false, or auto: with train_batch_tokens only for a sequence that is "
            "longer, else true.",
            "nargs": "?",
            "const": "true",
        },
    )
    is_checkpointing_auto: bool = field(init=False, default=False)
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

    def __post_init__(self) -> None:
        self.is_checkpointing_auto = self.gradient_checkpointing == "auto"
        self.gradient_checkpointing = _is_checkpointing(self.gradient_checkpointing)  # type: ignore[assignment]
        if self.num_generations is None:
            raise ValueError("num_generations: must have a value, of 2 or more")
        check_bounds(self, _BOUNDS)
        super().__post_init__()
        for name, off, why in _UNSUPPORTED:
            if getattr(self, name) != off:
                raise ValueError(f"{name}={getattr(self, name)}: not supported by softgrpo: {why}")
        if self.min_p is None:
            self.min_p = 0.0
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(
                f"max_steps={self.max_steps}: must be >= 1, or -1 for num_train_epochs"
            )
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs}: must be above 0")
        if not all(map(math.isfinite, self.reward_weights or ())):
            raise ValueError(f"reward_weights={self.reward_weights}: must be finite numbers")
        for name in ("rollout_batch_tokens", "train_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be >= 1, or null for no limit")
        if self.rollout_batch_tokens is not None and self.engine != "transformers":
            raise ValueError(
                f"rollout_batch_tokens: engine={self.engine!r} has a cache of its own, sized by "
                "vllm_gpu_memory_utilization or by the server's flags"
            )
        if self.train_batch_tokens is not None and self.deepspeed_plugin is not None:
            raise ValueError(
                "train_batch_tokens: DeepSpeed counts backward passes: use FSDP2 or DDP"
            )
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        check("gradient_checkpointing_kwargs", checkpointing, dict)
        is_reentrant = self.gradient_checkpointing and checkpointing.get("use_reentrant")
        if is_reentrant and self.ddp_find_unused_parameters is None:
            # DDP would look for them in a graph that does not show what is inside the checkpoints.
            # transformers knows that, but not of LoRA.
            self.ddp_find_unused_parameters = False
        thinking = self.thinking
        self.top_k, self.top_p = thinking.top_k, thinking.top_p
        self.density = check_density(thinking.policy, self.density)  # type: ignore[arg-type]
        if self.density == "none":
            raise ValueError(
                "policy='soft' draws nothing, so there is nothing to train it by: "
                "choose gumbel, dirichlet, gaussian, embedding_gaussian or discrete"
            )
        if self.engine != "transformers" and self.world_size > 1:
            raise ValueError(
                f"engine={self.engine!r}: one process only, and there are {self.world_size}; with "
                "several, engine: transformers"
            )
        if self.engine == "vllm-server" and not self.vllm_server_base_url:
            raise ValueError(
                "vllm_server_base_url: must be the address of softgrpo serve, such as "
                "http://localhost:8000, for engine: vllm-server"
            )
        if self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3:
            raise ValueError("deepspeed ZeRO-3 is not supported by softgrpo: use FSDP2 or ZeRO-2")

    @property
    def thinking(self) -> ThinkingConfig:
        """The rollout's ThinkingConfig."""
        values = {f.name: getattr(self, f.name) for f in fields(ThinkingConfig)}
        if values["noise_clamp"] is not None:
            values["noise_clamp"] = tuple(values["noise_clamp"])
        return ThinkingConfig(**values)

    def check_num_prompts(self, num_prompts: int) -> int:
        """How many rollouts an epoch has; prompts that fill none are left out.

        Raises:
            ValueError: They do not fill a single one, so that no step would be made.
        """
        needed = int(self.generation_batch_size or 0) // int(self.num_generations or 1)
        if num_prompts < needed:
            raise ValueError(
                f"{num_prompts} training problems are fewer than the {needed} prompts of a rollout "
                f"(generation_batch_size={self.generation_batch_size} / "
                f"num_generations={self.num_generations}), so no step would be made; give at "
                f"least {needed} (num_train_problems), or lower per_device_train_batch_size or "
                "gradient_accumulation_steps"
            )
        return num_prompts // needed

    def num_steps(self, num_prompts: int) -> int:
        """Optimizer steps of a run over so many prompts.

        Raises:
            ValueError: As ``check_num_prompts``.
        """
        rollouts = self.check_num_prompts(num_prompts)
        if self.max_steps > 0:
            return self.max_steps
        batches = rollouts * int(self.steps_per_generation or 1) * self.num_iterations
        return math.ceil(
            self.num_train_epochs * math.ceil(batches / self.gradient_accumulation_steps)
        )

    @property
    def objective(self) -> Objective:
        """The log-density that is trained."""
        return Objective(self.thinking, self.density, self.reduction)  # type: ignore[arg-type]


def _is_checkpointing(value: object) -> bool:
    """What transformers and TRL are to read where a user wrote this."""
    if value == "auto" or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        with suppress(ArgumentTypeError):
            return string_to_bool(value)
    raise ValueError(f"gradient_checkpointing={value!r}: must be true, false or auto")
