"""The method: mixers, densities, the trace, and when thinking ends. Pure tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softgrpo.lazy import lookup

if TYPE_CHECKING:
    from softgrpo.thinking.config import ThinkingConfig
    from softgrpo.thinking.densities import DensityName, Reduction
    from softgrpo.thinking.fields import MixerName
    from softgrpo.thinking.fields import MixerName as PolicyName
    from softgrpo.thinking.mixers import MIXERS, Mixer, check_density
    from softgrpo.thinking.mixers import MIXERS as POLICIES
    from softgrpo.thinking.mixers import Mixer as ThinkingPolicy
    from softgrpo.thinking.objective import Objective, log_density
    from softgrpo.thinking.step import SoftStep, draw_step
    from softgrpo.thinking.trace import SoftTrace, Steps, from_tokens

__getattr__ = lookup(
    __name__,
    {
        "ThinkingConfig": "config",
        "DensityName": "densities",
        "Reduction": "densities",
        "MixerName": "fields",
        "MIXERS": "mixers",
        "Mixer": "mixers",
        "check_density": "mixers",
        "Objective": "objective",
        "log_density": "objective",
        "SoftStep": "step",
        "draw_step": "step",
        "SoftTrace": "trace",
        "Steps": "trace",
        "from_tokens": "trace",
        # As they were called.
        "POLICIES": "mixers:MIXERS",
        "PolicyName": "fields:MixerName",
        "ThinkingPolicy": "mixers:Mixer",
    },
)

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
