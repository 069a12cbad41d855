"""`softgrpo plan`: whether a recipe's run fits a device, and how long it takes. Nothing is loaded.

The recipe becomes a Job of plain numbers, its model's config a Shape; what follows from them is
softgrpo.planning's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from transformers.hf_argparser import string_to_bool

from softgrpo.evaluation import tokenize_prompts
from softgrpo.files import write_json
from softgrpo.models import default_device, load_config, load_tokenizer, resolve_model
from softgrpo.planning import calibrate, proposals, speed
from softgrpo.planning.devices import GIB, Device, gib
from softgrpo.planning.job import Job, Prompts
from softgrpo.planning.memory import Kinds, Phase, memory, peak
from softgrpo.planning.shapes import Shape
from softgrpo.reports import format_table
from softgrpo.runs.estimate import autocast_of, calibrated, device_of, job_of, shape_with
from softgrpo.runs.plan import lora_config, within
from softgrpo.runs.problems import load, prompt_format
from softgrpo.runs.recipe import RunConfig, read_recipe
from softgrpo.runs.recipe_files import read_recipes
from softgrpo.tasks import to_dataset
from softgrpo.training import SofTGRPOConfig


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
    # Without it transformers would look for the GPUs here.
    config, args, values = read_recipe(options.recipe, [*rest, "--use_cpu", "true"])
    name = options.device or ("cpu" if _is_for_cpu(options.recipe, rest) else "h100")
    device, where = device_of(name)
    sharing = options.gpus if name == "cpu" else 1  # processes on processors share their memory
    device_bytes = int(options.memory * GIB if options.memory else device.memory / sharing)
    place = resolve_model(str(config.model))
    model_config = load_config(place, args.trust_remote_code)
    prompts = _prompts(config, args, place, options.prompt_tokens)
    lora = lora_config(config)
    shape = shape_with(config, args, model_config, lora)
    others = lora_config(replace(config, lora=proposals.LORA))
    adapted = shape if lora else shape_with(config, args, model_config, others)
    _spread(args, values, options.gpus)
    job = job_of(
        config,
        args,
        model_config,
        prompts,
        processes=options.gpus,
        is_sharded=options.fsdp,
        is_cpu=name == "cpu",
    )
    plan = make(shape, adapted, job, device, device_bytes)
    autocast = autocast_of(args)
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


def _is_for_cpu(recipe: Sequence[str], rest: Sequence[str]) -> bool:
    """Whether a recipe, or the command line over it, asks for the CPU; both have been checked."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given = read_recipes(recipe).get("use_cpu") or False
    parser.add_argument("--use_cpu", "--use-cpu", nargs="?", const=True, default=given)
    return string_to_bool(parser.parse_known_args(rest)[0].use_cpu)


def _spread(args: SofTGRPOConfig, values: dict[str, Any], processes: int) -> None:
    """Give what was read in one process the sizes that it has in each of so many."""
    steps = int(args.steps_per_generation or 1)
    if values.get("generation_batch_size") or args.update_batch_size:  # of all processes together
        steps = max(1, steps // processes)
    args.gradient_accumulation_steps = args.accumulation_steps(processes)
    args.generation_batch_size = args.per_device_train_batch_size * processes * steps
    args.steps_per_generation = steps


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
    return Prompts.of([ids[i] for i in kept], ids[len(train) :])


# Calibration --------------------------------------------------------------------------------------
def _calibrate() -> None:
    here = default_device()
    file = calibrated(here.type)
    measured = calibrate.measure(here)
    write_json(file, asdict(measured))
    print(
        f"{here.type}: {measured.single_flops / 1e9:.0f} GFLOP/s float32, "
        f"{measured.half_flops / 1e9:.0f} bfloat16, {measured.bandwidth / 1e9:.1f} GB/s, "
        f"{measured.layer_seconds * 1e3:.2f} ms a layer of a step; kept in {file}"
    )


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
        f"fits    {'yes' if plan['fits'] else 'NO'}: at most {gib(most)} of {gib(usable)} GiB a "
        f"process, in the {plan['peak']['phase']} (estimate)",
        f"time    {_time(plan['seconds'])} in all: {job.updates:,} updates, {job.rollouts:,} "
        f"rollouts, {job.evaluations} evaluations (estimate: every completion at its limit)",
        f"disk    {gib(plan['disk_bytes'])} GiB of checkpoints and model at most",
        "",
        _table(plan),
    ]
    if plan["would_fit"]:
        lines.append("")
    for proposal in plan["would_fit"]:
        verdict = "fits" if proposal["fits"] else "does not fit"
        lines.append(f"{verdict}, {gib(proposal['peak'])} GiB, with  {proposal['fields']}")
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
    rows = [[kind, *(gib(held.get(kind, 0)) for held in phases.values())] for kind in kinds]
    rows += [["in all", *(gib(sum(held.values())) for held in phases.values())]]
    for name, key, shown in (
        ("tokens of one", "tokens", "{:,}".format),
        ("TFLOP of one", "flops", lambda flops: f"{flops / 1e12:,.1f}"),
        ("time of one", "seconds", _time),
    ):
        rows.append([name, *(shown(part[key]) if part else "" for part in parts)])
    return format_table(["GiB", *phases], rows)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2g} s"
