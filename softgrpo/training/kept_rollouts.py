"""Rollouts that are not used up when a checkpoint is made: a file a process, beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from softgrpo.training.micro_batches import Batch


def save_rollouts(path: Path, step: int, batches: list[Batch]) -> None:
    """Write a process's buffered batches and the micro-step it is at."""
    tensors = {
        f"{i}.{name}": value.contiguous().clone()  # batches of one rollout share scalars
        for i, batch in enumerate(batches)
        for name, value in batch.items()
        if value is not None
    }
    save_file(tensors, path, metadata={"step": json.dumps(step)})


def load_rollouts(path: Path, device: torch.device) -> tuple[int, list[Batch]]:
    """The micro-step and the batches that ``save_rollouts`` wrote.

    Raises:
        ValueError: There is no such file.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: the checkpoint was made by another program")
    batches: dict[int, dict[str, Tensor]] = {}
    with safe_open(str(path), framework="pt") as file:
        step = json.loads(file.metadata()["step"])
        for key in file.keys():  # noqa: SIM118
            index, name = key.split(".", 1)
            batches.setdefault(int(index), {})[name] = file.get_tensor(key).to(device)
    return step, [batches[i] for i in sorted(batches)]
