"""The method: policies, densities, the trace, and when thinking ends. Pure tensors."""

from softgrpo.thinking.config import PolicyName, ThinkingConfig
from softgrpo.thinking.densities import DensityName, Reduction
from softgrpo.thinking.objective import Objective, log_density
from softgrpo.thinking.policies import POLICIES, ThinkingPolicy, check_density
from softgrpo.thinking.step import SoftStep, draw_step
from softgrpo.thinking.trace import SoftTrace, Steps, from_tokens

__all__ = [
    "POLICIES",
    "DensityName",
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
