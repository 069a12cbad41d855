"""How a model thinks: one flat, frozen description of sampling, noise and when thinking ends.

It is not the training objective (which density, which loss): that is ``SofTGRPOConfig``. Every
default is the published SofT-GRPO setting (arXiv 2511.06411, Sec. 5 and Appendix) unless the field
says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from softgrpo.values import check_fields

MixerName = Literal["discrete", "soft", "gumbel", "dirichlet", "gaussian", "embedding_gaussian"]

# What a replay must know about the rollout: under other values it would rebuild other inputs or
# evaluate another density.
REPLAY_FIELDS = (
    "policy",
    "temperature",
    "tau",
    "prob_floor",
    "noise_clamp",
    "alpha",
    "sigma",
    "answer_temperature",
)

# Settings of which draw_step takes a value a row.
BY_ROW = ("temperature", "top_k", "top_p", "min_p", "tau")


@dataclass(frozen=True)
class ThinkingConfig:
    """Sampling of the thinking steps, of the answer, and the border between the two.

    Plain values, so that two of them can be compared and hashed. ``draw_step`` alone takes tensors
    [N] as well, a value a row, for ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``tau``.

    Attributes:
        policy: What a thinking step feeds the model.
            ``discrete``: one token, sampled. ``soft``: the mixture of the support's probabilities,
            no noise (Zhang et al. 2505.15778). ``gumbel``: Gumbel-Softmax weights (Eq. 9).
            ``dirichlet``: weights from Dirichlet(alpha * p). ``gaussian``: p + N(0, sigma^2),
            normalised. ``embedding_gaussian``: the mixture's embedding + N(0, sigma^2 I)
            (Butt et al. 2509.19170).
        temperature: Divides the logits of a thinking step, > 0.
        top_k: Columns kept first, in [1, V]. None: as published, 5, and the whole vocabulary for
            policy ``discrete``.
        top_p: Nucleus kept of those, in (0, 1]; the token that crosses top_p stays. None: as
            published, .95, and 1 for policy ``discrete``.
        min_p: Of those, drop what is less likely than min_p times the most likely, in [0, 1).
        tau: Gumbel-Softmax temperature, > 0 (policy ``gumbel``).
        prob_floor: Added to a probability before its logarithm when Gumbel noise is added to it
            (deviation [3] of the authors' code from the paper). 0 makes the draw exact.
        noise_clamp: Range to which Gumbel noise is clamped (deviation [2]); None leaves it alone.
        alpha: Concentration of policy ``dirichlet``, > 0.
        sigma: Standard deviation of policies ``gaussian`` (of a probability) and
            ``embedding_gaussian`` (of one entry of an embedding), > 0. Butt et al. take .33 times
            the root mean square entry of the embedding matrix for the latter.
        answer_temperature: As temperature, for the tokens after thinking.
        answer_top_k: As top_k, for the answer; None keeps the vocabulary.
        answer_top_p: As top_p, for the answer.
        answer_min_p: As min_p, for the answer.
        think_end: Strings that end the thinking, found in the decoded text however the tokenizer
            cuts them. The first is the one that is forced. Empty: the thinking ends only with the
            sequence.
        max_think_tokens: Thinking budget in steps, after which the marker is forced; None: none.
        cold_stop_entropy: Force the marker once the support's entropy (nats) has stayed below this
            for ``cold_stop_steps`` consecutive steps (Zhang et al., Sec. 3.3); None: never.
        cold_stop_steps: See cold_stop_entropy, >= 1.

    Raises:
        ValueError: A field is out of its range; the message names the field and what would do.
    """

    policy: MixerName = "gumbel"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float = 0.0
    tau: float = 0.1
    prob_floor: float = 1e-6
    noise_clamp: tuple[float, float] | None = (-1.5, 3.0)
    alpha: float = 1.0
    sigma: float = 0.05
    answer_temperature: float = 1.0
    answer_top_k: int | None = None
    answer_top_p: float = 1.0
    answer_min_p: float = 0.0
    think_end: tuple[str, ...] = ("</think>",)
    max_think_tokens: int | None = None
    cold_stop_entropy: float | None = None
    cold_stop_steps: int = 256

    def __post_init__(self) -> None:
        if self.policy not in get_args(MixerName):
            raise ValueError(f"policy={self.policy!r}: choose one of {list(get_args(MixerName))}")
        if self.top_k is None and self.policy != "discrete":
            object.__setattr__(self, "top_k", 5)
        if self.top_p is None:
            object.__setattr__(self, "top_p", 1.0 if self.policy == "discrete" else 0.95)
        if isinstance(self.think_end, str):
            object.__setattr__(self, "think_end", (self.think_end,))
        for name in ("think_end", "noise_clamp"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        by_row = [name for name in BY_ROW if isinstance(getattr(self, name), Tensor)]
        check_fields(self, except_for=by_row)
        if self.noise_clamp is not None:
            low, high = self.noise_clamp
            object.__setattr__(self, "noise_clamp", (float(low), float(high)))
            _require("noise_clamp", low < high, self.noise_clamp, "(low, high) with low < high")
        for name in by_row:
            value = getattr(self, name)
            _require(name, _all(value, torch.isfinite), value, "finite numbers")
        for prefix in ("", "answer_"):
            self._check_sampling(prefix)
        # Below, scores over tau leave the range of float32.
        least = "> 0, and no less than 1e-30 (the paper: 0.1)"
        _require("tau", _all(self.tau, lambda x: x >= 1e-30), self.tau, least)
        _require("alpha", self.alpha > 0, self.alpha, "> 0")
        _require("sigma", self.sigma > 0, self.sigma, "> 0")
        _require("prob_floor", 0 <= self.prob_floor < 1, self.prob_floor, "in [0, 1)")
        _require("cold_stop_steps", self.cold_stop_steps >= 1, self.cold_stop_steps, ">= 1")
        if self.max_think_tokens is not None:
            budget = self.max_think_tokens
            _require("max_think_tokens", budget >= 1, budget, ">= 1, or None for no budget")
        if self.cold_stop_entropy is not None:
            entropy = self.cold_stop_entropy
            _require("cold_stop_entropy", entropy > 0, entropy, "> 0 nats, or None")
        if not all(self.think_end):
            raise ValueError(f"think_end={self.think_end!r}: every marker must be a non-empty text")
        if not self.think_end and (self.max_think_tokens or self.cold_stop_entropy):
            raise ValueError("think_end=(): a budget or cold stop needs a marker to force")

    def _check_sampling(self, prefix: str) -> None:
        temperature, top_k = getattr(self, f"{prefix}temperature"), getattr(self, f"{prefix}top_k")
        top_p, min_p = getattr(self, f"{prefix}top_p"), getattr(self, f"{prefix}min_p")
        _require(f"{prefix}temperature", _all(temperature, lambda x: x > 0), temperature, "> 0")
        if top_k is not None:
            _require(f"{prefix}top_k", _all(top_k, lambda x: x >= 1), top_k, ">= 1")
        _require(f"{prefix}top_p", _all(top_p, lambda x: (x > 0) & (x <= 1)), top_p, "in (0, 1]")
        _require(f"{prefix}min_p", _all(min_p, lambda x: (x >= 0) & (x < 1)), min_p, "in [0, 1)")

    @cached_property
    def answer(self) -> ThinkingConfig:
        """The same config read as ordinary sampling: its steps are the answer's tokens."""
        return replace(
            self,
            policy="discrete",
            temperature=self.answer_temperature,
            top_k=self.answer_top_k,
            top_p=self.answer_top_p,
            min_p=self.answer_min_p,
        )

    def replay_settings(self) -> dict[str, object]:
        """Plain values (REPLAY_FIELDS) that travel with a trace and that its replay must share."""
        values = {name: getattr(self, name) for name in REPLAY_FIELDS}
        tensors = [name for name, value in values.items() if isinstance(value, Tensor)]
        if tensors:
            raise ValueError(f"{tensors}: a trace records one value, not one a row")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ValueError when a top_k exceeds the model's vocabulary."""
        for name in ("top_k", "answer_top_k"):
            value = getattr(self, name)
            if value is not None and not _all(value, lambda x: x <= vocab_size):
                raise ValueError(f"{name}={value}: the vocabulary has {vocab_size} tokens")

    def to_dict(self) -> dict[str, object]:
        """Plain values of every field, for a saved config."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _all(value: float | Tensor, holds) -> bool:  # noqa: ANN001
    return bool(torch.as_tensor(holds(value)).all())


def _require(name: str, holds: bool, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value}: must be {wanted}")
