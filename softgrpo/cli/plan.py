"""`softgrpo plan`: whether a recipe's run fits a device, and how long it takes. Nothing is loaded.

The recipe becomes a Job of plain numbers, its model's config a Shape; what follows from them is
softgrpo.planning's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from softgrpo.checkpoints import most_kept
from softgrpo.evaluation import tokenize_prompts
from softgrpo.files import cache_folder, read_json, write_json
from softgrpo.modeling.attention import narrow_layers
from softgrpo.models import default_device, load_config, load_tokenizer, resolve_model
from softgrpo.planning import calibrate, proposals, speed
from softgrpo.planning.devices import DEVICES, GIB, Device
from softgrpo.planning.job import Checkpointing, Job, Reference
from softgrpo.planning.memory import Kinds, Phase, memory, peak
from softgrpo.planning.shapes import Shape, shape_of
from softgrpo.reports import format_table
from softgrpo.rollout.prepacked import WORTH_TOKENS
from softgrpo.runs.plan import lora_config, within
from softgrpo.runs.problems import load, prompt_format
from softgrpo.runs.recipe import RunConfig, field_name, read_recipe
from softgrpo.runs.recipe_files import read_recipes
from softgrpo.tasks import to_dataset
from softgrpo.training import SofTGRPOConfig
from softgrpo.training.engines import rollout_dtype

# Where nobody bounds the thinking, so much of a completion is taken for it.
_THINKING_SHARE = 0.9


@dataclass(frozen=True)
class Prompts:
    """What is known of a recipe's prompts: how many to train on, the longest, what all share."""

    count: int
    longest: int
    common: int


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run `softgrpo plan`.

    Raises:
        ValueError: The recipe or the model's config cannot be read, or an option is out of range.
    """
    if options.calibrate:
        _calibrate()
        if not options.recipe:
            return 0
    if not options.recipe:
        raise ValueError("RECIPE: must be given, or --calibrate")
    for name, least, most in (
        ("gpus", 1, 10**6),
        ("memory", 0.1, 10**6),
        ("prompt_tokens", 1, 10**9),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            option = name.replace("_", "-")
            raise ValueError(f"{option}={value}: must be from {least} to {most:,}")
    is_for_cpu = read_recipes(options.recipe).get("use_cpu") is True
    is_for_cpu = is_for_cpu or "use_cpu" in map(field_name, rest)
    name = options.device or ("cpu" if is_for_cpu else "h100")
    # Without it transformers would look for the GPUs here.
    config, args, values = read_recipe(options.recipe, [*rest, "--use_cpu", "true"])
    device, where = _device(name)
    sharing = options.gpus if name == "cpu" else 1  # processes on processors share their memory
    device_bytes = int(options.memory * GIB if options.memory else device.memory / sharing)
    place = resolve_model(str(config.model))
    model_config = load_config(place, args.trust_remote_code)
    prompts = _prompts(config, args, place, options.prompt_tokens)
    shape, adapted = _shapes(config, args, model_config)
    job = job_of(config, args, values, model_config, prompts, options, is_cpu=name == "cpu")
    plan = make(shape, adapted, job, device, device_bytes)
    autocast = _autocast(args)
    about = {
        "recipe": " ".join(options.recipe),
        "model": config.model,
        "device": name,
        "device_numbers": where,
        "dtype": config.dtype,
        "autocast": autocast and str(autocast).removeprefix("torch."),
    }
    print(json.dumps(about | plan, indent=2) if options.json else text(about, plan, job, shape))
    return 0


def make(
    shape: Shape, adapted: Shape, job: Job, device: Device, device_bytes: int
) -> dict[str, Any]:
    """Everything that is said of a run, as plain data; sizes in bytes, times in seconds."""
    phases = memory(shape, job, device_bytes)
    phase, most = peak(phases)
    is_fitting = proposals.fits(shape, job, device_bytes)
    parts = speed.parts(shape, job, device)
    found = [] if is_fitting else proposals.proposals(shape, adapted, job, device_bytes)
    return {
        "estimate": True,
        "fits": is_fitting,
        "device_bytes": device_bytes,
        "usable_bytes": int(proposals.USABLE * device_bytes),
        "peak": {"phase": phase, "bytes": most},
        "memory": phases,
        "parts": {name: asdict(part) for name, part in parts.items()},
        "seconds": speed.total_seconds(job, parts),
        "disk_bytes": speed.checkpoint_bytes(shape, job),
        "would_fit": [asdict(proposal) for proposal in found],
        "budgets": {
            "train_batch_tokens": proposals.train_budget(shape, job, device_bytes),
            "rollout_batch_tokens": proposals.rollout_budget(shape, job, device_bytes),
            "vllm_gpu_memory_utilization": proposals.vllm_share(shape, job, device_bytes),
        },
        "shape": asdict(shape),
        "job": asdict(job),
    }


def job_of(
    config: RunConfig,
    args: SofTGRPOConfig,
    values: dict[str, Any],
    model_config: Any,
    prompts: Prompts,
    options: argparse.Namespace,
    *,
    is_cpu: bool,
) -> Job:
    """The job of a recipe, as ``read_recipe`` gives it for one process, in each of several."""
    processes = options.gpus
    steps = int(args.steps_per_generation or 1)
    if values.get("generation_batch_size") or args.update_batch_size:  # of all processes together
        steps = max(1, steps // processes)
    args.gradient_accumulation_steps = args.accumulation_steps(processes)
    args.generation_batch_size = args.per_device_train_batch_size * processes * steps
    args.steps_per_generation = steps
    updates = args.num_steps(prompts.count)
    thinking, tokens = args.thinking, int(args.max_completion_length or 0)
    is_soft = thinking.policy != "discrete"
    share = (thinking.max_think_tokens or _THINKING_SHARE * tokens) / tokens if is_soft else 0.0
    dtype, autocast = getattr(torch, config.dtype), _autocast(args)
    device = torch.device("cpu" if is_cpu else "cuda")
    text_config = model_config.get_text_config()
    copy = None
    if args.engine == "transformers":
        copy = rollout_dtype(args.rollout_dtype, dtype, autocast, device, options.fsdp)
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
        is_sharded=options.fsdp,
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


# What is read -------------------------------------------------------------------------------------
def _prompts(config: RunConfig, args: SofTGRPOConfig, place: str, given: int | None) -> Prompts:
    """The recipe's own prompts, tokenized; or as many as it names, of a given length."""
    if given is not None:
        if config.num_train_problems is None and args.max_steps < 1:
            raise ValueError(
                "num_train_problems: must be set where --prompt-tokens is and max_steps is not"
            )
        return Prompts(config.num_train_problems or 10**9, given, 0)
    train = load(config, "train", config.num_train_problems)
    held_out = load(config, "eval", config.num_eval_problems) if config.num_eval_problems else []
    tokenizer = load_tokenizer(place, args.trust_remote_code)
    rows = to_dataset([*train, *held_out], prompt_format(config), config.chat)
    template_options: Any = args.chat_template_kwargs
    ids = tokenize_prompts(tokenizer, rows["prompt"][:], template_options=template_options)
    kept, _ = within(config.max_prompt_tokens, ids[: len(train)])
    own = [ids[i] for i in kept]
    common = os.path.commonprefix([min(own), max(own)])
    return Prompts(len(own), max(map(len, [*own, *ids[len(train) :]])), len(common))


