"""The engine that a config names, over the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.vllm_remote import VLLMServerEngine
from softgrpo.training.config import SofTGRPOConfig

if TYPE_CHECKING:
    from softgrpo.rollout.vllm_engine import VLLMEngine


def make_engine(
    args: SofTGRPOConfig,
    policy: Any,
    tokenizer: Any,
    *,
    eos_token_ids: Sequence[int],
    dtype: torch.dtype | None,
    device: torch.device,
    is_adapted: bool,
) -> TransformersEngine | VLLMEngine | VLLMServerEngine:
    """The engine of ``args.engine``.

    Args:
        args: The run's.
        policy: The causal LM that is trained.
        tokenizer: Its tokenizer.
        eos_token_ids: Tokens that end a sequence.
        dtype: Of the rollouts (see precision.py); None lets the model itself generate.
        device: Where the model will be: FSDP2's is still on the CPU.
        is_adapted: Whether adapters are trained (LoRA).

    Raises:
        ValueError: vLLM with adapters.
    """
    if args.engine == "transformers":
        return TransformersEngine(
            policy,
            tokenizer,
            dtype=dtype,
            device=device,
            max_batch_size=args.rollout_batch_size,
            max_batch_tokens=args.rollout_batch_tokens,
            eos_token_ids=eos_token_ids,
        )
    if is_adapted:
        raise ValueError(
            f"engine={args.engine!r} is not supported with LoRA by softgrpo: write engine: "
            "transformers"
        )
    if args.engine == "vllm-server":
        return VLLMServerEngine(
            str(args.vllm_server_base_url),
            tokenizer,
            eos_token_ids=eos_token_ids,
            max_num_seqs=args.rollout_batch_size,
            source=policy,
        )
    from softgrpo.rollout.vllm_engine import VLLMEngine

    return VLLMEngine(
        policy.name_or_path,
        dtype=str(dtype or policy.dtype).removeprefix("torch."),
        max_model_len=args.vllm_max_model_length,
        max_num_seqs=args.rollout_batch_size,
        eos_token_ids=eos_token_ids,
        source=policy,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,  # a CPU's memory too
    )
