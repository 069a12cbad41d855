"""The ways to mix a thinking step: what is drawn, what is fed to the model, what its density is.

A recipe, a record and a trace name one as their ``policy``. Here, as in the trainer, the policy is
the model.

One class each, one interface: ``draw`` makes the recorded scores from the support and the noise,
``weights`` turns recorded scores into the mixture (at the rollout and again at the replay), and
``densities`` names the log-densities that are exact or published for those scores, the default
first. The formulas are in ``softgrpo.thinking.densities``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from softgrpo.thinking import noise as noises
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.densities import DensityName, heavy_columns
from softgrpo.thinking.fields import MixerName
from softgrpo.thinking.support import Support


class Mixer(ABC):
    """How a support becomes a recorded step, and a recorded step a mixture."""

    densities: ClassVar[tuple[DensityName, ...]]

    def noise_width(self, num_columns: int, hidden_size: int) -> int:
        """Exponential draws a step needs."""
        return num_columns

    @abstractmethod
    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        """Scores [N, K] float32 to record, from noise [N, width] of Exponential(1) draws."""

    def weights(self, scores: Tensor, support: Tensor, config: ThinkingConfig) -> Tensor:
        """Mixture weights [N, K] from recorded scores and support mask; 0 outside the support."""
        return scores.masked_fill(~support, 0.0)


class Discrete(Mixer):
    """One token, sampled from the support by inversion; its log-density is the log-softmax."""

    densities = ("token",)

    def noise_width(self, num_columns: int, hidden_size: int) -> int:
        return 1

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        column = invert_cdf(support.probs, noise)
        return torch.zeros_like(support.probs).scatter(-1, column, 1.0)


class Soft(Mixer):
    """Vanilla soft thinking: the weights are the support's probabilities. Nothing is drawn."""

    densities = ("none",)

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        return support.probs


class Gumbel(Mixer):
    """Gumbel-Softmax (Eq. 9): g' = log p + Gumbel noise, weights softmax(g' / tau).

    Weights below ``min_weight`` times the largest are cut, which the paper does not do.
    Columns outside the support keep a score, log(prob_floor) + noise, which only the authors'
    masked mean looks at (deviation [4]); their weight is 0.
    """

    densities = ("gumbel", "concrete", "argmax", "censored")

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        floor = max(config.prob_floor, torch.finfo(torch.float32).tiny)
        log_probs = torch.log((support.probs + config.prob_floor).clamp_min(floor))
        gumbel = noises.gumbel(noise)
        if config.noise_clamp is not None:
            gumbel = gumbel.clamp(*config.noise_clamp)
        return log_probs + gumbel

    def weights(self, scores: Tensor, support: Tensor, config: ThinkingConfig) -> Tensor:
        stays = heavy_columns(scores, support, config.tau, config.min_weight)
        return torch.softmax((scores / config.tau).masked_fill(~stays, -torch.inf), dim=-1)


class Dirichlet(Mixer):
    """w ~ Dirichlet(alpha * p), drawn as normalised Gamma(alpha * p, 1), which are recorded."""

    densities = ("dirichlet",)

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        return noises.gamma(support.probs * config.alpha, noise).to(support.probs.dtype)

    def weights(self, scores: Tensor, support: Tensor, config: ThinkingConfig) -> Tensor:
        scores = scores.masked_fill(~support, 0.0)
        return scores / scores.sum(-1, keepdim=True)


class Gaussian(Mixer):
    """w = normalise(p + N(0, sigma^2)) on the support. As published, a weight can be negative."""

    densities = ("gaussian",)

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        noisy = support.probs + config.sigma * noises.normal(noise).to(support.probs.dtype)
        return noisy.masked_fill(~support.mask, 0.0)

    def weights(self, scores: Tensor, support: Tensor, config: ThinkingConfig) -> Tensor:
        scores = scores.masked_fill(~support, 0.0)
        return scores / scores.sum(-1, keepdim=True)


class EmbeddingGaussian(Mixer):
    """The mixture's embedding + N(0, sigma^2 I) (Butt et al. 2509.19170).

    The scores are the mixture's weights; the noise itself, [N, D], rides in the trace.
    """

    densities = ("embedding_gaussian",)

    def noise_width(self, num_columns: int, hidden_size: int) -> int:
        return hidden_size

    def draw(self, support: Support, noise: Tensor, config: ThinkingConfig) -> Tensor:
        return support.probs

    def embedding_noise(self, noise: Tensor, config: ThinkingConfig) -> Tensor:
        """[N, D] float32 noise added to the embedding, from [N, D] Exponential(1) draws."""
        return (config.sigma * noises.normal(noise)).float()


MIXERS: dict[MixerName, Mixer] = {
    "discrete": Discrete(),
    "soft": Soft(),
    "gumbel": Gumbel(),
    "dirichlet": Dirichlet(),
    "gaussian": Gaussian(),
    "embedding_gaussian": EmbeddingGaussian(),
}


def check_density(policy: MixerName, density: DensityName | None) -> DensityName:
    """The density to train a policy with: its default where None is asked for.

    Raises:
        ValueError: The density is none of the policy's.
    """
    known = MIXERS[policy].densities
    if density is None:
        return known[0]
    if density not in known:
        raise ValueError(f"density={density!r}: policy {policy!r} has {list(known)}")
    return density


def invert_cdf(probs: Tensor, exponential: Tensor) -> Tensor:
    """Sample a column by inversion: [N, 1] int64 from probs [N, K] and Exponential(1) draws [N, 1].

    ``probs`` need not be normalised. A column of probability 0 is never returned. Where one is not
    finite some column is, so that the caller can look up what it likes and then say so.
    """
    cdf = probs.cumsum(-1)
    # Below 1 in float32 too, or rounding could step past the last column that has mass.
    u = noises.uniform(exponential.double()).clamp_max(1 - 2.0**-24).to(cdf.dtype)
    columns = torch.searchsorted(cdf, u * cdf[..., -1:], right=True).clamp_max(probs.shape[-1] - 1)
    # A CPU sums from left to right: its sums never fall, and stay where a probability is 0.
    return columns if probs.device.type == "cpu" else with_mass(probs, columns)


def with_mass(probs: Tensor, columns: Tensor) -> Tensor:
    """The columns [N, 1] that a search found in running sums, or the likeliest if one has no mass.

    A parallel scan (CUDA's) rounds each sum in its own way. It can fall by its rounding, and a
    search in it then stops, once in millions of draws, at a column of probability 0.
    """
    return torch.where(probs.gather(-1, columns) > 0, columns, probs.argmax(-1, keepdim=True))
