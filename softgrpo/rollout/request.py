"""One sequence that is asked for: what every engine takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.objective import Objective


@dataclass(frozen=True)
class Request:
    """One sequence that is asked for.

    Seed and index decide its noise, whoever else is asked for beside it.
    """

    prompt: tuple[int, ...]  # token ids; empty where a server has read the settings alone
    config: ThinkingConfig  # how to think and how to answer
    limit: int  # most generated steps, thinking and answer together
    # The log-density to report with each step, of this config; None reports none.
    objective: Objective | None = None
    seed: int = 0  # seed of the rollout, in [0, 2^64)
    index: int = 0  # its place in the rollout, in [0, 2^64)

    def under(self, config: ThinkingConfig) -> Request:
        """The same request with another config."""
        objective = None if self.objective is None else replace(self.objective, config=config)
        return replace(self, config=config, objective=objective)

    def source(self, engine: str) -> dict[str, object]:
        """Where its trace comes from: the ``source`` of a SoftTrace."""
        return {"engine": engine, "seed": self.seed, "first_sequence": self.index}
