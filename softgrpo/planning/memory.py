"""Bytes that a process holds in each phase of a run, by kind. Estimates, of the longest sequences.

Weights, gradients, moments, reference, copies and the cache are counted. Activations are counted by
what autograd keeps (see shapes.py); what a layer has in hand while it computes, the head's blocks
and the process itself are rounded from measurements (benchmarks/planner.py).
"""

from __future__ import annotations

import math
from typing import Literal

from softgrpo.planning.job import Job
from softgrpo.planning.shapes import Shape

Phase = Literal["rollout", "log-densities", "update", "optimizer step", "evaluation"]
Kinds = dict[str, int]
"""Bytes by kind; kinds that take none are left out."""

MIB = 2**20
# Python with torch, transformers, TRL and what they import: measured, benchmarks/planner.py.
_PROCESS = 560 * MIB
# A CUDA context with the libraries' workspaces, as nvidia-smi shows it for an idle process: an
# estimate, not measured by us.
_CONTEXT = 600 * MIB
_ADAM_MOMENTS = 2
# Attention under masks takes completions shorter than this (replay.layouts), and this many queries
# at a time.
_LONG, _BLOCK = 1024, 256
# On a CPU what a pass frees lies as holes between what it keeps, and later blocks of other sizes do
# not all fit into them (glibc's heap; blocks from 32 MiB on are not in it). With all weights the
# holes are a fifth of the tensors, as gradients and moments fill the rest. A linear layer with an
# adapter makes three blocks beside the one that it keeps (the layer's own result, the adapter's,
# and that scaled), and two of them stay open. Measured: mallinfo2 in benchmarks/planner.py's cases.
_HOLES, _HOLES_OF_ADAPTED = 0.2, 2
_LARGEST_IN_HEAP = 32 * MIB
# Prompts are prefilled so many tokens at a time (rollout.prefill).
_PREFILL_TOKENS = 8192
# The cache's share of an accelerator's free memory where nobody set it (rollout.cache).
_CACHE_SHARE = 0.7
# Logits [rows, V] in float32 that a decoding step has in hand at a time.
_STEP_LOGITS = 3


def memory(shape: Shape, job: Job, device_bytes: int | None = None) -> dict[Phase, Kinds]:
    """What each phase of a run holds at its peak, in bytes of one process.

    Args:
        shape: The model's.
        job: The run's.
        device_bytes: Memory of the device, which bounds a cache without a limit and is what vLLM
            takes its share of; None: unknown.
    """
    steady = _steady(shape, job, device_bytes)
    moments = {"moments": _ADAM_MOMENTS * trained_bytes(shape, job)}
    later = moments if job.updates > 1 else {}
    rows = job.pass_rows
    held = steady | later
    phases: dict[Phase, Kinds] = {
        "rollout": held | _rollout(shape, job, job.sequences, held, device_bytes)
    }
    if job.replays:
        phases["log-densities"] = held | {
            "activations": in_hand(shape, job.tokens_of(rows)) + shape.casts_bytes,
            "head": head_bytes(shape, job, rows, learns=False),
        }
    phases["update"] = held | {
        "gradients": early_gradient_bytes(shape, job),
        "activations": activation_bytes(shape, job, rows),
        "holes": hole_bytes(shape, job, rows),
        "head": head_bytes(shape, job, rows, learns=not shape.adapters),
    }
    phases["optimizer step"] = steady | moments | {"gradients": gradient_bytes(shape, job)}
    if job.evaluations:
        held = steady | moments
        phases["evaluation"] = held | _rollout(shape, job, job.eval_sequences, held, device_bytes)
    return {phase: {k: v for k, v in kinds.items() if v} for phase, kinds in phases.items()}


def peak(phases: dict[Phase, Kinds]) -> tuple[Phase, int]:
    """The phase that holds the most, and its bytes."""
    totals = {phase: sum(kinds.values()) for phase, kinds in phases.items()}
    phase = max(totals, key=lambda name: totals[name])
    return phase, totals[phase]


def shard(num_bytes: int, job: Job) -> int:
    """A process's share of what FSDP2 shards; the whole elsewhere."""
    return math.ceil(num_bytes / job.processes) if job.is_sharded else num_bytes


