"""One sequence that is asked for: what every engine takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.objective import Objective


@dataclass(frozen=True)
class Request:
    """One sequence that is asked for.

    Seed and index decide its noise, whoever else is asked for beside it.

    Attributes:
        prompt: Token ids; empty where a server has read the settings alone.
        config: How to think and how to answer.
        limit: Most generated steps, thinking and answer together.
        objective: The log-density to report with each step, of this config; None reports none.
        seed: Seed of the rollout, in [0, 2^64).
        index: Its place in the rollout, in [0, 2^64).
    """

    prompt: tuple[int, ...]
    config: ThinkingConfig
    limit: int
    objective: Objective | None = None
    seed: int = 0
    index: int = 0

    def under(self, config: ThinkingConfig) -> Request:
        """The same request with another config."""
        objective = None if self.objective is None else replace(self.objective, config=config)
        return replace(self, config=config, objective=objective)

    def source(self, engine: str) -> dict[str, object]:
        """Where its trace comes from: the ``source`` of a SoftTrace."""
        return {"engine": engine, "seed": self.seed, "first_sequence": self.index}
