"""One step of sequences that run together: who draws, who is forced, whose thinking ends.

Both engines call it. It knows thinking and no model: logits and noise come in, the step that is
recorded and fed back goes out. In between the step is read to the host once, since whether a
thought has ended is decided from text:

    draw ──> read ──> decide ──> settle
    device   to the host  host   device
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.rollout.transfer import upload
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.phases import ThinkingPhases
from softgrpo.thinking.step import SoftStep, draw_step, draw_token_from
from softgrpo.thinking.support import cut_support

# Columns looked at first for a nucleus, and how many times more where they do not hold it.
_NUCLEUS, _WIDER = 128, 16


@dataclass
class StepRecord:
    """A step of N sequences on the host, as it came: in one piece.

    Attributes:
        rows: [N, 2K + 2] float32, which holds every id below 2^24. K ids by falling weight, zeros
            behind a token; K scores, what was drawn, zeros at a token; how many columns, the first
            ones, are the support, 0 where forced; the entropy in nats, not finite where the logits
            were not.
        tokens: [N] int64, the reported tokens.
        is_soft: [N] bool.
        was_forced: [N] bool.
    """

    rows: np.ndarray
    tokens: np.ndarray
    is_soft: np.ndarray
    was_forced: np.ndarray

    @property
    def entropies(self) -> np.ndarray:
        """[N] float32."""
        return self.rows[:, -1]


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
    decide(record, config, phases, numbers)
    sent = upload(logits.device, **decisions(record))
    return settle(step, **sent), sent["is_soft"]


def order_of(thinks: np.ndarray) -> np.ndarray | None:
    """The rows that think, then the others; None where only one kind is there."""
    return None if thinks.all() or not thinks.any() else np.argsort(~thinks, kind="stable")


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
    step, is_held = _draw(logits, noise, config, thinks, order)
    record, is_held_here = _read(step, is_held)
    num_columns = _NUCLEUS
    while not is_held_here.all():  # a flat distribution: rare, and then once more for these rows
        num_columns *= _WIDER
        for is_thinking in (True, False):
            rows = (~is_held_here & (thinks == is_thinking)).nonzero()[0]
            if len(rows):
                own = config if is_thinking else config.answer
                is_held_here[rows] = _draw_again(
                    step, record, logits, noise, own, rows, num_columns
                )
    return step, record


def decide(
    record: StepRecord, config: ThinkingConfig, phases: ThinkingPhases, numbers: np.ndarray
) -> None:
    """Let the phases take notice of a step, and make one-hot in ``record`` what is a token."""
    progress = phases.update(numbers, record.tokens, record.entropies)
    # The step that ends the thinking is one-hot.
    record.is_soft = progress.was_thinking & ~progress.ended & (config.policy != "discrete")
    record.tokens, record.was_forced = progress.tokens, progress.was_forced
    ordinary = (~record.is_soft).nonzero()[0]
    if len(ordinary):
        record.rows[ordinary, :-1] = 0.0
        record.rows[ordinary, 0] = record.tokens[ordinary]
        record.rows[ordinary, -2] = ~record.was_forced[ordinary]


def decisions(record: StepRecord) -> dict[str, np.ndarray]:
    """What ``settle`` needs of a record, for ``upload``."""
    return {
        "tokens": record.tokens,
        "is_soft": record.is_soft,
        "was_forced": record.was_forced,
    }


def settle(step: SoftStep, tokens: Tensor, is_soft: Tensor, was_forced: Tensor) -> SoftStep:
    """A drawn step as it was decided: forced tokens put in, tokens one-hot on column 0.

    Args:
        step: As drawn; written.
        tokens: [N] int64, the reported tokens.
        is_soft: [N] bool.
        was_forced: [N] bool.
    """
    is_token = ~is_soft[:, None]
    step.ids[:, 0] = tokens
    step.ids[:, 1:].masked_fill_(is_token, 0)
    step.scores.masked_fill_(is_token, 0.0)
    step.weights.masked_fill_(is_token, 0.0)
    step.weights[:, :1].masked_fill_(is_token, 1.0)
    step.support.masked_fill_(is_token, False)
    step.support[:, 0] |= ~is_soft & ~was_forced
    if step.embedding_noise is not None:
        step.embedding_noise.masked_fill_(is_token, 0.0)
    return step


def _draw(
    logits: Tensor, noise: Tensor, config: ThinkingConfig, thinks: np.ndarray, order: Tensor | None
) -> tuple[SoftStep, Tensor]:
    """The step of every row, and is_held [N] bool: whether its nucleus was found."""
    if order is None and thinks.all():
        if config.policy == "discrete":
            return _draw_token(logits, config, noise)
        step = draw_step(logits, config, noise=noise)
        return step, torch.ones_like(step.support[:, 0])
    if order is None:
        step, is_held = _draw_token(logits, config.answer, noise[:, :1])
        return _widen(step, config, noise.shape[1]), is_held
    count = int(thinks.sum())
    parts = [
        _draw(logits.index_select(0, rows), noise.index_select(0, rows), config, kind, None)
        for rows, kind in (
            (order[:count], np.ones(count, dtype=bool)),
            (order[count:], np.zeros(len(order) - count, dtype=bool)),
        )
    ]
    back = torch.argsort(order)

    def merge(values: list[Tensor]) -> Tensor:
        return torch.cat(values).index_select(0, back)

    steps = [step for step, _ in parts]
    noises = [step.embedding_noise for step in steps if step.embedding_noise is not None]
    merged = SoftStep(
        ids=merge([step.ids for step in steps]),
        scores=merge([step.scores for step in steps]),
        weights=merge([step.weights for step in steps]),
        support=merge([step.support for step in steps]),
        entropy=merge([step.entropy for step in steps]),
        embedding_noise=merge(noises) if noises else None,
    )
    return merged, merge([is_held for _, is_held in parts])


def _join(step: SoftStep, is_held: Tensor) -> Tensor:
    """[N, 2K + 3] float32: the rows of a StepRecord, and is_held."""
    columns = (
        step.ids,
        step.scores,
        step.support.sum(-1, keepdim=True),
        step.entropy[:, None],
        is_held[:, None],
    )
    return torch.cat([column.float() for column in columns], dim=-1)


def _read(step: SoftStep, is_held: Tensor) -> tuple[StepRecord, np.ndarray]:
    """A step to the host, in one transfer."""
    host = _join(step, is_held).cpu().numpy()
    nothing = np.zeros(len(host), dtype=bool)
    record = StepRecord(host[:, :-1], host[:, 0].astype(np.int64), nothing, nothing)
    return record, host[:, -1] > 0


def _draw_again(
    step: SoftStep,
    record: StepRecord,
    logits: Tensor,
    noise: Tensor,
    config: ThinkingConfig,
    rows: np.ndarray,
    num_columns: int,
) -> np.ndarray:
    """Tokens of some rows from more columns, into step and record; which nuclei were found."""
    index = torch.from_numpy(rows).to(logits.device)
    again, is_held = _draw_token(
        logits.index_select(0, index), config, noise.index_select(0, index)[:, :1], num_columns
    )
    step.ids[index, :1] = again.ids
    step.entropy[index] = again.entropy
    read, is_held_here = _read(again, is_held)
    record.rows[rows, 0], record.tokens[rows] = read.tokens, read.tokens
    record.entropies[rows] = read.entropies
    return is_held_here


def _draw_token(
    logits: Tensor, config: ThinkingConfig, noise: Tensor, num_columns: int = _NUCLEUS
) -> tuple[SoftStep, Tensor]:
    """A token; a nucleus of the vocabulary is cut from its likeliest columns, which are sorted.

    Sorting all of them takes as long as the model does. Where these hold top_p of the mass, the
    nucleus is among them.

    Returns:
        The step, of one column, and is_held [N] bool: False where the columns did not hold top_p.
    """
    top_p = config.top_p
    is_nucleus = config.top_k is None and top_p != 1
    if not isinstance(top_p, float) or not is_nucleus or num_columns >= logits.shape[-1]:
        step = draw_step(logits, config, noise=noise)
        return step, torch.ones_like(step.support[:, 0])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / config.temperature
    values, ids = logits.topk(num_columns, dim=-1)
    probs = torch.exp(values - torch.logsumexp(logits, dim=-1, keepdim=True))
    support = cut_support(ids, probs, torch.ones_like(ids, dtype=torch.bool), config)
    # Where it is not finite, more columns would not make a number of it.
    return draw_token_from(support, noise), ~(probs.sum(-1) <= top_p)


def _widen(step: SoftStep, config: ThinkingConfig, noise_width: int) -> SoftStep:
    """A step of one column as one of K, the rest unused."""
    extra = 0 if config.policy == "discrete" else int(config.top_k or 1) - 1
    noise = None
    if config.policy == "embedding_gaussian":
        noise = torch.zeros(len(step.ids), noise_width, device=step.ids.device)

    def widen(x: Tensor) -> Tensor:
        return F.pad(x, (0, extra))

    return SoftStep(
        widen(step.ids),
        widen(step.scores),
        widen(step.weights),
        widen(step.support),
        step.entropy,
        noise,
    )
