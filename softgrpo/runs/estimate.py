"""What a recipe's run will hold and take: the recipe in the planner's numbers, and the device.

`softgrpo plan` asks before a run, for any device; a run asks when it starts, for its own.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from softgrpo.checkpoints import most_kept
from softgrpo.files import cache_folder, read_json
from softgrpo.modeling.attention import narrow_layers
from softgrpo.planning import speed
from softgrpo.planning.calibrate import memory_of
from softgrpo.planning.devices import DEVICES, Device, gib
from softgrpo.planning.job import Checkpointing, Job, Prompts, Reference
from softgrpo.planning.memory import Kinds, Phase, memory, peak
from softgrpo.planning.shapes import Shape, shape_of
from softgrpo.rollout.prepacked import WORTH_TOKENS
from softgrpo.runs.display import duration
from softgrpo.runs.plan import Plan
from softgrpo.runs.recipe import RunConfig
from softgrpo.training import SofTGRPOConfig
from softgrpo.training.engines import rollout_dtype

# Where nobody bounds the thinking, so much of a completion is taken for it.
_THINKING_SHARE = 0.9


@dataclass(frozen=True)
class Estimate:
    """What a process of a run will hold, and how long the run takes.

    Attributes:
        device: ``cpu``, or torch's name of an accelerator's kind.
        memory: Bytes by phase and kind.
        device_bytes: Memory of the device, a process's share of it.
        seconds: Of the whole run, every completion at its limit; None: of an unknown device.
        numbers: Where the device's numbers are from.
    """

    device: str
    memory: dict[Phase, Kinds]
    device_bytes: int
    seconds: float | None
    numbers: str

    @property
    def lines(self) -> str:
        """For a person, when the run starts."""
        phase, most = peak(self.memory)
        others = ", ".join(
            f"{name} {gib(sum(held.values()))}" for name, held in self.memory.items()
        )
        time = "" if self.seconds is None else f"{duration(self.seconds)} at most; "
        return (
            f"estimate: {gib(most)} of {gib(self.device_bytes)} GiB at most, in the {phase} "
            f"({others})\nestimate: {time}{self.numbers}"
        )

    @property
    def cost(self) -> dict[str, str]:
        """What stands beside the measured cost when the run is over.

        An accelerator's measured peak is that of torch's tensors, without the context.
        """
        phase, most = peak(self.memory)
        is_cpu = self.device == "cpu"
        most -= 0 if is_cpu else self.memory[phase]["process"]
        named = {f"estimated peak {'' if is_cpu else 'GPU '}memory": f"{gib(most)} GiB, {phase}"}
        if self.seconds is not None:
            named["estimated time"] = duration(self.seconds)
        return named


def estimate(plan: Plan, model: Any, device: torch.device, is_sharded: bool) -> Estimate | str:
    """The estimate of a run, or why there is none; no reason to end the run.

    Args:
        plan: The run's.
        model: Its causal LM, with adapters.
        device: Where it is trained.
        is_sharded: Whether FSDP2 shards it.
    """
    try:
        config, args = plan.config, plan.args
        is_cpu = device.type == "cpu"
        job = job_of(
            config,
            args,
            plan.model_config,
            plan.prompts,
            processes=args.world_size,
            is_sharded=is_sharded,
            is_cpu=is_cpu,
        )
        shape = shape_with(config, args, plan.model_config, plan.lora, model)
        numbers, where = device_here(device)
        seconds = (
            None if numbers is None else speed.total_seconds(job, speed.parts(shape, job, numbers))
        )
        device_bytes = _device_bytes(device)
        return Estimate(
            device=device.type,
            memory=memory(shape, job, device_bytes),
            device_bytes=device_bytes,
            seconds=seconds,
            numbers=where,
        )
    except Exception as error:  # whatever a model makes of the libraries that look through it
        return f"no estimate: {' '.join(str(error).split())[:300]}"


def job_of(
    config: RunConfig,
    args: SofTGRPOConfig,
    model_config: Any,
    prompts: Prompts,
    *,
    processes: int,
    is_sharded: bool,
    is_cpu: bool,
) -> Job:
    """The job of a recipe in each of its processes.

    Args:
        config: The recipe's.
        args: The recipe's, in so many processes.
        model_config: transformers' config of the model.
        prompts: The recipe's.
        processes: How many there are.
        is_sharded: Whether FSDP2 shards the model.
        is_cpu: Whether it is trained on a CPU.
    """
    steps = int(args.steps_per_generation or 1)
    updates = args.num_steps(prompts.count)
    thinking, tokens = args.thinking, int(args.max_completion_length or 0)
    is_soft = thinking.policy != "discrete"
    share = (thinking.max_think_tokens or _THINKING_SHARE * tokens) / tokens if is_soft else 0.0
    dtype, autocast = getattr(torch, config.dtype), autocast_of(args)
    device = torch.device("cpu" if is_cpu else "cuda")
    text_config = model_config.get_text_config()
    copy = None
    if args.engine == "transformers":
        copy = rollout_dtype(args.rollout_dtype, dtype, autocast, device, is_sharded)
    sequences = args.per_device_train_batch_size * steps
    shares = args.share_prompts
    if shares is None:
        shares = is_cpu and not narrow_layers(text_config)
    every = steps * args.num_iterations
    reference: Reference = "model" if config.lora is None else "adapter off"
    checkpointing: Checkpointing = "all" if args.gradient_checkpointing else "none"
    if args.is_checkpointing_auto and args.train_batch_tokens is not None:
        checkpointing = "long"
    is_evaluated = bool(config.num_eval_problems)
    return Job(
        processes=processes,
        is_sharded=is_sharded,
        is_cpu=is_cpu,
        updates=updates,
        rollouts=math.ceil(updates * args.gradient_accumulation_steps / every),
        sequences=sequences,
        group=int(args.num_generations or 1),
        micro_batch=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        prompt_tokens=prompts.longest,
        common_tokens=prompts.common,
        completion_tokens=tokens,
        soft_share=min(1.0, share),
        columns=int(thinking.top_k or 1) if is_soft else 1,
        noise_width=text_config.hidden_size * (thinking.policy == "embedding_gaussian"),
        shares_prompts=shares,
        train_batch_tokens=args.train_batch_tokens,
        checkpointing=checkpointing,
        reference=reference if args.beta else "none",
        recomputes_old=args.gradient_accumulation_steps % every != 0,
        engine=args.engine,  # type: ignore[arg-type]
        rollout_batch_size=args.rollout_batch_size,
        rollout_batch_tokens=args.rollout_batch_tokens,
        rollout_copy_bytes=copy.itemsize if copy is not None else 0,
        is_prepacked=(
            is_cpu
            and args.engine == "transformers"
            and sequences * tokens >= WORTH_TOKENS
            and dtype == torch.float32
            and (autocast is None or copy is not None)
        ),
        vllm_share=args.vllm_gpu_memory_utilization,
        eval_sequences=math.ceil(config.num_eval_problems / processes) * config.eval_samples,
        evaluations=2 * (len(config.eval_decodings) if is_soft else 1) if is_evaluated else 0,
        checkpoints=most_kept(args, updates),
    )


def shape_with(
    config: RunConfig, args: SofTGRPOConfig, model_config: Any, lora: Any, model: Any = None
) -> Shape:
    """The shape of a recipe's model, with these adapters or none; ``model`` as of ``shape_of``.

    Raises:
        ValueError: As ``shape_of``.
    """
    return shape_of(
        model_config,
        dtype=getattr(torch, config.dtype),
        autocast=autocast_of(args),
        lora=lora,
        embeds_learn=args.policy == "discrete",
        model=model,
    )


def autocast_of(args: SofTGRPOConfig) -> torch.dtype | None:
    """The dtype that training casts products to, if it does."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


