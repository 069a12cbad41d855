"""soft/*: how soft the soft steps were, how thinking ended, and how exact the replay is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from softgrpo.rollout import Rollout
from softgrpo.thinking import MIXERS, SoftTrace, ThinkingConfig
from softgrpo.training.micro_batches import Batch


def thinking_metrics(
    rollouts: Sequence[Rollout],
    trace: SoftTrace,
    config: ThinkingConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Means over the steps, and shares of the sequences, of the rollouts of all processes.

    Of this process they are given, and their traces as one.
    """
    soft = trace.is_soft
    weights = MIXERS[config.policy].weights(trace.scores[soft], trace.support[soft], config)
    sums = [
        soft.sum(),
        trace.mask.sum(),
        (1 / weights.square().sum(-1)).sum(),
        weights.amax(-1).sum() if len(weights) else 0.0,
        trace.support[soft].sum(),
        len(rollouts),
        sum(rollout.thinking_ended_by is not None for rollout in rollouts),
        sum(rollout.thinking_ended_by in ("budget", "cold_stop") for rollout in rollouts),
    ]
    local = torch.tensor([float(x) for x in sums], device=accelerator.device)
    total = accelerator.reduce(local, reduction="sum").tolist()
    num_soft, num_steps, effective, largest, size, count, num_closed, num_forced = total
    metrics = {
        "soft/share_of_steps": num_soft / max(num_steps, 1),
        "soft/thinking_closed": num_closed / count,
        "soft/thinking_forced": num_forced / count,
    }
    if num_soft:
        metrics["soft/effective_support"] = effective / num_soft
        metrics["soft/max_weight"] = largest / num_soft
        metrics["soft/support_size"] = size / num_soft
    return metrics


def gap_metrics(logps: Tensor, batch: Batch, accelerator: Accelerator) -> dict[str, float]:
    """The trainer's log-densities [B, T] in nats against the rollout's, which the batch has.

    The gap is numerical error, if both have the same weights.
    """
    gap = (logps - batch["sampling_per_token_logps"]).abs()[batch["completion_mask"].bool()]
    gap = gap if len(gap) else gap.new_zeros(1)
    return {
        "soft/logp_gap_max": accelerator.gather(gap.max()).max().item(),
        "soft/logp_gap_mean": accelerator.gather(gap.mean()).mean().item(),
    }
