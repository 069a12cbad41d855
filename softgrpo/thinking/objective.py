"""Which log-density of a rollout is trained: its name, its reduction, the rollout's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from softgrpo.thinking import densities
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.densities import DensityName, Reduction, clamp_edge
from softgrpo.thinking.mixers import MIXERS, check_density


@dataclass(frozen=True)
class Objective:
    """Which log-density of a rollout is trained.

    Attributes:
        config: The rollout's settings.
        density: One of its policy's (see softgrpo.thinking.densities); None: the policy's default.
        reduction: ``masked_mean`` (the authors' code) or ``sum`` (the density on the support). It
            means nothing to ``concrete``, ``argmax``, ``censored``, ``none`` and ``token``.

    Raises:
        ValueError: The density is none of the policy's, the reduction is unknown, or policy
            ``discrete`` has two temperatures: a trace does not say which of its tokens were
            thinking.
    """

    config: ThinkingConfig = ThinkingConfig()
    density: DensityName | None = None
    reduction: Reduction = "masked_mean"

    def __post_init__(self) -> None:
        config = self.config
        object.__setattr__(self, "density", check_density(config.policy, self.density))
        if self.reduction not in get_args(Reduction):
            known = list(get_args(Reduction))
            raise ValueError(f"reduction={self.reduction!r}: choose one of {known}")
        if config.policy == "discrete" and config.temperature != config.answer_temperature:
            raise ValueError(
                f"answer_temperature={config.answer_temperature}: policy 'discrete' is trained at "
                f"one temperature; set it to temperature={config.temperature}"
            )

    @classmethod
    def of_density(
        cls,
        density: DensityName,
        reduction: Reduction = "masked_mean",
        *,
        answer_temperature: float | None = None,
        **settings: Any,
    ) -> Objective:
        """The objective of a density under some settings, whichever policy it belongs to.

        Args:
            density, reduction: See Objective.
            answer_temperature: None: the temperature.
            settings: Of ThinkingConfig.
        """
        policy = next((p for p, each in MIXERS.items() if density in each.densities), None)
        if policy is None:
            raise ValueError(f"density={density!r}: choose one of {list(get_args(DensityName))}")
        if answer_temperature is None:
            answer_temperature = settings.get("temperature", 1.0)
        if policy == "discrete":
            settings["temperature"] = answer_temperature
        config = ThinkingConfig(policy=policy, answer_temperature=answer_temperature, **settings)
        return cls(config, density, reduction)

    def log_density(
        self,
        logits: Tensor,
        scores: Tensor,
        support: Tensor,
        edge: float = clamp_edge(torch.float32),
    ) -> Tensor:
        """Log-densities of recorded scores.

        Args:
            logits: [N, K] float32 or float64, the recorded columns' logits / temperature. Carries
                the gradient.
            scores: [N, K] as recorded in the rollout; no gradient.
            support: [N, K] bool, the columns that were in the support. At least one a row.
            edge: See ``densities.gumbel_masked_mean``; ``clamp_edge`` of the dtype the logits were
                computed in.

        Returns:
            [N], nats; 0 for density ``none``, where nothing was drawn.

        Raises:
            ValueError: The density is none of recorded scores (``token``, ``embedding_gaussian``).
        """
        config = self.config
        match self.density, self.reduction:
            case "gumbel", "masked_mean":
                return densities.gumbel_masked_mean(
                    logits, scores, config.noise_clamp, config.prob_floor, edge
                )
            case "gumbel", _:
                return densities.gumbel_sum(logits, scores, support)
            case "concrete", _:
                return densities.concrete(logits, scores, support)
            case "argmax", _:
                return densities.argmax(logits, scores, support)
            case "censored", _:
                return densities.censored(logits, scores, support, config.tau, config.min_weight)
            case "dirichlet", "masked_mean":
                return densities.dirichlet_masked_mean(logits, scores, config.alpha)
            case "dirichlet", _:
                return densities.dirichlet_sum(logits, scores, support, config.alpha)
            case "gaussian", "masked_mean":
                return densities.gaussian_masked_mean(logits, scores, config.sigma)
            case "gaussian", _:
                return densities.gaussian_sum(logits, scores, support, config.sigma)
            case "none", _:
                return logits.new_zeros(logits.shape[:-1])
        raise ValueError(f"density={self.density!r} is not a density of recorded scores")


def log_density(
    logits: Tensor,
    scores: Tensor,
    support: Tensor,
    *,
    density: DensityName,
    reduction: Reduction = "masked_mean",
    edge: float = clamp_edge(torch.float32),
    **settings: Any,
) -> Tensor:
    """``Objective.log_density`` of a density under some settings of ThinkingConfig."""
    objective = Objective.of_density(density, reduction, **settings)
    return objective.log_density(logits, scores, support, edge)
