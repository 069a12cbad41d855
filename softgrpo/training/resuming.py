"""What makes a resumed run the same run: order of data, seeds, rollouts, settings, whole files.

The order of the data and the seeds of rollouts are functions of seed, epoch and rollout. Rollouts
that are not used up when a checkpoint is made lie beside its weights, a file a process. Of the
optimizer the state is the checkpoint's, and the settings are the config's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.utils import RepeatSampler

from softgrpo.checkpoints import begin, keep_newest, seal
from softgrpo.training.micro_batches import Batch

# What a config decides of a group of parameters. Optimizers keep state of their own beside it.
_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")


class EpochSampler(RepeatSampler):
    """TRL's sampler whose order is a matter of seed and epoch, so that a resumed run meets it."""

    def __init__(self, sampler: RepeatSampler) -> None:
        vars(self).update(vars(sampler))

    def set_epoch(self, epoch: int) -> None:
        """Called as an epoch begins."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


def rollout_seed(seed: int, rollout: int) -> int:
    """The seed of one rollout: the run's n-th in training, or that of evaluation (-1)."""
    return int(np.random.SeedSequence([seed, rollout + 1]).generate_state(1, np.uint64)[0])


@contextmanager
def written_whole(folder: Path, trainer: Any) -> Iterator[None]:
    """Inside it all processes write a checkpoint, which counts once each has written its part.

    Older checkpoints that are too many go only then.
    """
    args, accelerator = trainer.args, trainer.accelerator
    if args.should_save:
        begin(folder)
    accelerator.wait_for_everyone()
    folder.mkdir(parents=True, exist_ok=True)  # on a disk of this process's own
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
    accelerator.wait_for_everyone()
    if args.should_save:
        seal(folder)
        best = trainer.state.best_model_checkpoint
        if limit and limit > 0:
            keep_newest(folder, limit, Path(best) if best else None)


def save_rollouts(checkpoint: Path, process: int, step: int, batches: list[Batch]) -> None:
    """Write a process's buffered batches and the micro-step it is at."""
    tensors = {
        f"{i}.{name}": value.contiguous().clone()  # batches of one rollout share scalars
        for i, batch in enumerate(batches)
        for name, value in batch.items()
        if value is not None
    }
    save_file(tensors, _rollouts_file(checkpoint, process), metadata={"step": json.dumps(step)})


def load_rollouts(checkpoint: Path, process: int, device: torch.device) -> tuple[int, list[Batch]]:
    """The micro-step and the batches that ``save_rollouts`` wrote.

    Raises:
        ValueError: There is no such file.
    """
    path = _rollouts_file(checkpoint, process)
    if not path.exists():
        raise ValueError(f"{path} is missing: the checkpoint was made by another program")
    batches: dict[int, dict[str, Tensor]] = {}
    with safe_open(str(path), framework="pt") as file:
        step = json.loads(file.metadata()["step"])
        for key in file.keys():  # noqa: SIM118
            index, name = key.split(".", 1)
            batches.setdefault(int(index), {})[name] = file.get_tensor(key).to(device)
    return step, [batches[i] for i in sorted(batches)]


def _rollouts_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"rollouts_{process}.safetensors"


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """The settings of each group of parameters, to be kept while a checkpoint is loaded."""
    return [
        {name: group[name] for name in _SETTINGS if name in group}
        for group in optimizer.param_groups
    ]


def restore_settings(
    optimizer: Any, scheduler: Any, settings: list[dict[str, Any]]
) -> tuple[float, float] | None:
    """Put settings back after a checkpoint has been loaded, and let the schedule go on from them.

    A schedule that is no function of the step goes on from its own state. The settings are those
    ``settings_of`` the optimizer before.

    Returns:
        The next step's learning rate and the checkpoint's, of the first group, where they differ.
    """
    groups = optimizer.param_groups
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    if not isinstance(scheduler, LambdaLR):
        return None
    loaded = groups[0]["lr"]
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    scheduler._last_lr = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
    return None if groups[0]["lr"] == loaded else (groups[0]["lr"], loaded)


def rate_message(rate: float, checkpoint_rate: float, args: Any, state: Any) -> str:
    """What to say where a resumed run goes on at another learning rate."""
    return (
        f"the learning rate of step {state.global_step + 1} is {rate:g} and not "
        f"{checkpoint_rate:g} as the checkpoint has it: the {args.lr_scheduler_type.value} "
        f"schedule is that of {state.max_steps} steps in all"
    )
