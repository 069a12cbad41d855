"""Which fields would let a run fit, and budgets of tokens that use what memory there is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from softgrpo.planning.job import Job, Reference
from softgrpo.planning.memory import memory, peak
from softgrpo.planning.shapes import Shape

# Of a device's memory: the rest is for what no estimate knows, fragments above all.
USABLE = 0.92
LORA = "{r: 16, target_modules: all-linear}"
# Budgets are given in multiples of it.
_GRAIN = 64


@dataclass(frozen=True)
class Proposal:
    """Fields with which the run holds less."""

    fields: str  # as a recipe or the command line has them
    peak: int  # bytes of a process
    fits: bool  # whether that is within the device


def fits(shape: Shape, job: Job, device_bytes: int) -> bool:
    """Whether every phase is within the usable share of the device's memory."""
    return _peak(shape, job, device_bytes) <= USABLE * device_bytes


def proposals(shape: Shape, adapted: Shape, job: Job, device_bytes: int) -> list[Proposal]:
    """What would help a run that does not fit, one change at a time, then all of them together.

    ``adapted`` is the model's shape with LoRA.
    """
    before = _peak(shape, job, device_bytes)
    changes = _changes(shape, adapted, job, device_bytes)
    found = []
    for fields, other, changed in changes:
        most = _peak(other, changed, device_bytes)
        if most < before:
            found.append(Proposal(fields, most, most <= USABLE * device_bytes))
    if any(proposal.fits for proposal in found):
        return [proposal for proposal in found if proposal.fits]
    names: list[str] = []
    for index in range(len(changes)):
        fields, other, changed = _changes(shape, adapted, job, device_bytes)[index]
        most = _peak(other, changed, device_bytes)
        if most < before:
            before, shape, job = most, other, changed
            names.append(fields)
        if before <= USABLE * device_bytes:
            break
    together = Proposal(", ".join(names), before, before <= USABLE * device_bytes)
    return [together] if together.fits else [*found, together]


def train_budget(shape: Shape, job: Job, device_bytes: int) -> int | None:
    """The largest ``train_batch_tokens`` that fits; None: not even one sequence a pass does.

    More than a micro-batch has is of no use.
    """
    return _largest(
        job.length,
        max(job.length, job.tokens_of(job.micro_batch)),
        lambda n: fits(shape, replace(job, train_batch_tokens=n), device_bytes),
    )


def rollout_budget(shape: Shape, job: Job, device_bytes: int) -> int | None:
    """The largest ``rollout_batch_tokens`` whose rollouts and evaluations fit."""
    sequences = min(max(job.sequences, job.eval_sequences), job.rollout_batch_size)
    longest = job.length + job.length // 4 + 1

    def is_within(tokens: int) -> bool:
        phases = memory(shape, replace(job, rollout_batch_tokens=tokens), device_bytes)
        held = [phases[name] for name in ("rollout", "evaluation") if name in phases]
        return max(sum(kinds.values()) for kinds in held) <= USABLE * device_bytes

    return _largest(job.length, max(job.length, sequences * longest), is_within)


def vllm_share(shape: Shape, job: Job, device_bytes: int) -> float | None:
    """The largest ``vllm_gpu_memory_utilization`` beside the training; None: too little is left.

    vLLM's own weights and the keys and values of one sequence must fit in it.
    """
    phases = memory(shape, replace(job, engine="vllm", vllm_share=0.0), device_bytes)
    if not job.is_cpu:  # where it sleeps while the model is trained
        phases = {name: phases[name] for name in ("rollout", "evaluation") if name in phases}
    share = int(100 * (USABLE - peak(phases)[1] / device_bytes)) / 100
    needed = shape.parameters * shape.bytes_of_products + job.length * shape.cache_bytes
    return share if share * device_bytes > needed else None


def _changes(
    shape: Shape, adapted: Shape, job: Job, device_bytes: int
) -> list[tuple[str, Shape, Job]]:
    """What one would try, in its order: how it is called, and the shape and the job with it."""
    cache = rollout_budget(shape, job, device_bytes) or job.length
    passes = train_budget(shape, job, device_bytes) or job.length
    sharded = replace(job, is_sharded=True, rollout_copy_bytes=shape.bytes_of_products)
    reference: Reference = "none" if job.reference == "none" else "adapter off"
    return [
        (f"rollout_batch_tokens: {cache}", shape, replace(job, rollout_batch_tokens=cache)),
        (f"train_batch_tokens: {passes}", shape, replace(job, train_batch_tokens=passes)),
        ("gradient_checkpointing: true", shape, replace(job, checkpointing="all")),
        ("FSDP2 (plan: --fsdp)", shape, sharded if job.processes > 1 else job),
        (f"lora: {LORA}", adapted, replace(job, reference=reference)),
    ]


def _peak(shape: Shape, job: Job, device_bytes: int) -> int:
    return peak(memory(shape, job, device_bytes))[1]


def _largest(low: int, high: int, is_within: Callable[[int], bool]) -> int | None:
    """The largest number from low to high that is within, or nearly; None: low is not."""
    if not is_within(low):
        return None
    if is_within(high):
        return high
    outside = bisect_left(range(low, high), True, key=lambda number: not is_within(number))
    return max(low, (low + outside - 1) // _GRAIN * _GRAIN)