def trained_bytes(shape: Shape, job: Job) -> int:
    """Of the weights that learn, what a process keeps; the optimizer keeps each moment as large."""
    return shard(shape.trained * _bytes_of_trained(shape, job), job)


def gradient_bytes(shape: Shape, job: Job) -> int:
    """Gradients, and with DDP the buckets in which they are exchanged, which are as large."""
    is_exchanged = job.processes > 1 and not job.is_sharded
    return trained_bytes(shape, job) * (2 if is_exchanged else 1)


def early_gradient_bytes(shape: Shape, job: Job) -> int:
    """Gradients that are there while a pass keeps the most: all of an earlier pass.

    In a single pass they are made as activations go, from the head's own on.
    """
    if job.passes > 1:
        return gradient_bytes(shape, job)
    head = 0 if shape.adapters else shard(shape.head * _bytes_of_trained(shape, job), job)
    trained = trained_bytes(shape, job)
    return gradient_bytes(shape, job) - trained + min(head, trained)


def activation_bytes(shape: Shape, job: Job, rows: int) -> int:
    """What a training pass of so many sequences keeps, and has in hand at its largest layer."""
    tokens = job.tokens_of(rows)
    kept = kept_bytes(shape, job, rows)
    if job.is_checkpointed:
        stream = max(shape.bytes_of_weights, shape.bytes_of_products)
        kept = tokens * shape.layers * shape.hidden * stream + kept // shape.layers
        kept += shape.casts_bytes // shape.layers
    else:
        kept += shape.casts_bytes
    return kept + in_hand(shape, tokens)


def hole_bytes(shape: Shape, job: Job, rows: int) -> int:
    """What a CPU's heap holds free between the activations of a pass of so many sequences."""
    tokens = job.tokens_of(rows)
    if not job.is_cpu or tokens * shape.widest * shape.bytes_of_products >= _LARGEST_IN_HEAP:
        return 0
    if not shape.adapters:
        return int(_HOLES * activation_bytes(shape, job, rows))
    open_ones = _HOLES_OF_ADAPTED * tokens * shape.adapted * shape.bytes_of_adapters
    return open_ones // shape.layers if job.is_checkpointed else open_ones


def kept_bytes(shape: Shape, job: Job, rows: int) -> int:
    """What all layers keep for the backward pass, without checkpointing.

    Packed rows keep what attention sees laid out by sequence (replay.layouts); elsewhere keys and
    values are repeated for every head, as transformers does under a padding mask.
    """
    tokens = job.tokens_of(rows)
    if not job.shares_prompts:
        return tokens * shape.kept_bytes + _mask_bytes(shape, job, rows)
    wide = shape.layers * shape.heads * shape.head_dim * shape.bytes_of_products
    narrow = wide * shape.kv_heads // shape.heads
    sequences = rows * job.length
    if _has_masks(job):
        prompts = job.prompts_of(rows) * job.prompt_tokens
        queries, keys = prompts + rows * job.completion_tokens, prompts + sequences
    else:
        queries = keys = sequences
    attended = 2 * wide * queries + 2 * narrow * keys
    others = tokens * (shape.kept_bytes - shape.attended_bytes + wide)
    return others + attended + _mask_bytes(shape, job, rows)


def in_hand(shape: Shape, tokens: int) -> int:
    """What one layer computes with, beside what is kept: its widest tensors and the stream's."""
    return tokens * (3 * shape.widest + 4 * shape.hidden) * shape.bytes_of_products


def head_bytes(shape: Shape, job: Job, rows: int, learns: bool) -> int:
    """The output head's blocks (replay.columns, replay.tokens); a gradient made beside another."""
    steps = rows * job.completion_tokens
    soft = math.ceil(steps * job.soft_share)
    columns = min(3 * 32 * MIB, 3 * 4 * soft * job.columns * shape.hidden)
    logits = min(5 * 64 * MIB, 3 * 4 * (steps - soft) * shape.vocabulary)
    states = 3 * 4 * steps * shape.hidden
    gradient = shape.head * shape.bytes_of_weights if learns and job.passes > 1 else 0
    return max(columns, logits) + states + gradient


