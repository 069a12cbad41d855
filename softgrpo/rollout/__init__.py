"""Rollouts: the engine protocol and the engine that runs in this process."""

from softgrpo.rollout.engine import NonFiniteLogitsError, Rollout, RolloutEngine
from softgrpo.rollout.transformers_engine import StreamedStep, TransformersEngine

__all__ = [
    "NonFiniteLogitsError",
    "Rollout",
    "RolloutEngine",
    "StreamedStep",
    "TransformersEngine",
]
