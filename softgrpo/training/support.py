"""What the trainer supports, found out before a run: the rest is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import ProcessorMixin

from softgrpo.replay import check_model, check_packing
from softgrpo.rewards import checked
from softgrpo.thinking.phases import Markers
from softgrpo.training.completions import check_visible
from softgrpo.training.config import SofTGRPOConfig
from softgrpo.training.micro_batches import is_sum_over_sequences


def require_supported(args: Any, options: dict[str, Any]) -> None:
    """Raise ValueError, by name, at what GRPOTrainer takes and this trainer does not.

    ``options`` are the trainer's keyword arguments beside ``args``.
    """
    if not isinstance(args, SofTGRPOConfig):
        raise ValueError(f"args must be a SofTGRPOConfig, got {type(args).__name__}")
    for name in ("tools", "environment_factory", "rollout_func"):
        if options.get(name):
            raise ValueError(f"{name} is not supported by softgrpo")
    if isinstance(options.get("processing_class"), ProcessorMixin):
        raise ValueError("vision models are not supported by softgrpo: pass a tokenizer")


def require_supported_model(trainer: Any, policy: Any) -> None:
    """The same of what is known only when GRPOTrainer has been made, and its causal LM."""
    if trainer._is_vlm:
        raise ValueError("vision models are not supported by softgrpo")
    if trainer._dist.fsdp_version == 1:
        raise ValueError("fsdp_version=1 is not supported by softgrpo: use FSDP2")
    if trainer.aux_loss_enabled:
        raise ValueError(
            "router_aux_loss_coef: the load-balancing loss of a mixture of experts is not "
            "supported by softgrpo: set it to 0"
        )
    if trainer.args.train_batch_tokens is not None and not is_sum_over_sequences(trainer):
        raise ValueError(
            "train_batch_tokens: with loss_type bnpo, top_entropy_quantile or an entropy bonus "
            "the loss averages over a micro-batch's tokens and cannot be computed in parts"
        )
    check_model(policy)
    thinking = trainer.args.thinking
    thinking.check_vocabulary(policy.get_output_embeddings().weight.shape[0])
    Markers(thinking.think_end, trainer._tokenizer)
    check_visible(thinking.think_end, trainer._tokenizer)


def causal_lm(model: Any) -> Any:
    """The transformers causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


def checked_rewards(reward_funcs: Any) -> Any:
    """Functions are checked; models, and the names of models, are TRL's own matter."""
    if isinstance(reward_funcs, list):
        return [checked_rewards(reward) for reward in reward_funcs]
    is_function = callable(reward_funcs) and not isinstance(reward_funcs, torch.nn.Module)
    return checked(reward_funcs) if is_function else reward_funcs


def shares_prompts(model: Any, wanted: bool | None) -> bool:
    """Whether prompts are shared; where nobody said, on a CPU and if the model allows it.

    On a GPU no gain has been measured.
    """
    if wanted is False or (wanted is None and model.device.type != "cpu"):
        return False
    try:
        check_packing(model)
    except ValueError:
        if wanted:
            raise
        return False
    return True