def _steady(shape: Shape, job: Job, device_bytes: int | None) -> Kinds:
    """What is there all the time; on a CPU vLLM's share too, as it does not sleep there."""
    weights = _stored_bytes(shape, job)
    gathered = 0
    if job.is_sharded and job.processes > 1:
        # The root's own weights and two layers, one at work and one on its way, with gradients.
        root = shape.parameters - shape.layers * shape.largest_layer
        gathered = 2 * (max(0, root) + 2 * shape.largest_layer) * shape.bytes_of_products
    return {
        "process": _PROCESS if job.is_cpu else _CONTEXT,
        "weights": shard(weights, job),
        "gathered shards": gathered,
        "reference": shard(weights, job) if job.reference == "model" else 0,
        "rollout copy": shape.parameters * job.rollout_copy_bytes,
        "trace": trace_bytes(job),
        "vLLM": vllm_bytes(job, device_bytes) if job.is_cpu else 0,
    }


def trace_bytes(job: Job) -> int:
    """A rollout's recorded steps: ids, scores, support, kinds; the batch's ids and masks."""
    of_a_step = job.columns * (4 + 4 + 1) + 1 + 4 * job.noise_width
    of_a_token = 6 * 8
    return job.sequences * (job.completion_tokens * of_a_step + job.length * of_a_token)


def vllm_bytes(job: Job, device_bytes: int | None) -> int:
    """vLLM's share of the device, where it runs in the process."""
    return int(job.vllm_share * (device_bytes or 0)) if job.engine == "vllm" else 0


def _rollout(
    shape: Shape, job: Job, sequences: int, held: Kinds, device_bytes: int | None
) -> Kinds:
    """What a rollout of so many sequences takes on top."""
    if job.engine != "transformers":
        return {"vLLM": vllm_bytes(job, device_bytes)}  # asleep in the other phases, but on a CPU
    rows, columns = job.cache_shape(sequences)
    waiting = job.prompts_of(rows) * job.prompt_tokens
    prefilled = min(_PREFILL_TOKENS, waiting)
    work = in_hand(shape, max(rows, prefilled))
    cache = rows * columns * shape.cache_bytes
    if not job.is_cpu and job.rollout_batch_tokens is None and device_bytes is not None:
        free = device_bytes - sum(held.values())
        cache = min(cache, max(int(_CACHE_SHARE * free), job.length * shape.cache_bytes))
    return {
        "cache": cache,
        "prepacked": shape.packed * shape.bytes_of_weights if job.is_prepacked else 0,
        "prompts": (waiting + prefilled) * shape.cache_bytes,
        "step": _STEP_LOGITS * 4 * rows * shape.vocabulary + work,
        # oneDNN multiplies in float32 where a CPU has no bfloat16 (seen in mallinfo2).
        "cast head": 4 * shape.head if job.is_cpu and shape.bytes_of_products < 4 else 0,
    }


def _has_masks(job: Job) -> bool:
    return job.completion_tokens < max(job.prompt_tokens, _LONG) if job.is_cpu else False


def _mask_bytes(shape: Shape, job: Job, rows: int) -> int:
    """Masks that each layer keeps, as numbers: kernels on a CPU add them to scores."""
    if not job.is_cpu:
        return 0 if job.shares_prompts else rows * job.length**2
    if not job.shares_prompts:
        return shape.bytes_of_products * shape.layers * rows * job.length**2
    if not _has_masks(job):
        return 0
    pairs = 0
    for first in range(0, job.completion_tokens, _BLOCK):
        last = min(first + _BLOCK, job.completion_tokens)
        pairs += (last - first) * (job.prompt_tokens + last)
    groups = shape.heads // shape.kv_heads
    return shape.bytes_of_products * shape.layers * rows * groups * pairs


def _bytes_of_trained(shape: Shape, job: Job) -> int:
    each = shape.bytes_of_adapters if shape.adapters else shape.bytes_of_weights
    return 4 if _has_masters(shape, job) else each


def _stored_bytes(shape: Shape, job: Job) -> int:
    if _has_masters(shape, job) and not shape.adapters:
        return 4 * shape.parameters
    return shape.weight_bytes


def _has_masters(shape: Shape, job: Job) -> bool:
    """FSDP2 keeps float32 of what it trains in another precision."""
    return job.is_sharded and shape.is_cast
