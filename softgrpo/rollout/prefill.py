"""Prompts before the first step: each computed once, what all begin with once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgrpo.modeling.attention import narrow_layers
from softgrpo.modeling.inputs import position_ids
from softgrpo.rollout.cache import KeyValues, SlotCache

Prompt = tuple[int, ...]

# A beginning that all prompts share (few-shot examples) is worth a forward of its own from here.
_MIN_SHARED = 16


@dataclass(frozen=True)
class Prefilled:
    """A prompt that sequences may begin from."""

    logits: Tensor  # [V] of the first step
    states: KeyValues


class Prefill:
    """The prompts of some sequences, computed as they are asked for.

    Equal ones are computed once, and kept until the last sequence of them has begun. ``max_tokens``
    at a time bound the memory of their activations.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], max_tokens: int = 8192) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._device = model.get_input_embeddings().weight.device
        self._num_waiting = Counter(prompts)
        self._prefilled: dict[Prompt, Prefilled] = {}
        self._shared: KeyValues | None = None  # of the beginning that all prompts share

    def share_beginning(self) -> None:
        """Compute what all prompts begin with, once."""
        if narrow_layers(self._model.config.get_text_config()):
            return  # a window counts columns, also those between this and the end of its prompt
        prompts = list(self._num_waiting)
        shared = _shared_prefix(prompts)
        if shared:
            ids = torch.tensor([prompts[0][:shared]], device=self._device)
            cache = SlotCache(self._model.config, 1, shared)
            mask = torch.ones_like(ids)
            forward(self._model, cache, mask, position_ids(mask), input_ids=ids)
            self._shared = cache.extract(0, torch.arange(shared, device=self._device))

    def compute(self, prompts: Iterable[Prompt]) -> None:
        """Each of these once, as many together as the memory of activations allows."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prefilled]
        while new:
            count = max(1, self._max_tokens // max(map(len, new)))
            self._compute_together(new[:count])
            new = new[count:]

    def take(self, prompt: Prompt, count: int) -> Prefilled:
        """What ``count`` sequences of a prompt begin from; forgotten with the last of them."""
        prefilled = self._prefilled[prompt]
        self._num_waiting[prompt] -= count
        if not self._num_waiting[prompt]:
            del self._prefilled[prompt]
        return prefilled

    def _compute_together(self, prompts: list[Prompt]) -> None:
        shared = 0 if self._shared is None else self._shared[0][0].shape[1]
        longest = max(map(len, prompts)) - shared
        cache = SlotCache(self._model.config, len(prompts), shared + longest)
        if self._shared is not None:
            cache.append(self._shared, len(prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), shared + longest, dtype=torch.long)
        mask[:, :shared] = 1
        for i, prompt in enumerate(prompts):
            suffix = prompt[shared:]
            ids[i, longest - len(suffix) :] = torch.tensor(suffix)
            mask[i, shared + longest - len(suffix) :] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        positions = position_ids(mask)
        size = max(1, self._max_tokens // len(prompts))
        for part in ids.split(size, dim=1):
            begin, end = cache.window.end, cache.window.end + part.shape[1]
            logits = forward(
                self._model, cache, mask[:, :end], positions[:, begin:end], input_ids=part
            )
        columns = torch.arange(shared + longest, device=self._device)
        for i, prompt in enumerate(prompts):
            own = columns[shared + longest - (len(prompt) - shared) :]
            states = cache.extract(i, torch.cat([columns[:shared], own]))
            self._prefilled[prompt] = Prefilled(logits[i], states)


def forward(
    model: Any, cache: SlotCache, attention_mask: Tensor | None, positions: Tensor, **inputs: Tensor
) -> Tensor:
    """Last position's logits [rows, V]; attention_mask ends with the inputs, at ``positions``.

    Without a mask nothing is padded.

    The model itself is called, never a part of it: FSDP2 wants its root to run first.
    """
    (tokens,) = inputs.values()
    logits = model(
        attention_mask=attention_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    ).logits[:, -1]
    cache.advance(tokens.shape[1])
    return logits


def _shared_prefix(prompts: list[Prompt]) -> int:
    """Tokens that all prompts begin with, where worth sharing; at least one of each is left."""
    first, last = min(prompts), max(prompts)  # in lexicographic order these two differ the most
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _MIN_SHARED else 0
