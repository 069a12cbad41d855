"""SofTGRPOConfig: TRL's GRPOConfig and what SofT-GRPO adds to it. Values only, no model.

TRL's own ``temperature``, ``top_k``, ``top_p`` and ``min_p`` are those of the thinking steps; the
answer has its own.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.hf_argparser import string_to_bool
from trl import GRPOConfig

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.fields import MixerName, ThinkingFields
from softgrpo.thinking.mixers import check_density
from softgrpo.thinking.objective import Objective
from softgrpo.training.fields import TrainingFields
from softgrpo.values import at_least, between, check, check_ranges, ranges, type_hints

# What GRPOTrainer can do and this trainer cannot (yet): field, value that switches it off, why.
_UNSUPPORTED = (
    ("use_vllm", False, "its sampler does not think softly; write engine: vllm"),
    ("use_transformers_continuous_batching", False, "it cannot feed embeddings"),
    ("vllm_tensor_parallel_size", 1, "each process has a vLLM of its own on one device"),
    ("repetition_penalty", 1.0, "a density under it is not defined"),
    ("generation_kwargs", None, "generation is softgrpo's; use the fields of this config"),
    ("cache_implementation", None, "the rollout engine has its own cache"),
    ("cast_lm_head_to_fp32", False, "soft steps are scored in float32 already"),
    ("use_liger_kernel", False, "it replaces the model's forward"),
    ("remove_unused_columns", False, "rewards are told the data's columns"),
)

_AT_LEAST_ONE = at_least(1)
_SEED = between(0, 2**32 - 1)  # numpy takes no other
_OF_TRL = {
    # What TRL divides by.
    "num_generations": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "steps_per_generation": _AT_LEAST_ONE,
    "num_iterations": _AT_LEAST_ONE,
    "learning_rate": at_least(0),
    "seed": _SEED,
    "data_seed": _SEED,
}

# Types of ThinkingFields that transformers' parser does not know, and what it is told instead.
_PARSED: dict[Any, Any] = {
    MixerName: str,
    tuple[float, float] | None: list[float] | None,
    tuple[str, ...]: list[str],
}


def recipe_fields(settings: type) -> list[tuple[str, Any, Any]]:
    """The fields of ThinkingFields, or of a class like it, as a recipe has them.

    Returns:
        Name, type and field of each, as ``make_dataclass`` takes them.
    """
    kinds = type_hints(settings)
    return [
        (item.name, _PARSED.get(kinds[item.name], kinds[item.name]), _recipe_field(item))
        for item in fields(settings)
    ]


def _recipe_field(item: Field[Any]) -> Any:
    if isinstance(item.default, tuple):
        return field(default_factory=partial(list, item.default), metadata=item.metadata)
    return field(default=item.default, metadata=item.metadata)


if TYPE_CHECKING:
    _Thinking = ThinkingFields  # the same names; whoever checks types does not run what follows
else:
    _Thinking = make_dataclass("_Thinking", recipe_fields(ThinkingFields))


@dataclass
class SofTGRPOConfig(TrainingFields, _Thinking, GRPOConfig):  # type: ignore[misc]
    """Configuration of SofTGRPOTrainer.

    It has every field of GRPOConfig, of ThinkingFields and of TrainingFields.

    Attributes:
        is_checkpointing_auto: Whether ``gradient_checkpointing`` was ``auto``.

    Raises:
        ValueError: A field is out of its range or not supported; the message names it.
    """

    # TRL's default, which means 0; runs have it in their config.yaml.
    min_p: float | None = field(  # type: ignore[assignment]
        default=None, metadata=ThinkingFields.__dataclass_fields__["min_p"].metadata
    )
    is_checkpointing_auto: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.is_checkpointing_auto = self.gradient_checkpointing == "auto"
        self.gradient_checkpointing = _is_checkpointing(self.gradient_checkpointing)  # type: ignore[assignment]
        if self.num_generations is None:
            raise ValueError("num_generations: must have a value, of 2 or more")
        check_ranges(self, _OF_TRL | ranges(TrainingFields))
        self.vllm_server_base_url = _addresses(self.vllm_server_base_url)
        if self.update_batch_size is not None and self.steps_per_generation is None:
            self.generation_batch_size = self.generation_batch_size or self.update_batch_size
        try:
            super().__post_init__()
        except ValueError as error:
            self._check_groups()
            raise error
        given, wanted = self.gradient_accumulation_steps, self.accumulation_steps(self.world_size)
        if given not in (1, wanted):
            raise ValueError(
                f"gradient_accumulation_steps={given}: update_batch_size={self.update_batch_size} "
                f"makes {wanted} of it; leave one of them out"
            )
        self.gradient_accumulation_steps = wanted
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
        self.top_k, self.top_p = thinking.top_k, thinking.top_p  # type: ignore[misc]
        self.density = check_density(thinking.policy, self.density)  # type: ignore[arg-type]
        if self.density == "none":
            raise ValueError(
                "policy='soft' draws nothing, so there is nothing to train it by: "
                "choose gumbel, dirichlet, gaussian, embedding_gaussian or discrete"
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
        return ThinkingConfig(**{f.name: getattr(self, f.name) for f in fields(ThinkingConfig)})

    @property
    def device(self) -> torch.device:
        """As TRL's, but accelerate numbers a CPU by its process, and torch loads nothing to it."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def accumulation_steps(self, num_processes: int) -> int:
        """Micro-batches of an update in each of so many processes.

        Raises:
            ValueError: update_batch_size is no multiple of theirs.
        """
        if self.update_batch_size is None:
            return self.gradient_accumulation_steps
        at_once = self.per_device_train_batch_size * num_processes
        if self.update_batch_size % at_once:
            raise ValueError(
                f"update_batch_size={self.update_batch_size}: must be a multiple of {at_once} "
                f"(per_device_train_batch_size={self.per_device_train_batch_size} in "
                f"{num_processes} processes); lower the latter"
            )
        return self.update_batch_size // at_once

    def _check_groups(self) -> None:
        """Say of a rollout that holds no whole number of groups what makes it so large."""
        size, group = self.generation_batch_size, int(self.num_generations or 1)
        if size is not None and size % group:
            raise ValueError(
                f"num_generations={group}: a rollout of all processes must hold whole groups of as "
                f"many samples of a prompt, and it has {size} "
                f"(per_device_train_batch_size={self.per_device_train_batch_size} x "
                f"{self.world_size} processes x steps_per_generation={self.steps_per_generation}); "
                "give a multiple, by one of them or by num_generations"
            )

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


def _addresses(value: object) -> list[str] | None:
    """One address or several, as a list."""
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    check("vllm_server_base_url", given, list[str])
    return [url for text in cast(list[str], given) for url in text.replace(",", " ").split()]


def _is_checkpointing(value: object) -> bool:
    """What transformers and TRL are to read where a user wrote this."""
    if value == "auto" or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        with suppress(ArgumentTypeError):
            return string_to_bool(value)
    raise ValueError(f"gradient_checkpointing={value!r}: must be true, false or auto")