def _shapes(config: RunConfig, args: SofTGRPOConfig, model_config: Any) -> tuple[Shape, Shape]:
    """The model's shape as it is trained, and with adapters."""
    learns = args.policy == "discrete"
    dtype, autocast = getattr(torch, config.dtype), _autocast(args)

    def shape(of: RunConfig) -> Shape:
        lora = lora_config(of)
        return shape_of(
            model_config, dtype=dtype, autocast=autocast, lora=lora, embeds_learn=learns
        )

    own = shape(config)
    return own, own if config.lora is not None else shape(replace(config, lora=proposals.LORA))


def _autocast(args: SofTGRPOConfig) -> torch.dtype | None:
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


# Calibration --------------------------------------------------------------------------------------
def _calibrate() -> None:
    here = default_device()
    file = _calibrated(here.type)
    measured = calibrate.measure(here)
    write_json(file, asdict(measured))
    print(
        f"{here.type}: {measured.single_flops / 1e9:.0f} GFLOP/s float32, "
        f"{measured.half_flops / 1e9:.0f} bfloat16, {measured.bandwidth / 1e9:.1f} GB/s, "
        f"{measured.layer_seconds * 1e3:.2f} ms a layer of a step; kept in {file}"
    )


def _calibrated(kind: str) -> Path:
    """This machine's numbers; on a CPU those of so many threads."""
    name = f"cpu-{torch.get_num_threads()}" if kind == "cpu" else kind
    return cache_folder() / f"device-{name}.json"


