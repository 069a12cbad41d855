"""What a vLLM worker knows of its thinking requests: noise, phase, and what they were fed.

It is the same for every model runner of vLLM, and imports none of it. A request's state lives under
its id from its first step until vLLM says that it has finished, so it survives a preemption, after
which the request's positions are computed again from what is kept here. It is kept on the host:
whether a thought has ended is decided from text, so each step comes to the host anyway, and what
goes back is K numbers a row.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrpo.modeling.inputs import mix
from softgrpo.replay.logps import replay_logits
from softgrpo.rollout.request import Request
from softgrpo.rollout.vllm_plugin.fed import FedSteps
from softgrpo.rollout.vllm_plugin.wire import decode_request, encode_steps
from softgrpo.thinking.advance import advance
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.noise import NoiseStream
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers, ThinkingPhases, Tokenizer
from softgrpo.thinking.trace import Steps

_Kind = tuple[ThinkingConfig, Objective | None]


class Thought:
    """One request.

    It takes a number in the phases of all requests that may be drawn together, of its config and
    objective.
    """

    def __init__(self, request: Request, phases: ThinkingPhases, prompt_length: int) -> None:
        self.request, self.prompt_length = request, prompt_length
        self.phases, self.number = phases, phases.begin()
        num_columns = request.config.num_columns
        self.noise = NoiseStream(request.seed, request.index, num_columns)
        self.fed = FedSteps(num_columns)  # each step so far

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all steps so far: a step is drawn where they end."""
        return self.prompt_length + len(self.fed)


@dataclass(frozen=True)
class Drawn:
    """What n rows of one batch drew, all of the same settings."""

    rows: Tensor  # [n] int64, rows of the batch
    tokens: Tensor  # [n] int64, reported tokens
    ids: Tensor  # [n, C], the steps' records (see wire.encode_steps)
    values: Tensor  # [n, C]


class Thoughts:
    """The thinking requests of one worker, by id."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._thoughts: dict[str, Thought] = {}
        self._phases: dict[_Kind, ThinkingPhases] = {}
        self._markers = functools.lru_cache(maxsize=64)(
            lambda think_end: Markers(think_end, tokenizer)
        )

    def __len__(self) -> int:
        return len(self._thoughts)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._thoughts

    def finish(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended or were aborted."""
        for request_id in request_ids:
            thought = self._thoughts.pop(request_id, None)
            if thought is not None:
                thought.phases.end(thought.number)
                if not len(thought.phases):  # settings that nobody may ask for again
                    del self._phases[thought.request.config, thought.request.objective]

    def start(self, request_id: str, params: Any, prompt_length: int) -> None:
        """Take a request in; nothing happens when it does not think or is known already."""
        if request_id in self._thoughts:
            return
        seed = _seed_of(request_id) if params.seed is None else params.seed % 2**64
        request = decode_request(params, seed)
        if request is None:
            return
        if (request.config.answer_top_k or 0) > self._vocab_size:  # vLLM's own sampling lets it be
            request = request.under(replace(request.config, answer_top_k=None))
        key = request.config, request.objective
        if key not in self._phases:
            markers = self._markers(request.config.think_end)
            self._phases[key] = ThinkingPhases(markers, request.config)
        self._thoughts[request_id] = Thought(request, self._phases[key], prompt_length)

    def mix_inputs(
        self,
        embeddings: Tensor,
        embed: Callable[[Tensor], Tensor],
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        """Put mixtures where a batch's positions are soft steps, drawn just now or recomputed.

        Args:
            embeddings: [N, D], a batch's inputs, its requests one after the other; written.
            embed: Token ids -> embeddings.
            request_ids, starts, counts: [B] requests, first position and positions of each.
        """
        gathered: dict[int, tuple[list[int], FedSteps]] = {}
        offset = 0
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            thought = self._thoughts.get(request_id)
            if thought is not None and start + count > thought.prompt_length:
                fed, prompt_length = thought.fed, thought.prompt_length
                first = max(start, prompt_length)
                places, steps = gathered.setdefault(
                    fed.num_columns, ([], FedSteps(fed.num_columns))
                )
                places.extend(range(offset + first - start, offset + count))
                steps.extend(fed, first - prompt_length, start + count - prompt_length)
            offset += count
        for places, steps in gathered.values():
            indices, *mixed = steps.mixed()
            if len(indices):
                mixed = [np.array(places)[indices], *mixed]
                where, ids, weights = (
                    torch.from_numpy(x).to(embeddings.device, non_blocking=True) for x in mixed
                )
                embeddings[where] = mix(embed, ids, weights).to(embeddings.dtype)

    def draw(self, logits: Tensor, request_ids: Sequence[str], ends: Sequence[int]) -> list[Drawn]:
        """Draw the next step of each thinking request whose positions are all computed.

        Args:
            logits: [B, V] float, raw logits, a row a request; left as they are.
            request_ids: [B].
            ends: [B] position after the last one that was computed: a request in the middle of
                its prompt, or of a recomputation, draws nothing.

        Returns:
            One Drawn for each kind of settings.
        """
        groups: dict[ThinkingPhases, list[int]] = {}
        thoughts: dict[int, Thought] = {}
        for row, (request_id, end) in enumerate(zip(request_ids, ends, strict=True)):
            thought = self._thoughts.get(request_id)
            if thought is not None and end == thought.num_tokens:
                thoughts[row] = thought
                groups.setdefault(thought.phases, []).append(row)
        return [
            self._draw_group(logits, rows, [thoughts[row] for row in rows])
            for rows in groups.values()
        ]

    def _draw_group(self, logits: Tensor, rows: list[int], thoughts: list[Thought]) -> Drawn:
        request = thoughts[0].request
        index = torch.tensor(rows).to(logits.device, non_blocking=True)
        if len(rows) < len(logits):
            logits = logits.index_select(0, index)
        noise = torch.from_numpy(np.stack([thought.noise.next() for thought in thoughts]))
        step, is_soft = advance(
            logits,
            noise.to(logits.device, non_blocking=True),
            request.config,
            thoughts[0].phases,
            np.array([thought.number for thought in thoughts]),
        )
        logps = None
        if request.objective is not None:
            steps = Steps.of(step.ids, step.scores.float(), step.support, is_soft)
            logps = replay_logits(logits, steps, request.objective)
        ended_by = [thought.phases.ended_by(thought.number) for thought in thoughts]
        columns = encode_steps(step, is_soft, ended_by, logps, logits.shape[-1])
        # A mixture that is not finite would stay in the cache, in blocks that others get.
        is_mixed = (is_soft & torch.isfinite(step.entropy)).tolist()
        host = step.ids.int().cpu().numpy(), step.weights.float().cpu().numpy()
        for thought, *recorded in zip(thoughts, *host, is_mixed, strict=True):
            thought.fed.append(*recorded)
        return Drawn(index, step.ids[:, 0], *columns)


def _seed_of(request_id: str) -> int:
    """A seed for a request that has none: every worker that shares a model must draw the same."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big")
