"""Rollouts: the engine protocol and the engine that runs in this process."""

from softgrpo.rollout.engine import NonFiniteLogitsError, Rollout, RolloutEngine
from softgrpo.rollout.request import Request
from softgrpo.rollout.transformers_engine import StreamedStep, TransformersEngine

__all__ = [
    "NonFiniteLogitsError",
    "Request",
    "Rollout",
    "RolloutEngine",
    "StreamedStep",
    "TransformersEngine",
]
