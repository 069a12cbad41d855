"""One step of sequences that run together: who draws, who is forced, whose thinking ends.

The engine in process and vLLM's worker call it, and it knows no model: logits and noise come in,
the step that is recorded and fed back goes out. In between the step is read to the host once, since
whether a thought has ended is decided from text:

    draw ──> read ──> decide ──> settle
    device   to the host  host   device
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.phases import ThinkingPhases
from softgrpo.thinking.step import SoftStep, draw_step, draw_token
from softgrpo.thinking.transfer import upload

# Columns looked at first for a nucleus, and how many times more where they do not hold it.
_NUCLEUS, _WIDER = 128, 16

# What a row has drawn: a soft token, a token, or nothing yet, since its nucleus was not found.
_SOFT, _TOKEN, _NOTHING = 1.0, 0.0, math.nan


@dataclass
class StepRecord:
    """A step of N sequences on the host, as it came: in one piece.

    Attributes:
        rows: [N, 2K + 3] float32, which holds every id below 2^24. K ids by falling weight, zeros
            behind a token; K scores, what was drawn, zeros at a token; how many columns, the first
            ones, are the support, 0 where forced; the entropy in nats, not finite where the logits
            were not; 1 where it is soft, 0 where it is a token.
        tokens: [N] int64, the reported tokens.
        changed: Rows that were decided to be something else than what was drawn.
    """

    rows: np.ndarray
    tokens: np.ndarray
    changed: list[int]

    @property
    def is_whole(self) -> bool:
        """Whether every row has drawn, and from finite logits: no factor is not a number."""
        return math.isfinite(self.rows[:, -2].dot(self.rows[:, -1]))

    @property
    def entropies(self) -> np.ndarray:
        """[N] float32."""
        return self.rows[:, -2]

    @property
    def is_soft(self) -> np.ndarray:
        """[N] bool."""
        return self.rows[:, -1] == _SOFT

    @property
    def was_forced(self) -> np.ndarray:
        """[N] bool."""
        return self.rows[:, -3] == 0


def advance(
    logits: Tensor,
    noise: Tensor,
    config: ThinkingConfig,
    phases: ThinkingPhases,
    numbers: np.ndarray,
) -> tuple[SoftStep, Tensor]:
    """Draw or force one step of every row, and let its phase take notice.

    Args:
        logits: [N, V] in any float dtype, raw logits of the next token.
        noise: [N, width] Exponential(1) draws.
        config: How to think and how to answer.
        phases: The sequences' phases; updated.
        numbers: [N] int64, the rows' numbers in ``phases``.

    Returns:
        The step, K columns wide, one-hot where it is a token; and is_soft [N] bool. Where logits
        are not finite the step's entropy is not either, and its ids mean nothing.
    """
    thinks = phases.is_thinking[numbers]
    order = order_of(thinks)
    sent = {} if order is None else upload(logits.device, order=order)
    step, record = draw(logits, noise, config, thinks, sent.get("order"))
    decide(record, phases, numbers)
    sent = upload(logits.device, is_soft=record.is_soft, **decisions(record))
    return settle(step, sent), sent["is_soft"]


def order_of(thinks: np.ndarray) -> np.ndarray | None:
    """The rows that think, then the others; None where only one kind is there."""
    if np.count_nonzero(thinks) in (0, len(thinks)):
        return None
    return np.argsort(~thinks, kind="stable")


def draw(
    logits: Tensor, noise: Tensor, config: ThinkingConfig, thinks: np.ndarray, order: Tensor | None
) -> tuple[SoftStep, StepRecord]:
    """Draw a step of every row and read it.

    Args:
        logits: [N, V] in any float dtype.
        noise: [N, width].
        config: How to think and how to answer.
        thinks: [N] bool.
        order: ``order_of`` it, on the device of the logits.

    Returns:
        The step as drawn, K columns wide, and what the host knows of it.
    """
    step, kinds = _draw(logits, noise, config, thinks, order)
    record = _read(step, kinds)
    if not record.is_whole:  # a flat distribution: rare, and then once more for these rows
        _draw_missing(step, record, logits, noise, config, thinks)
    return step, record


def decide(record: StepRecord, phases: ThinkingPhases, numbers: np.ndarray) -> None:
    """Let the phases take notice of a step, and put into ``record`` what they have changed."""
    progress = phases.update(numbers, record.tokens, record.entropies)
    record.tokens = progress.tokens
    # The step that ends the thinking is one-hot.
    record.changed = changed = progress.ended + progress.forced
    if changed:
        record.rows[changed, :-2] = 0.0
        record.rows[changed, 0] = record.tokens[changed]
        record.rows[progress.ended, -3] = 1.0
        record.rows[changed, -1] = _TOKEN


def decisions(record: StepRecord) -> dict[str, np.ndarray]:
    """What ``settle`` needs of a record, for ``upload``: nothing where nothing was changed."""
    if not record.changed:
        return {}
    changed = np.array(record.changed, dtype=np.int64)
    return {
        "changed": changed,
        "tokens": record.tokens[changed],
        "was_drawn": ~record.was_forced[changed],
    }


def settle(step: SoftStep, sent: dict[str, Tensor]) -> SoftStep:
    """A drawn step as it was decided: one-hot on column 0 in the rows that were changed.

    Args:
        step: As drawn; written.
        sent: The ``decisions``, on the device.
    """
    if "changed" in sent:
        rows = sent["changed"]
        step.ids.index_fill_(0, rows, 0)[:, 0].index_copy_(0, rows, sent["tokens"])
        step.scores.index_fill_(0, rows, 0.0)
        step.weights.index_fill_(0, rows, 0.0)[:, 0].index_fill_(0, rows, 1.0)
        step.support.index_fill_(0, rows, False)[:, 0].index_copy_(0, rows, sent["was_drawn"])
        if step.embedding_noise is not None:
            step.embedding_noise.index_fill_(0, rows, 0.0)
    return step


def _draw(
    logits: Tensor, noise: Tensor, config: ThinkingConfig, thinks: np.ndarray, order: Tensor | None
) -> tuple[SoftStep, Tensor]:
    """The step of every row, and its kind [N]: soft, a token, or nothing yet."""
    if order is None and thinks[0]:  # all are as the first
        if config.policy == "discrete":
            return _draw_token(logits, config, noise)
        step = draw_step(logits, config, noise=noise)
        return step, torch.full_like(step.entropy, _SOFT)
    if order is None:
        step, kinds = _draw_token(logits, config.answer, noise[:, :1])
        return _widen(step, config, noise.shape[1]), kinds
    count = np.count_nonzero(thinks)
    parts = [
        _draw(logits.index_select(0, rows), noise.index_select(0, rows), config, kind, None)
        for rows, kind in (
            (order[:count], thinks[thinks]),
            (order[count:], thinks[~thinks]),
        )
    ]
    back = torch.argsort(order)

    def merge(*values: Tensor) -> Tensor:
        return torch.cat(values).index_select(0, back)

    (first, first_kinds), (second, second_kinds) = parts
    merged: dict[str, Any] = {
        name: None if value is None else merge(value, getattr(second, name))
        for name, value in vars(first).items()
    }
    return SoftStep(**merged), merge(first_kinds, second_kinds)


def _join(step: SoftStep, kinds: Tensor) -> Tensor:
    """[N, 2K + 3] float32: the rows of a StepRecord."""
    columns = (
        step.ids,
        step.scores,
        step.support.sum(-1, keepdim=True),
        step.entropy[:, None],
        kinds[:, None],
    )
    return torch.cat([column.float() for column in columns], dim=-1)


def _read(step: SoftStep, kinds: Tensor) -> StepRecord:
    """A step to the host, in one transfer."""
    rows = _join(step, kinds).cpu().numpy()
    return StepRecord(rows, rows[:, 0].astype(np.int64), changed=[])


def _draw_missing(
    step: SoftStep,
    record: StepRecord,
    logits: Tensor,
    noise: Tensor,
    config: ThinkingConfig,
    thinks: np.ndarray,
) -> None:
    """Tokens of the rows that have drawn nothing, from more and more columns."""
    num_columns = _NUCLEUS
    while (is_missing := np.isnan(record.rows[:, -1])).any():
        num_columns *= _WIDER
        for kind, own in ((True, config), (False, config.answer)):
            rows = (is_missing & (thinks == kind)).nonzero()[0]
            if not len(rows):
                continue
            index = torch.from_numpy(rows).to(logits.device)
            variates = noise.index_select(0, index)[:, :1]
            again, kinds = _draw_token(logits.index_select(0, index), own, variates, num_columns)
            step.ids[index, :1] = again.ids
            step.entropy[index] = again.entropy
            read = _read(again, kinds)
            record.rows[rows, 0], record.tokens[rows] = read.tokens, read.tokens
            record.rows[rows, -2:] = read.rows[:, -2:]


def _draw_token(
    logits: Tensor, config: ThinkingConfig, noise: Tensor, num_columns: int = _NUCLEUS
) -> tuple[SoftStep, Tensor]:
    """A token, a step of one column, and its kind [N]: nothing where the columns were too few."""
    step, is_missing = draw_token(logits, config, noise, num_columns)
    kinds = torch.full_like(step.entropy, _TOKEN)
    return step, kinds if is_missing is None else kinds.masked_fill_(is_missing, _NOTHING)


def _widen(step: SoftStep, config: ThinkingConfig, noise_width: int) -> SoftStep:
    """A step of one column as one of K, the rest unused."""
    noise = None
    if config.policy == "embedding_gaussian":
        noise = torch.zeros(len(step.ids), noise_width, device=step.ids.device)
    ids, scores, weights, support = (
        F.pad(x, (0, config.num_columns - 1))
        for x in (step.ids, step.scores, step.weights, step.support)
    )
    return SoftStep(ids, scores, weights, support, step.entropy, noise)
