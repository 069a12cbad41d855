"""Which log-density of a rollout is trained, with the settings of the rollout that it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.densities import DensityName, Reduction, clamp_edge, log_density


@dataclass(frozen=True)
class Objective:
    """Which log-density is trained, and the settings of the rollout it needs.

    Attributes:
        density: See softgrpo.thinking.densities.
        reduction: ``masked_mean`` (authors) or ``sum``.
        temperature: Of the thinking steps' logits.
        answer_temperature: Of the ordinary tokens' logits.
        noise_clamp, prob_floor, alpha, sigma: See ThinkingConfig.
    """

    density: DensityName = "gumbel"
    reduction: Reduction = "masked_mean"
    temperature: float = 1.0
    answer_temperature: float = 1.0
    noise_clamp: tuple[float, float] | None = (-1.5, 3.0)
    prob_floor: float = 1e-6
    alpha: float = 1.0
    sigma: float = 0.05

    @classmethod
    def of(
        cls, config: ThinkingConfig, density: DensityName, reduction: Reduction = "masked_mean"
    ) -> Objective:
        """The objective of a rollout's config under a density.

        Raises:
            ValueError: Policy ``discrete`` with two temperatures: a trace does not say which of
                its tokens were thinking.
        """
        if config.policy == "discrete" and config.temperature != config.answer_temperature:
            raise ValueError(
                f"answer_temperature={config.answer_temperature}: policy 'discrete' is trained at "
                f"one temperature; set it to temperature={config.temperature}"
            )
        return cls(
            density=density,
            reduction=reduction,
            temperature=float(config.temperature),
            answer_temperature=config.answer_temperature,
            noise_clamp=config.noise_clamp,
            prob_floor=config.prob_floor,
            alpha=config.alpha,
            sigma=config.sigma,
        )

    def log_density(
        self,
        logits: Tensor,
        scores: Tensor,
        support: Tensor,
        edge: float = clamp_edge(torch.float32),
    ) -> Tensor:
        """Log-densities [N] (nats) of recorded scores; see densities.log_density.

        Args:
            logits: [N, K] float, the recorded columns' logits / temperature, with gradient.
            scores: [N, K].
            support: [N, K] bool.
            edge: ``clamp_edge`` of the dtype the logits were computed in.
        """
        return log_density(
            logits,
            scores,
            support,
            density=self.density,
            reduction=self.reduction,
            noise_clamp=self.noise_clamp,
            prob_floor=self.prob_floor,
            alpha=self.alpha,
            sigma=self.sigma,
            edge=edge,
        )
