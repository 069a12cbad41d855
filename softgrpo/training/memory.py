"""Warns of a run that will outgrow its memory: the kernel would kill it without a message.

After the first update's backward passes, and before the optimizer's first step, the process has
held nearly all that it will hold. What is still to come is estimated: the optimizer's moments,
which its first step makes, and the activations of larger passes, where a budget allows them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from transformers import TrainerCallback

_logger = logging.getLogger(__name__)


def shortage(peak: int, moments: int | None, activations: int, allowed: int) -> str | None:
    """What to say of a process whose second update will need more than there is; None: nothing.

    Args:
        peak: The most bytes that it has held.
        moments: Bytes that the optimizer has still to make; None: not known.
        activations: Bytes of passes up to the budget, beyond those of the largest pass so far.
        allowed: The most bytes that it can hold.
    """
    if peak + (moments or 0) + activations <= allowed:
        return None
    return (
        f"memory may not suffice for the second update: a process has held {_gib(peak)}, and still "
        f"to come are optimizer moments ({'unknown' if moments is None else _gib(moments)}) and "
        f"activations of larger passes ({_gib(activations)}), but it can hold {_gib(allowed)}; "
        "less is needed with a lower train_batch_tokens, gradient_checkpointing: true, lora, or "
        "rollout_dtype: model"
    )


class MemoryWatch(TrainerCallback):
    """Warns once, on the main process, before the optimizer's first step.

    ``max_tokens`` is the budget of a pass, if there is one.
    """

    def __init__(self, device: torch.device, max_tokens: int | None) -> None:
        self._device = device
        self._max_tokens = max_tokens
        self._before: tuple[int, int] | None = None
        self._num_tokens = 0
        self._is_over = False

    def before_passes(self, num_tokens: int) -> None:
        """To be called before a micro-batch's passes: the largest of them has so many tokens."""
        self._before = self._before or held(self._device)
        self._num_tokens = max(self._num_tokens, num_tokens)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        now = held(self._device)
        if self._is_over or now is None:
            return
        self._is_over = True
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        activations = 0
        if self._before is not None and self._max_tokens is not None:
            (start, peak_before), (_, peak) = self._before, now
            # If the peak did not grow in these passes, it says nothing about them.
            grown = peak - start - gradient_bytes(optimizer) if peak > peak_before else 0
            activations = more_activations(grown, self._num_tokens, self._max_tokens)
        message = shortage(
            now[1], moment_bytes(optimizer), activations, allowed(self._device, now[0])
        )
        if message and state.is_world_process_zero:
            _logger.warning(message)


def more_activations(num_bytes: int, num_tokens: int, max_tokens: int) -> int:
    """Bytes that a pass of max_tokens needs beyond the num_bytes of one of num_tokens."""
    return int(max(0, num_bytes) * max(0.0, max_tokens / num_tokens - 1))


def moment_bytes(optimizer: Optimizer) -> int | None:
    """Bytes of the states that an optimizer's first step will make; None: of another kind.

    Of a sharded parameter those of this process's shard.
    """
    total = 0
    for group in optimizer.param_groups:
        if type(optimizer) in (Adam, AdamW):
            count = 3 if group["amsgrad"] else 2
        elif type(optimizer) is SGD:
            count = 1 if group["momentum"] else 0
        else:
            return None
        missing = (p for p in group["params"] if p.requires_grad and p not in optimizer.state)
        total += count * sum(_local(parameter).nbytes for parameter in missing)
    return total


def gradient_bytes(optimizer: Optimizer) -> int:
    """Bytes of the gradients that an optimizer is about to use."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return sum(_local(p.grad).nbytes for p in parameters if p.grad is not None)


def held(device: torch.device) -> tuple[int, int] | None:
    """Bytes that this process holds, and the most it has held; None where that cannot be read."""
    if device.type in ("cuda", "xpu"):
        memory = torch.accelerator.memory_allocated(device)
        return memory, torch.accelerator.max_memory_allocated(device)
    status = _kibibytes("/proc/self/status") if device.type == "cpu" else {}
    return (status["VmRSS"], status["VmHWM"]) if "VmHWM" in status else None


def allowed(device: torch.device, now: int) -> int:
    """Bytes that this process can hold: what it holds and what is free, within its share.

    On a CPU the processes of a launch share the machine, or the control group they are in.
    """
    if device.type != "cpu":
        free, _ = torch.accelerator.get_memory_info(device)
        return free + torch.accelerator.memory_reserved(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = now + _kibibytes("/proc/meminfo")["MemAvailable"] // processes
    return min([free, *(limit // processes for limit in group_limits(Path("/")))])


def group_limits(root: Path) -> list[int]:
    """Bytes that each control group of this process allows; ``proc`` and ``sys`` are in root."""
    limits = []
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))  # in a container the mount may begin further down
        for file in (mount / parent / name for parent in (group, *group.parents)):
            if file.exists() and (text := file.read_text().strip()) != "max":
                limits.append(int(text))
    return limits


def _kibibytes(path: str) -> dict[str, int]:
    """The fields of a table of Linux that are given in kB, in bytes."""
    if not Path(path).exists():
        return {}
    fields = (line.split() for line in Path(path).read_text().splitlines())
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in fields if len(f) == 3 and f[2] == "kB"}


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
