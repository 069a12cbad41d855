"""Training: SofTGRPOTrainer over TRL's GRPOTrainer."""

from softgrpo.training.config import SofTGRPOConfig
from softgrpo.training.trainer import NonFiniteLossError, SofTGRPOTrainer

__all__ = ["NonFiniteLossError", "SofTGRPOConfig", "SofTGRPOTrainer"]
