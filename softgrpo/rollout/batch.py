"""Sequences decoded together: prefill, one step after the other, bookkeeping, the trace.

The engine's inside. A step is drawn by softgrpo.thinking; here it is decided which rows draw, which
are forced, which have ended, and what the model is fed next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.replay.embeddings import mix
from softgrpo.replay.forward import position_ids
from softgrpo.replay.logps import Objective, replay_logits
from softgrpo.rollout.attention import grouped_attention
from softgrpo.rollout.cache import make_cache
from softgrpo.rollout.engine import NonFiniteLogitsError, Rollout
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.noise import NoiseStream
from softgrpo.thinking.phases import Markers, ThinkingPhase
from softgrpo.thinking.policies import POLICIES
from softgrpo.thinking.step import SoftStep, draw_step
from softgrpo.thinking.trace import SoftTrace

# A beginning that all prompts share (few-shot examples) is worth a forward of its own from here.
_MIN_SHARED = 16
# Rows are dropped from the cache, which copies it, once this share of them has finished.
_COMPACT_SHARE = 0.125


class DecodingBatch:
    """Sequences decoded together, from prefill to the last token.

    Args:
        model: A causal LM.
        prompts: Token ids, one list a sequence.
        config: How to think and how to answer.
        markers: The config's end markers under the model's tokenizer.
        eos_token_ids: Tokens that end a sequence.
        max_new_tokens: Limit of generated steps.
        seed: Seed of the rollout.
        first_sequence: Index of the first sequence in it.
        objective: The log-density to record with each step, or None.
    """

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        config: ThinkingConfig,
        *,
        markers: Markers,
        eos_token_ids: set[int],
        max_new_tokens: int,
        seed: int,
        first_sequence: int = 0,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.prompts, self.config = model, prompts, config
        self.eos_token_ids, self.objective = eos_token_ids, objective
        self.embedding = self.model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.max_new_tokens = max_new_tokens
        self.source = {"engine": "transformers", "seed": seed, "first_sequence": first_sequence}

        num_columns = 1 if config.policy == "discrete" else int(config.top_k or 1)
        hidden_size = self.embedding.weight.shape[1]
        width = POLICIES[config.policy].noise_width(num_columns, hidden_size)
        self.noise = [NoiseStream(seed, first_sequence + i, width) for i in range(len(prompts))]
        self.phases = [ThinkingPhase(markers, config) for _ in prompts]
        self._ended: set[int] = set()
        self.num_steps = 0
        self.lengths = [0] * len(prompts)
        self.stopped = [False] * len(prompts)
        size = (len(prompts), max_new_tokens)
        self.ids = torch.zeros(*size, num_columns, dtype=torch.int32, device=self.device)
        self.scores = torch.zeros(*size, num_columns, device=self.device)
        self.support = torch.zeros(*size, num_columns, dtype=torch.bool, device=self.device)
        self.is_soft = torch.zeros(*size, dtype=torch.bool, device=self.device)
        self.logps = torch.zeros(*size, device=self.device)
        self.embedding_noise: Tensor | None = None
        if config.policy == "embedding_gaussian":
            self.embedding_noise = torch.zeros(*size, hidden_size, device=self.device)

    def run(self, progress: Callable[[int], object] | None = None) -> Iterator[SoftStep]:
        """Decode until every sequence has ended; yields each step of the rows still running."""
        was_training = self.model.training
        self.model.eval()
        try:
            with grouped_attention(self.model):
                yield from self._decode(progress)
        finally:
            self.model.train(was_training)

    def _decode(self, progress: Callable[[int], object] | None) -> Iterator[SoftStep]:
        logits, cache, attention_mask = self._prefill()
        rows = list(range(len(self.prompts)))  # the sequence in each row of the cache
        while True:
            step = self._step(logits, rows)
            yield step
            tokens = step.ids[:, 0].tolist()
            finished = [
                row in self._ended or self._finish(row, token)
                for row, token in zip(rows, tokens, strict=True)
            ]
            newly = self._count_newly_ended(rows, finished)
            if progress is not None and newly:
                progress(newly)
            if all(finished):
                return
            inputs = mix(self.embedding, step.ids, step.weights, step.embedding_noise)
            if sum(finished) >= _COMPACT_SHARE * len(rows):
                keep = [i for i, done in enumerate(finished) if not done]
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                rows = [rows[i] for i in keep]
                inputs, attention_mask = inputs[index], attention_mask[index]
            attention_mask = torch.cat([attention_mask, attention_mask[:, -1:]], dim=1)
            logits = self._forward(cache, attention_mask, inputs_embeds=inputs[:, None])

    def _prefill(self) -> tuple[Tensor, Any, Tensor]:
        """Each distinct prompt once, what all of them begin with once, then a row a sequence."""
        distinct = list(dict.fromkeys(map(tuple, self.prompts)))
        shared = _shared_prefix(distinct)
        suffixes = [prompt[shared:] for prompt in distinct]
        longest = max(map(len, suffixes))
        cache = make_cache(self.model.config, shared + longest + self.max_new_tokens)
        if shared:
            prefix = torch.tensor([distinct[0][:shared]], device=self.device)
            self._forward(cache, torch.ones_like(prefix), input_ids=prefix)
            cache.batch_select_indices(torch.zeros(len(distinct), dtype=torch.long).to(self.device))
        ids = torch.zeros(len(distinct), longest, dtype=torch.long)
        mask = torch.zeros(len(distinct), shared + longest, dtype=torch.long)
        mask[:, :shared] = 1
        for i, suffix in enumerate(suffixes):
            ids[i, longest - len(suffix) :] = torch.tensor(suffix)
            mask[i, shared + longest - len(suffix) :] = 1
        mask = mask.to(self.device)
        logits = self._forward(cache, mask, input_ids=ids.to(self.device))
        where = {prompt: i for i, prompt in enumerate(distinct)}
        index = torch.tensor([where[tuple(prompt)] for prompt in self.prompts], device=self.device)
        if len(distinct) != len(self.prompts):
            cache.batch_select_indices(index)
        return logits[index], cache, mask[index]

    def _forward(self, cache: Any, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Last position's logits [rows, V]; the inputs are the end of attention_mask.

        The model itself is called, never a part of it: FSDP2 wants its root to run first.
        """
        (tokens,) = inputs.values()
        logits = self.model(
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask)[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        ).logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _step(self, logits: Tensor, rows: list[int]) -> SoftStep:
        """Draw, force or sample one step of every running row, and record it."""
        noise = torch.from_numpy(np.stack([self.noise[row].next() for row in rows]))
        noise = noise.to(self.device)
        phases = [self.phases[row] for row in rows]
        thinks = torch.tensor([phase.is_thinking for phase in phases], device=self.device)
        step = self._draw(logits, noise, thinks)
        self._check_finite(step)
        tokens = step.ids[:, 0].tolist()
        entropies = step.entropy.tolist()
        is_soft = thinks.clone() if self.config.policy != "discrete" else torch.zeros_like(thinks)
        was_forced = []
        for i, phase in enumerate(phases):
            if rows[i] in self._ended:
                continue  # still decoded, until its row is dropped
            if phase.forced:
                was_forced.append(i)
                step.ids[i, 0] = phase.forced.pop(0)
            elif phase.update(tokens[i], entropies[i]):
                is_soft[i] = False  # the step that ends the thinking is one-hot
        _make_one_hot(step, ~is_soft)
        step.support[was_forced] = False
        self._record(logits, step, is_soft, rows)
        return step

    def _draw(self, logits: Tensor, noise: Tensor, thinks: Tensor) -> SoftStep:
        config = self.config
        width = self.ids.shape[-1]
        if bool(thinks.all()):
            return draw_step(logits, config, noise=noise)
        tokens = draw_step(logits, config.answer, noise=noise[:, :1])
        step = _widen(tokens, width, self._noise_size)
        if not bool(thinks.any()):
            return step
        thought = draw_step(logits[thinks], config, noise=noise[thinks])
        for name in ("ids", "scores", "weights", "support", "entropy", "embedding_noise"):
            target, values = getattr(step, name), getattr(thought, name)
            if values is not None:
                target[thinks] = values.to(target.dtype)
        return step

    @property
    def _noise_size(self) -> int | None:
        return None if self.embedding_noise is None else self.embedding_noise.shape[-1]

    def _record(self, logits: Tensor, step: SoftStep, is_soft: Tensor, rows: list[int]) -> None:
        t = self.num_steps
        index = torch.tensor(rows, device=self.device)
        self.ids[index, t] = step.ids.int()
        self.scores[index, t] = step.scores.float()
        self.support[index, t] = step.support
        self.is_soft[index, t] = is_soft
        if self.embedding_noise is not None and step.embedding_noise is not None:
            self.embedding_noise[index, t] = step.embedding_noise
        if self.objective is not None:
            self.logps[index, t] = replay_logits(
                logits,
                step.ids,
                step.scores.float(),
                step.support,
                is_soft,
                self.objective,
                step.embedding_noise,
                self.embedding,
            ).float()
        self.num_steps += 1

    def _finish(self, row: int, token: int) -> bool:
        self.lengths[row] = self.num_steps
        self.stopped[row] = token in self.eos_token_ids
        return self.stopped[row] or self.num_steps == self.max_new_tokens

    def _count_newly_ended(self, rows: list[int], finished: list[bool]) -> int:
        ended = {row for row, done in zip(rows, finished, strict=True) if done}
        newly = len(ended - self._ended)
        self._ended |= ended
        return newly

    def _check_finite(self, step: SoftStep) -> None:
        if not bool(torch.isfinite(step.entropy).all()):
            raise NonFiniteLogitsError(
                f"the model's logits are not finite at generated step {self.num_steps + 1}"
            )

    def rollouts(self, decode: Callable[..., str]) -> list[Rollout]:
        """The finished sequences, in order; ``decode`` is the tokenizer's."""
        rollouts = []
        for row, length in enumerate(self.lengths):
            part = slice(row, row + 1), slice(0, length)
            noise = self.embedding_noise
            trace = SoftTrace(
                ids=self.ids[part].cpu(),
                scores=self.scores[part].cpu(),
                support=self.support[part].cpu(),
                is_soft=self.is_soft[part].cpu(),
                lengths=torch.tensor([length], dtype=torch.int32),
                embedding_noise=None if noise is None else noise[part].cpu(),
                settings=self.config.replay_settings(),
                source=self.source,
            )
            tokens = trace.tokens[0]
            rollouts.append(
                Rollout(
                    prompt_ids=self.prompts[row],
                    token_ids=tokens,
                    text=decode(tokens, skip_special_tokens=True),
                    trace=trace,
                    logps=None if self.objective is None else self.logps[part][0].tolist(),
                    finish_reason="stop" if self.stopped[row] else "length",
                    thinking_ended_by=self.phases[row].ended_by,
                )
            )
        return rollouts


def _shared_prefix(prompts: list[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, where worth sharing; at least one of each is left."""
    first, last = min(prompts), max(prompts)  # in lexicographic order these two differ the most
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _MIN_SHARED else 0


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


def _widen(step: SoftStep, num_columns: int, noise_size: int | None) -> SoftStep:
    """A step of one column as one of K, the rest unused."""
    count, extra = len(step.ids), num_columns - 1
    noise = None
    if noise_size is not None:
        noise = torch.zeros(count, noise_size, device=step.ids.device)

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
