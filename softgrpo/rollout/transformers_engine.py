"""Soft-thinking rollouts in process, on any causal LM of transformers that ``check_model`` passes.

Sequences run together in a preallocated key-value cache; the next waiting ones take the places of
those that have ended; equal prompts share one prefill. A sequence's noise depends on the seed and
its index alone, so neither the batch nor its order changes what is drawn (the model's own rounding
may).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softgrpo.replay.head import check_model, whole
from softgrpo.rollout.batch import DecodingBatch
from softgrpo.rollout.cache import affordable_tokens, cache_size
from softgrpo.rollout.engine import (
    Rollout,
    RolloutEngine,
    check_requests,
    find_eos_token_ids,
)
from softgrpo.rollout.request import Request
from softgrpo.thinking.advance import StepRecord
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.mixers import MIXERS
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers


@dataclass(frozen=True)
class StreamedStep:
    """One step of one sequence as it is generated."""

    token: int  # reported token id
    ids: list[int]  # support token ids by falling weight (one at an ordinary token)
    weights: list[float]  # their weights
    is_soft: bool  # false at an ordinary or forced token
    is_forced: bool  # true at a token that was put there, not drawn


class TransformersEngine(RolloutEngine):
    """RolloutEngine over a transformers model in this process.

    On a CPU a second copy of the weights is held while it generates (see rollout.prepacked).

    Args:
        model: A causal LM; used as it is, in eval mode while generating.
        tokenizer: Its tokenizer.
        dtype: Generate with a copy of the model in this dtype (e.g. torch.bfloat16); ``sync``
            brings the copy up to date, from shards too. None: the model itself.
        device: Where that copy lives; None: where the model is.
        max_batch_size: Sequences decoded together; the others wait.
        max_batch_tokens: Positions of the key-value cache, which is its memory: fewer sequences are
            decoded together where it does not hold the longest of them that many times. Prompts
            being prefilled come on top. None: as many as max_batch_size sequences need, on an
            accelerator no more than seven tenths of its free memory hold.
        eos_token_ids: Tokens that end a sequence; None: the model's and the tokenizer's.

    Raises:
        ValueError: The model cannot be served (names the class and why).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        max_batch_size: int = 128,
        max_batch_tokens: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        check_model(model)
        self._source = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens
        declared = getattr(model.generation_config, "eos_token_id", None)
        self.eos_token_ids = (
            find_eos_token_ids(declared, tokenizer) if eos_token_ids is None else set(eos_token_ids)
        )
        self._copy = None if dtype is None else _cast_copy(model, dtype, device)
        self._markers = functools.cache(lambda think_end: Markers(think_end, tokenizer))

    @property
    def model(self) -> Any:
        """The model that generates: the one given, or its copy in the rollout dtype."""
        return self._source if self._copy is None else self._copy

    @property
    def context_length(self) -> int | None:
        """The most tokens of prompt and completion together; None where the model does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def sync(self) -> None:
        """Bring the rollout copy up to date with the model; nothing to do where there is none.

        Where the model is sharded every process must call it: the shards are gathered.
        """
        if self._copy is None:
            return
        for read in ("named_parameters", "named_buffers"):
            source = dict(getattr(self._source, read)())
            for name, value in getattr(self._copy, read)():
                value.copy_(whole(source[name]))

    @torch.no_grad()
    def run(
        self, requests: Sequence[Request], on_finished: Callable[[int, Rollout], object]
    ) -> None:
        """See RolloutEngine.run. Those of different settings run one group after the other.

        Raises:
            ValueError: Also where one sequence alone needs more than max_batch_tokens.
        """
        self._check(requests)
        groups: dict[tuple[ThinkingConfig, Objective | None], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault((request.config, request.objective), []).append(place)
        for places in groups.values():
            batch = self._batch([requests[place] for place in places])

            def finished(index: int, rollout: Rollout, places: list[int] = places) -> None:
                on_finished(places[index], rollout)

            for _ in batch.run(self.tokenizer.decode, finished):
                pass

    @torch.no_grad()
    def stream(
        self, prompt: Sequence[int], config: ThinkingConfig, *, max_new_tokens: int, seed: int = 0
    ) -> Iterator[StreamedStep]:
        """Generate one sequence and yield each step as soon as it is drawn."""
        requests = [Request(tuple(prompt), config, max_new_tokens, seed=seed)]
        self._check(requests)
        for record in self._batch(requests).run(self.tokenizer.decode):
            yield _streamed(record, config)

    def _check(self, requests: Sequence[Request]) -> None:
        vocab_size = self.model.get_output_embeddings().weight.shape[0]
        for config in dict.fromkeys(request.config for request in requests):
            config.check_vocabulary(vocab_size)
            self._markers(config.think_end)  # refuses what the tokenizer cannot produce
        check_requests(requests, self.context_length)

    def _batch(self, requests: Sequence[Request]) -> DecodingBatch:
        lengths = [len(request.prompt) + request.limit for request in requests]
        max_tokens = self.max_batch_tokens
        if max_tokens is None and (fitting := affordable_tokens(self.model)) is not None:
            max_tokens = max(fitting, *lengths)
        slots, capacity = cache_size(lengths, self.max_batch_size, max_tokens)
        return DecodingBatch(
            self.model,
            requests,
            markers=self._markers(requests[0].config.think_end),
            eos_token_ids=self.eos_token_ids,
            slots=slots,
            capacity=capacity,
        )


def _streamed(record: StepRecord, config: ThinkingConfig) -> StreamedStep:
    """The step of the one row that runs."""
    token, is_soft = int(record.tokens[0]), bool(record.is_soft[0])
    ids, weights = [token], [1.0]
    if is_soft:
        row = torch.from_numpy(record.rows[:1])
        columns, count = row.shape[1] // 2 - 1, int(row[0, -3])
        support = torch.arange(columns)[None] < count
        scores = row[:, columns : 2 * columns]
        ids = row[0, :count].int().tolist()
        weights = MIXERS[config.policy].weights(scores, support, config)[0, :count].tolist()
    return StreamedStep(token, ids, weights, is_soft, is_forced=bool(record.was_forced[0]))


def _cast_copy(model: Any, dtype: torch.dtype, device: torch.device | str | None) -> Any:
    """A copy in another dtype, without the forward that a trainer has put on the instance.

    Only parameters are cast, as in ``from_pretrained(dtype=...)``: buffers hold what must stay
    exact. RoPE's frequencies in bfloat16 would turn a token at a distance of 2,000 by radians.
    """
    kept = _kept_in_float32(model, dtype)
    copied: dict[int, Any] = {}  # what deepcopy takes for the copy of each parameter
    for name, parameter in model.named_parameters():
        own = torch.float32 if any(f".{part}." in f".{name}." for part in kept) else dtype
        value = torch.empty_like(parameter, dtype=own, device=device)
        value.copy_(parameter.detach())
        copied[id(parameter)] = nn.Parameter(value, requires_grad=False)
    patched = model.__dict__.pop("forward", None)
    try:
        return copy.deepcopy(model, copied).to(device=device).eval()
    finally:
        if patched is not None:
            model.forward = patched


def _kept_in_float32(model: Any, dtype: torch.dtype) -> set[str]:
    """Names of modules whose parameters transformers does not load in a half precision."""
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        return strict | set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return strict if dtype == torch.bfloat16 else set()
