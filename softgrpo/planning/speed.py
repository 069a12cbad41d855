"""FLOP and seconds of a run's parts, from tokens. Estimates: every completion at its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from softgrpo.planning.devices import Device
from softgrpo.planning.job import Job
from softgrpo.planning.shapes import Shape

# A training pass writes what it keeps, reads it again, and does as much with gradients: so many
# times the bytes that are kept go through memory.
PASSAGES = 6
# Drawing a step reads or writes its logits, in float32, so many times.
_DRAWING_PASSAGES = 8
# AdamW reads weight, gradient and two moments and writes three of them.
_ADAM_PASSAGES = 7


@dataclass(frozen=True)
class Part:
    """A part of a run, of one process."""

    tokens: int  # that it computes
    flops: float  # of its products
    seconds: float


def parts(shape: Shape, job: Job, device: Device) -> dict[str, Part]:
    """The parts that a run has, each once."""
    found = {"rollout": rollout(shape, job, device, job.sequences)}
    if job.replays:
        found["log-densities"] = replay(shape, job, device)
    found["update"] = update(shape, job, device)
    if job.evaluations:
        found["evaluation"] = rollout(shape, job, device, job.eval_sequences)
    return found


def total_seconds(job: Job, parts: Mapping[str, Part]) -> float:
    """The whole run's, its evaluations among them."""
    times = {
        "rollout": job.rollouts,
        "log-densities": job.rollouts * job.replays,
        "update": job.updates,
        "evaluation": job.evaluations,
    }
    return sum(times[name] * part.seconds for name, part in parts.items())


def rollout(shape: Shape, job: Job, device: Device, sequences: int) -> Part:
    """Sequences generated: prompts prefilled, then steps of as many rows as the cache holds.

    Of samples of one prompt one is prefilled, and what all prompts begin with once.
    """
    rows, _ = job.cache_shape(sequences)
    own = job.prompts_of(sequences) * (job.prompt_tokens - job.common_tokens)
    prompts = own + job.common_tokens
    steps = sequences * job.completion_tokens
    reached = job.prompt_tokens + job.completion_tokens / 2
    of_prompts = prompts * forward_flops(shape, job.prompt_tokens / 2)
    of_steps = steps * (forward_flops(shape, reached) + 2 * shape.head)
    num_steps = math.ceil(sequences / rows) * job.completion_tokens
    bytes_of_weights = shape.packed * (job.rollout_copy_bytes or shape.bytes_of_weights)
    moved = num_steps * (bytes_of_weights + rows * reached * shape.cache_bytes)
    drawing = _DRAWING_PASSAGES * 4 * steps * shape.vocabulary / device.bandwidth
    seconds = (
        pass_seconds(of_prompts, 0, shape, device)
        + step_seconds(of_steps, moved, shape, device)
        + num_steps * shape.layers * device.layer_seconds
        + drawing
    )
    return Part(prompts + steps, of_prompts + of_steps, seconds)


def replay(shape: Shape, job: Job, device: Device) -> Part:
    """A rollout's sequences once through the model, without gradient."""
    passes = math.ceil(job.sequences / job.pass_rows)
    tokens = passes * job.tokens_of(job.pass_rows)
    flops = _pass_flops(shape, job, tokens, job.sequences)
    moved = PASSAGES / 3 * tokens * shape.kept_bytes
    return Part(tokens, flops, pass_seconds(flops, moved, shape, device))


def update(shape: Shape, job: Job, device: Device) -> Part:
    """The passes of an update, forward and backward, and the optimizer's step.

    Backward costs a product for the gradient of the inputs and, where a weight learns, one for its
    own; a checkpointed layer is computed twice.
    """
    sequences = job.micro_batch * job.micro_batches
    forward = _pass_flops(shape, job, job.update_tokens, sequences)
    times = (2 if shape.adapters else 3) + job.is_checkpointed
    flops = forward * times
    moved = PASSAGES * job.update_tokens * shape.kept_bytes * (1 + job.is_checkpointed / 3)
    moved += _ADAM_PASSAGES * shape.trained_bytes / (job.processes if job.is_sharded else 1)
    return Part(job.update_tokens, flops, pass_seconds(flops, moved, shape, device))


def pass_seconds(flops: float, moved: float, shape: Shape, device: Device) -> float:
    """Of passes over many tokens: their products, and the bytes that elementwise work moves."""
    least = flops / _peak_flops(shape, device) + moved / device.bandwidth
    return least / device.training_share


def step_seconds(flops: float, moved: float, shape: Shape, device: Device) -> float:
    """Of decoding steps: products go on while weights and cache are read, so the longer of both."""
    least = max(flops / _peak_flops(shape, device), moved / device.bandwidth)
    return least / device.decoding_share


def forward_flops(shape: Shape, context: float) -> float:
    """Of one token through the layers: two a weight, and attention to so many tokens."""
    attention = 4 * shape.layers * shape.heads * shape.head_dim * context
    return 2 * shape.multiplied + attention


def checkpoint_bytes(shape: Shape, job: Job) -> int:
    """What lies on the disk at most: weights and moments of every checkpoint, the final model."""
    trained = shape.trained_bytes
    saved = trained if shape.adapters else shape.weight_bytes
    return job.checkpoints * (saved + 2 * trained) + saved


def _pass_flops(shape: Shape, job: Job, tokens: int, sequences: int) -> float:
    """Forward: layers of all tokens, K columns at soft steps, the whole head at the others."""
    steps = sequences * job.completion_tokens
    columns = job.soft_share * job.columns * shape.hidden + (1 - job.soft_share) * shape.head
    return tokens * forward_flops(shape, job.length / 2) + 2 * steps * columns


def _peak_flops(shape: Shape, device: Device) -> float:
    return device.half_flops if shape.bytes_of_products < 4 else device.single_flops
