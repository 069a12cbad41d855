"""An optimizer resumed: its state is the checkpoint's, its settings are the config's."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

# What a config decides of a group. Optimizers keep state of their own beside it.
_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")


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

    A schedule that is no function of the step goes on from its own state.

    Args:
        optimizer, scheduler: As loaded.
        settings: As ``settings_of`` the optimizer before.

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
