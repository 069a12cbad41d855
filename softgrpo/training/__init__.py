"""Training: SofTGRPOTrainer over TRL's GRPOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softgrpo.lazy import lookup

if TYPE_CHECKING:
    from softgrpo.training.config import SofTGRPOConfig
    from softgrpo.training.trainer import NonFiniteLossError, SofTGRPOTrainer

__getattr__ = lookup(
    __name__,
    {"NonFiniteLossError": "trainer", "SofTGRPOConfig": "config", "SofTGRPOTrainer": "trainer"},
)

__all__ = ["NonFiniteLossError", "SofTGRPOConfig", "SofTGRPOTrainer"]
