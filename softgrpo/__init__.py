"""softgrpo: reinforcement learning for language models that think in soft tokens.

The public names, imported when first used (``import softgrpo`` loads no torch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softgrpo.lazy import lookup

if TYPE_CHECKING:
    from softgrpo.models import load_model
    from softgrpo.replay import logps_from_hidden, logps_from_logits
    from softgrpo.rollout import Rollout, RolloutEngine, TransformersEngine
    from softgrpo.rollout.vllm_engine import VLLMEngine
    from softgrpo.thinking import SoftStep, SoftTrace, ThinkingConfig, draw_step
    from softgrpo.training import SofTGRPOConfig, SofTGRPOTrainer

__version__ = "0.1.0"

__getattr__ = lookup(
    __name__,
    {
        "ThinkingConfig": "thinking",
        "SoftStep": "thinking",
        "SoftTrace": "thinking",
        "draw_step": "thinking",
        "logps_from_logits": "replay",
        "logps_from_hidden": "replay",
        "Rollout": "rollout",
        "RolloutEngine": "rollout",
        "TransformersEngine": "rollout",
        "VLLMEngine": "rollout.vllm_engine",
        "SofTGRPOConfig": "training",
        "SofTGRPOTrainer": "training",
        "load_model": "models",
    },
)

__all__ = [
    "Rollout",
    "RolloutEngine",
    "SofTGRPOConfig",
    "SofTGRPOTrainer",
    "SoftStep",
    "SoftTrace",
    "ThinkingConfig",
    "TransformersEngine",
    "VLLMEngine",
    "draw_step",
    "load_model",
    "logps_from_hidden",
    "logps_from_logits",
]
