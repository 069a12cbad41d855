"""The method: mixers, densities, the trace, and when thinking ends. Pure tensors."""

from softgrpo.thinking.config import MixerName, ThinkingConfig
from softgrpo.thinking.densities import DensityName, Reduction
from softgrpo.thinking.mixers import MIXERS, Mixer, check_density
from softgrpo.thinking.objective import Objective, log_density
from softgrpo.thinking.step import SoftStep, draw_step
from softgrpo.thinking.trace import SoftTrace, Steps, from_tokens

POLICIES, PolicyName, ThinkingPolicy = MIXERS, MixerName, Mixer  # as they were called

__all__ = [
    "MIXERS",
    "POLICIES",
    "DensityName",
    "Mixer",
    "MixerName",
    "Objective",
    "PolicyName",
    "Reduction",
    "SoftStep",
    "SoftTrace",
    "Steps",
    "ThinkingConfig",
    "ThinkingPolicy",
    "check_density",
    "draw_step",
    "from_tokens",
    "log_density",
]