# Devices ------------------------------------------------------------------------------------------
def calibrated(kind: str) -> Path:
    """The file of this machine's own numbers; on a CPU those of so many threads."""
    name = f"cpu-{torch.get_num_threads()}" if kind == "cpu" else kind
    return cache_folder() / f"device-{name}.json"


def device_of(name: str) -> tuple[Device, str]:
    """The numbers of one of DEVICES, and where they are from; of a CPU this machine's.

    Raises:
        ValueError: What was measured here cannot be read.
    """
    if name != "cpu":
        return DEVICES[name], "the maker's peaks, and guessed shares of them"
    if found := _measured("cpu"):
        return found
    guess = replace(DEVICES["cpu"], memory=memory_of(torch.device("cpu")))
    return guess, "guessed; measure them: softgrpo plan --calibrate"


def device_here(device: torch.device) -> tuple[Device | None, str]:
    """As ``device_of``, of a device of this machine; None where nobody has measured its kind."""
    if device.type == "cpu":
        return device_of("cpu")
    if found := _measured(device.type):
        return found
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    for known in DEVICES:
        if all(part in name for part in known.split("-")):
            return device_of(known)
    return None, "time unknown; measure this device: softgrpo plan --calibrate"


def _measured(kind: str) -> tuple[Device, str] | None:
    file = calibrated(kind)
    if not file.exists():
        return None
    values = read_json(file)
    if not isinstance(values, dict) or set(values) != {f.name for f in fields(Device)}:
        raise ValueError(f"{file}: holds no measurements; make them: plan --calibrate")
    return Device(**values), f"measured, {file}"


def _device_bytes(device: torch.device) -> int:
    """Memory of a device; on a CPU the share of this process, one of a launch."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    return memory_of(device) // sharing
