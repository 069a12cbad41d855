"""How a model thinks: one flat, frozen description of sampling, noise and when thinking ends.

It is not the training objective (which density, which loss): that is ``SofTGRPOConfig``. What the
fields are, and their ranges, is in fields.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from softgrpo.thinking.fields import MixerName, ThinkingFields
from softgrpo.values import check_fields, is_all

# What a replay must know about the rollout: under other values it would rebuild other inputs or
# evaluate another density.
REPLAY_FIELDS = (
    "policy",
    "temperature",
    "tau",
    "min_weight",
    "prob_floor",
    "noise_clamp",
    "alpha",
    "sigma",
    "answer_temperature",
)

# Settings of which draw_step takes a value a row.
BY_ROW = ("temperature", "top_k", "top_p", "min_p", "tau")


@dataclass(frozen=True)
class ThinkingConfig(ThinkingFields):
    """Sampling of the thinking steps, of the answer, and the border between the two.

    Plain values, so that two of them can be compared and hashed. ``draw_step`` alone takes tensors
    [N] as well, a value a row, for ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``tau``.

    Attributes: See ThinkingFields. ``top_k`` and ``top_p`` of None become the policy's default, and
    a list becomes a tuple.

    Raises:
        ValueError: A field is out of its range; the message names the field and what would do.
    """

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
        for name in by_row:
            if not is_all(torch.isfinite(value := getattr(self, name))):
                raise ValueError(f"{name}={value}: must be finite numbers")
        check_fields(self, any_type=by_row)
        if self.noise_clamp is not None:
            low, high = self.noise_clamp
            object.__setattr__(self, "noise_clamp", (float(low), float(high)))
        if not all(self.think_end):
            raise ValueError(f"think_end={self.think_end!r}: every marker must be a non-empty text")
        if not self.think_end and (self.max_think_tokens or self.cold_stop_entropy):
            raise ValueError("think_end=(): a budget or cold stop needs a marker to force")

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

    @property
    def num_columns(self) -> int:
        """K, the columns of a recorded step: one where each is a token."""
        return 1 if self.policy == "discrete" else int(self.top_k or 1)

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
            if value is not None and not is_all(value <= vocab_size):
                raise ValueError(f"{name}={value}: the vocabulary has {vocab_size} tokens")

    def to_dict(self) -> dict[str, object]:
        """Plain values of every field, for a saved config."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
