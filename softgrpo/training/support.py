"""What the trainer supports, found out before a run: the rest is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ProcessorMixin

from softgrpo.replay import check_packing
from softgrpo.rewards import checked
from softgrpo.training.config import SofTGRPOConfig


def require_supported(args: Any, options: dict[str, Any]) -> None:
    """Refuse what GRPOTrainer takes and this trainer does not.

    Args:
        args: The trainer's.
        options: Its other keyword arguments.

    Raises:
        ValueError: Names what is not supported.
    """
    if not isinstance(args, SofTGRPOConfig):
        raise ValueError(f"args must be a SofTGRPOConfig, got {type(args).__name__}")
    for name in ("tools", "environment_factory", "rollout_func"):
        if options.get(name):
            raise ValueError(f"{name} is not supported by softgrpo")
    if isinstance(options.get("processing_class"), ProcessorMixin):
        raise ValueError("vision models are not supported by softgrpo: pass a tokenizer")


def require_supported_model(trainer: Any) -> None:
    """The same of what is known only when GRPOTrainer has been made."""
    if trainer._is_vlm:
        raise ValueError("vision models are not supported by softgrpo")
    if trainer._dist.fsdp_version == 1:
        raise ValueError("fsdp_version=1 is not supported by softgrpo: use FSDP2")
    if trainer.aux_loss_enabled:
        raise ValueError(
            "router_aux_loss_coef: the load-balancing loss of a mixture of experts is not "
            "supported by softgrpo: set it to 0"
        )


def checked_rewards(reward_funcs: Any) -> Any:
    """Functions are checked; models, and the names of models, are TRL's own matter."""
    if isinstance(reward_funcs, list):
        return [checked_rewards(reward) for reward in reward_funcs]
    is_function = callable(reward_funcs) and not isinstance(reward_funcs, torch.nn.Module)
    return checked(reward_funcs) if is_function else reward_funcs


def shares_prompts(model: Any, wanted: bool | None) -> bool:
    """Whether prompts are shared; where nobody said, on a CPU and if the model allows it.

    No GPU has been seen to gain by it.
    """
    if wanted is None and model.device.type != "cpu":
        return False
    if wanted is not False:
        try:
            check_packing(model)
        except ValueError:
            if wanted:
                raise
            return False
    return wanted is not False