def _device(name: str) -> tuple[Device, str]:
    """A device's numbers, and where they are from."""
    if name == "cpu":
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        file = _calibrated("cpu")
        if file.exists():
            values = read_json(file)
            if not isinstance(values, dict) or set(values) != {f.name for f in fields(Device)}:
                raise ValueError(f"{file}: holds no measurements; make them: plan --calibrate")
            return Device(**values), f"measured, {file}"
        guess = replace(DEVICES["cpu"], memory=memory_bytes)
        return guess, "guessed; measure them: softgrpo plan --calibrate"
    return DEVICES[name], "the maker's peaks, and guessed shares of them"


# What is printed ----------------------------------------------------------------------------------
def text(about: dict[str, Any], plan: dict[str, Any], job: Job, shape: Shape) -> str:
    """The plan for a person: whether it fits and how long it takes, then the details."""
    most, usable = plan["peak"]["bytes"], plan["usable_bytes"]
    trained = "LoRA" if shape.adapters else "all weights"
    products = f", products in {about['autocast']}" if about["autocast"] else ""
    where = f"{job.processes} x {about['device']}" + (" (FSDP2)" if job.is_sharded else "")
    lines = [
        f"{about['model']}: {_count(shape.parameters)} parameters, {trained} "
        f"({_count(shape.trained)}), {about['dtype']}{products}; on {where}",
        "",
        f"fits    {'yes' if plan['fits'] else 'NO'}: at most {_gib(most)} of {_gib(usable)} GiB a "
        f"process, in the {plan['peak']['phase']} (estimate)",
        f"time    {_time(plan['seconds'])} in all: {job.updates:,} updates, {job.rollouts:,} "
        f"rollouts, {job.evaluations} evaluations (estimate: every completion at its limit)",
        f"disk    {_gib(plan['disk_bytes'])} GiB of checkpoints and model at most",
        "",
        _table(plan),
    ]
    if plan["would_fit"]:
        lines.append("")
    for proposal in plan["would_fit"]:
        verdict = "fits" if proposal["fits"] else "does not fit"
        lines.append(f"{verdict}, {_gib(proposal['peak'])} GiB, with  {proposal['fields']}")
    useless = "rollout_batch_tokens" if job.engine == "vllm" else "vllm_gpu_memory_utilization"
    lines.append("")
    for name, largest in plan["budgets"].items():
        if name != useless:
            lines.append(f"{name}: {'none fits' if largest is None else f'up to {largest:,}'}")
    checkpointed = "checkpointed" if job.is_checkpointed else "not checkpointed"
    laid_out = "packed" if job.shares_prompts else "padded"
    lines += [
        "",
        f"a process's rollout: {job.sequences} sequences of {job.prompt_tokens} + "
        f"{job.completion_tokens} tokens; an update: {job.passes} passes of {job.pass_rows} "
        f"sequences, {job.tokens_of(job.pass_rows):,} tokens, {laid_out}, {checkpointed}",
        f"numbers of the device: {about['device_numbers']}",
    ]
    return "\n".join(lines)


def _table(plan: dict[str, Any]) -> str:
    """GiB of every kind in every phase, and what one such phase computes and takes."""
    phases: dict[Phase, Kinds] = plan["memory"]
    parts = [plan["parts"].get(phase) for phase in phases]
    kinds = dict.fromkeys(kind for held in phases.values() for kind in held)
    rows = [[kind, *(_gib(held.get(kind, 0)) for held in phases.values())] for kind in kinds]
    rows += [["in all", *(_gib(sum(held.values())) for held in phases.values())]]
    for name, key, shown in (
        ("tokens of one", "tokens", "{:,}".format),
        ("TFLOP of one", "flops", lambda flops: f"{flops / 1e12:,.1f}"),
        ("time of one", "seconds", _time),
    ):
        rows.append([name, *(shown(part[key]) if part else "" for part in parts)])
    return format_table(["GiB", *phases], rows)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2g} s"
