"""soft/*: how soft the soft steps of some rollouts were, and how their thinking ended."""

from __future__ import annotations

from collections.abc import Sequence

from softgrpo.rollout import Rollout
from softgrpo.thinking import MIXERS, SoftTrace, ThinkingConfig


def thinking_sums(
    rollouts: Sequence[Rollout], trace: SoftTrace, config: ThinkingConfig
) -> list[float]:
    """Sums over a process's rollouts, to be added up over all processes: see ``thinking_metrics``.

    Args:
        rollouts: The rollouts.
        trace: Theirs, as one.
        config: How they thought.
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
    return [float(x) for x in sums]


def thinking_metrics(sums: Sequence[float]) -> dict[str, float]:
    """What is logged, from the sums: means over steps, and shares of sequences."""
    num_soft, num_steps, effective, largest, size, count, num_closed, num_forced = sums
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
