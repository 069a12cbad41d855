"""What a run asks of each process, as plain numbers, and the tokens that come of it."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reference = Literal["none", "model", "adapter off"]
Checkpointing = Literal["all", "long", "none"]
Engine = Literal["transformers", "vllm", "vllm-server"]


@dataclass(frozen=True)
class Prompts:
    """What a plan asks of a run's prompts; lengths are in tokens."""

    count: int  # to train on
    longest: int  # those of the evaluation among them
    common: int  # what all that are trained on begin with

    @classmethod
    def of(cls, trained: Sequence[list[int]], others: Sequence[list[int]] = ()) -> Prompts:
        """Of tokenized prompts, those to train on and the others; at least one is trained on."""
        common = os.path.commonprefix([min(trained), max(trained)])
        return cls(len(trained), max(map(len, [*trained, *others])), len(common))


@dataclass(frozen=True)
class Job:
    """A run's numbers. Sequences and tokens are those of one process, where nothing else is said.

    Tokens are counted at most: prompts as the longest, completions at their limit.
    """

    processes: int = 1  # GPUs, or processes on a CPU
    is_sharded: bool = False  # FSDP2; else several processes are DDP
    is_cpu: bool = True
    updates: int = 1  # optimizer steps of the run
    rollouts: int = 1  # of the run

    sequences: int = 8  # of a rollout
    group: int = 8  # samples of a prompt
    micro_batch: int = 8  # sequences of a backward pass, budget aside
    micro_batches: int = 1  # backward passes of an update, budget aside
    prompt_tokens: int = 128
    common_tokens: int = 0  # what all prompts begin with
    completion_tokens: int = 256
    soft_share: float = 1.0  # of the steps that are soft, 0 to 1
    columns: int = 5  # ids that a step records, K
    noise_width: int = 0  # numbers of noise that it records beside them (embedding_gaussian)

    shares_prompts: bool = True  # packed rows in training
    train_batch_tokens: int | None = None  # most of a pass; None: no limit
    checkpointing: Checkpointing = "none"  # of all passes, of a sequence over the budget, or none
    reference: Reference = "none"  # its log-densities: by a second model, or with adapters off
    recomputes_old: bool = False  # the trainer computes the old log-densities anew

    engine: Engine = "transformers"
    rollout_batch_size: int = 128  # sequences decoded together
    rollout_batch_tokens: int | None = None  # positions of the cache; None: as many as they need
    rollout_copy_bytes: int = 0  # of a parameter of the copy that makes rollouts; 0: no copy
    is_prepacked: bool = False  # a CPU lays its weights out for a rollout
    vllm_share: float = 0.3  # of the device's memory, vllm_gpu_memory_utilization

    eval_sequences: int = 0  # of one evaluation, those of a process
    evaluations: int = 0  # of the run
    checkpoints: int = 1  # that lie on the disk at a time

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def pass_rows(self) -> int:
        """Sequences of the largest pass."""
        if self.train_batch_tokens is None:
            return self.micro_batch
        rows = range(1, self.micro_batch + 1)
        return max(1, bisect_right(rows, self.train_batch_tokens, key=self.tokens_of))

    @property
    def passes(self) -> int:
        """Backward passes of an update."""
        return self.micro_batches * math.ceil(self.micro_batch / self.pass_rows)

    @property
    def is_checkpointed(self) -> bool:
        """Whether the largest pass is."""
        budget = self.train_batch_tokens
        is_long = budget is not None and self.length > budget
        return self.checkpointing == "all" or (self.checkpointing == "long" and is_long)

    @property
    def replays(self) -> int:
        """Passes without gradient that a rollout's sequences go through."""
        return (self.reference != "none") + self.recomputes_old

    @property
    def update_tokens(self) -> int:
        """Tokens that an update's passes compute, at most."""
        return self.passes * self.tokens_of(self.pass_rows)

    def tokens_of(self, rows: int) -> int:
        """Tokens of a pass of so many sequences, at most."""
        if not self.shares_prompts:
            return rows * self.length
        own = self.prompt_tokens - self.common_tokens
        return self.common_tokens + self.prompts_of(rows) * own + rows * self.completion_tokens

    def prompts_of(self, rows: int) -> int:
        """Distinct prompts of so many sequences."""
        return math.ceil(rows / self.group)

    def cache_shape(self, sequences: int) -> tuple[int, int]:
        """Rows and columns of the key-value cache of a rollout; as ``rollout.cache.cache_size``."""
        longest, limit = self.length, self.rollout_batch_tokens or math.inf
        if sequences <= self.rollout_batch_size and longest * sequences <= limit:
            return sequences, longest
        rows, columns = min(self.rollout_batch_size, sequences), longest + longest // 4 + 1
        if limit < math.inf:
            rows = max(1, min(rows, int(limit) // columns))
        return rows, longest if rows == 1 else columns
