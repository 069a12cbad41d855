"""The engine that a config names, over the model that is trained, and the dtype of its rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.vllm_remote import VLLMServerEngine, check_server
from softgrpo.rollout.weights import shapes_by
from softgrpo.training.config import SofTGRPOConfig

if TYPE_CHECKING:
    from softgrpo.rollout.vllm_engine import VLLMEngine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_engine(trainer: Any, policy: Any) -> TransformersEngine | VLLMEngine | VLLMServerEngine:
    """The engine of ``args.engine``.

    Args:
        trainer: Whose config, tokenizer and accelerator it is made from.
        policy: The causal LM that is trained.

    Raises:
        ValueError: vLLM with adapters that cannot be folded into the weights, or servers that
            ``check_server`` refuses.
    """
    args: SofTGRPOConfig = trainer.args
    tokenizer, eos_token_ids = trainer._tokenizer, trainer.eos_token_ids
    device = trainer.accelerator.device  # FSDP2's model is still on the CPU
    precision = trainer.accelerator.mixed_precision
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    dtype = rollout_dtype(
        args.rollout_dtype, policy.dtype, autocast, device, trainer.is_fsdp_enabled
    )
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
    if args.engine == "vllm-server":
        return VLLMServerEngine(
            args.vllm_server_base_url or [],
            tokenizer,
            eos_token_ids=eos_token_ids,
            max_num_seqs=args.rollout_batch_size,
            source=policy,
            process=trainer.accelerator.process_index,
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


def check_servers(args: SofTGRPOConfig, model_config: Any) -> None:
    """Refuse servers that could not be given the weights of a model, by its config alone.

    The engine does the same with the model itself; this is for who has not loaded it yet.

    Args:
        args: Whose servers; nothing to do for another engine.
        model_config: transformers' config of the model.

    Raises:
        ValueError: As ``check_server``; more servers than processes.
    """
    if args.engine == "vllm-server":
        urls = args.vllm_server_base_url or []
        if len(urls) > args.world_size:
            raise ValueError(
                f"vllm_server_base_url={urls}: more servers than processes, "
                f"of which there are {args.world_size}: at most one for each"
            )
        wanted = shapes_by(model_config, args.trust_remote_code)
        for url in urls:
            check_server(Client(url), wanted)


def rollout_dtype(
    wanted: str,
    weights: torch.dtype,
    autocast: torch.dtype | None,
    device: torch.device,
    is_sharded: bool,
) -> torch.dtype | None:
    """The dtype of the copy of the model that makes the rollouts; None: no copy, the model does.

    On an accelerator autocast would cast float32 weights again in every decoding step. On a CPU the
    engine keeps weights for decoding anyhow. A sharded model always needs a copy, in one piece:
    sequences end at different steps, and a process that is still decoding when the others have
    ended would wait for their shards for ever.

    Args:
        wanted: ``auto``, ``model`` or a name of DTYPES.
        weights: Of the model.
        autocast: What training casts to, if it does.
        device: Where rollouts are made.
        is_sharded: Whether training shards the model (FSDP2).
    """
    is_cast = device.type != "cpu" and weights == torch.float32
    dtype = autocast if wanted == "auto" and is_cast else DTYPES.get(wanted)
    return weights if dtype is None and is_sharded else dtype
