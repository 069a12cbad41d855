"""One step of sequences that run together: who draws, who is forced, whose thinking ends.

Both engines call it. It knows thinking and no model: logits and noise come in, the step that is
recorded and fed back goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.phases import ThinkingPhase
from softgrpo.thinking.step import SoftStep, draw_step

# Columns looked at first for a nucleus, and how many times more where they do not hold it.
_NUCLEUS, _WIDER = 128, 16


def advance(
    logits: Tensor, noise: Tensor, config: ThinkingConfig, phases: Sequence[ThinkingPhase]
) -> tuple[SoftStep, Tensor]:
    """Draw or force one step of every row, and let its phase take notice.

    Args:
        logits: [N, V] in any float dtype, raw logits of the next token.
        noise: [N, width] Exponential(1) draws.
        config: How to think and how to answer.
        phases: The N rows' phases; updated.

    Returns:
        The step, K columns wide, one-hot where it is a token; and is_soft [N] bool. Where logits
        are not finite the step's entropy is not either, and its ids mean nothing.
    """
    thinks = [phase.is_thinking for phase in phases]
    step = _draw(logits, noise, config, thinks)
    tokens, entropies = step.ids[:, 0].tolist(), step.entropy.tolist()
    is_soft = [config.policy != "discrete" and thinking for thinking in thinks]
    was_forced = []
    for row, phase in enumerate(phases):
        if phase.forced:
            was_forced.append(row)
            step.ids[row, 0] = phase.forced.pop(0)
        elif phase.update(tokens[row], entropies[row]):
            is_soft[row] = False  # the step that ends the thinking is one-hot
    soft = torch.tensor(is_soft, device=logits.device)
    if not all(is_soft):
        _make_one_hot(step, ~soft)
        step.support[was_forced] = False
    return step, soft


def _draw(logits: Tensor, noise: Tensor, config: ThinkingConfig, thinks: list[bool]) -> SoftStep:
    if all(thinks):
        if config.policy == "discrete":
            return _draw_token(logits, config, noise)
        return draw_step(logits, config, noise=noise)
    if not any(thinks):
        tokens = _draw_token(logits, config.answer, noise[:, :1])
        return _widen(tokens, config, noise.shape[1])
    thinking = torch.tensor(thinks, device=logits.device)
    rows, others = thinking.nonzero()[:, 0], (~thinking).nonzero()[:, 0]
    thought = _draw(logits[rows], noise[rows], config, [True] * len(rows))
    tokens = _draw_token(logits[others], config.answer, noise[others, :1])
    tokens = _widen(tokens, config, noise.shape[1])
    order = torch.argsort(torch.cat([rows, others]))

    def merge(name: str) -> Tensor:
        return torch.cat([getattr(thought, name), getattr(tokens, name)])[order]

    has_noise = thought.embedding_noise is not None
    return SoftStep(
        ids=merge("ids"),
        scores=merge("scores"),
        weights=merge("weights"),
        support=merge("support"),
        entropy=merge("entropy"),
        embedding_noise=merge("embedding_noise") if has_noise else None,
    )


def _draw_token(
    logits: Tensor, config: ThinkingConfig, noise: Tensor, num_columns: int = _NUCLEUS
) -> SoftStep:
    """A token; a nucleus of the vocabulary is cut from its likeliest columns, which are sorted.

    Sorting all of them takes as long as the model does. As many are taken as hold top_p of the
    mass, row by row; among them top_p is a larger share, and the nucleus and the draw are the same.
    """
    top_p = config.top_p
    is_nucleus = config.top_k is None and top_p != 1
    if not isinstance(top_p, float) or not is_nucleus or num_columns >= logits.shape[-1]:
        return draw_step(logits, config, noise=noise)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    temperature = torch.as_tensor(config.temperature, device=logits.device).reshape(-1, 1)
    values, ids = logits.topk(num_columns, dim=-1)
    log_total = torch.logsumexp(logits / temperature, dim=-1)
    mass = torch.exp(torch.logsumexp(values / temperature, dim=-1) - log_total)
    is_held = mass > top_p  # never where it is not finite
    share = torch.where(is_held, top_p / mass, 1.0)
    step = draw_step(values, replace(config, top_p=share), noise=noise)
    step = replace(step, ids=ids.gather(-1, step.ids))
    flat = (~is_held).nonzero()[:, 0]
    if len(flat):
        wider = _draw_token(logits[flat], config, noise[flat], num_columns * _WIDER)
        step.ids[flat], step.entropy[flat] = wider.ids, wider.entropy
    return step


def _make_one_hot(step: SoftStep, rows: Tensor) -> None:
    """Turn rows of a step into ordinary tokens on column 0, in place."""
    step.ids[:, 1:].masked_fill_(rows[:, None], 0)
    step.scores.masked_fill_(rows[:, None], 0.0)
    step.weights.masked_fill_(rows[:, None], 0.0)
    step.weights[:, 0].masked_fill_(rows, 1.0)
    step.support.masked_fill_(rows[:, None], False)
    step.support[:, 0].masked_fill_(rows, True)
    if step.embedding_noise is not None:
        step.embedding_noise.masked_fill_(rows[:, None], 0.0)


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
