"""What a run asks of each process, as plain numbers, and the tokens that come of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

Reference = Literal["none", "model", "adapter off"]
Checkpointing = Literal["all", "long", "none"]
Engine = Literal["transformers", "vllm", "vllm-server"]


@dataclass(frozen=True)
class Job:
    """A run's numbers. Sequences and tokens are those of one process, where nothing else is said.

    Attributes:
        processes: GPUs, or processes on a CPU.
        is_sharded: FSDP2; else several processes are DDP.
        is_cpu: Whether it runs on processors.
        updates: Optimizer steps of the run.
        rollouts: Of the run.
        sequences: Of a rollout.
        group: Samples of a prompt.
        micro_batch: Sequences of a backward pass, budget aside.
        micro_batches: Backward passes of an update, budget aside.
        prompt_tokens: Of the longest prompt.
        common_tokens: What all prompts begin with.
        completion_tokens: Most of a completion.
        soft_share: Of the steps that are soft, 0 to 1.
        columns: Ids that a step records, K.
        noise_width: Numbers of noise that a step records beside them (``embedding_gaussian``).
        shares_prompts: Packed rows in training.
        train_batch_tokens: Most tokens of a pass; None: no limit.
        checkpointing: Which passes are checkpointed: all, those of one sequence over the budget,
            none.
        reference: Log-densities of a reference: none, by a second model, or with adapters off.
        recomputes_old: Whether the trainer computes the old log-densities anew.
        engine: What makes the rollouts.
        rollout_batch_size: Sequences decoded together.
        rollout_batch_tokens: Positions of the cache; None: as many as they need.
        rollout_copy_bytes: Bytes of a parameter of the copy that makes rollouts; 0: no copy.
        is_prepacked: Whether a CPU lays its weights out for a rollout.
        vllm_share: Of the device's memory, ``vllm_gpu_memory_utilization``.
        eval_sequences: Of one evaluation, all of them in one process.
        evaluations: How many of these the run makes.
        checkpoints: How many lie on the disk at a time.
    """

    processes: int = 1
    is_sharded: bool = False
    is_cpu: bool = True
    updates: int = 1
    rollouts: int = 1
    sequences: int = 8
    group: int = 8
    micro_batch: int = 8
    micro_batches: int = 1
    prompt_tokens: int = 128
    common_tokens: int = 0
    completion_tokens: int = 256
    soft_share: float = 1.0
    columns: int = 5
    noise_width: int = 0
    shares_prompts: bool = True
    train_batch_tokens: int | None = None
    checkpointing: Checkpointing = "none"
    reference: Reference = "none"
    recomputes_old: bool = False
    engine: Engine = "transformers"
    rollout_batch_size: int = 128
    rollout_batch_tokens: int | None = None
    rollout_copy_bytes: int = 0
    is_prepacked: bool = False
    vllm_share: float = 0.3
    eval_sequences: int = 0
    evaluations: int = 0
    checkpoints: int = 1

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
