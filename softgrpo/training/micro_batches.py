"""A rollout's batches dealt out for the passes through the model: by length, prompt and tokens.

A batch here is TRL's: a dict of tensors with one row a sequence, and scalars that all share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.thinking import SoftTrace, ThinkingConfig

Batch = dict[str, Any]
_TRACE_PREFIX = "trace_"
# Where completions are so many times as long as their prompts, processes that wait for one another
# lose more by keeping prompts together than sharing these saves (simulated in its test).
_DWARFED = 4


def trace_columns(trace: SoftTrace) -> Batch:
    """A trace's tensors as entries of a batch, which TRL shuffles and splits like any other."""
    return {f"{_TRACE_PREFIX}{name}": value for name, value in trace.tensors().items()}


def trace_of(batch: Batch, config: ThinkingConfig) -> SoftTrace:
    """The trace that a batch carries: the inverse of ``trace_columns``."""
    tensors = {
        name.removeprefix(_TRACE_PREFIX): value
        for name, value in batch.items()
        if name.startswith(_TRACE_PREFIX)
    }
    return SoftTrace(**tensors, settings=config.replay_settings())


def sharing_pays(batches: list[Batch]) -> bool:
    """Whether several processes should keep the sequences of a prompt together, to compute it once.

    They go through their batches in step, so each waits for the one whose sequences are longest.
    """
    if len(batches[0]["prompt_ids"]) == 1:
        return False
    prompts = sum(int(batch["prompt_mask"].sum()) for batch in batches)
    return _DWARFED * prompts > sum(int(batch["completion_mask"].sum()) for batch in batches)


def deal_out(batches: list[Batch], keeps_prompts: bool) -> list[Batch]:
    """The sequences of some batches of one size, dealt out again, long ones first.

    So the n-th batches of all processes are alike in length, and the first one needs the most
    memory.

    Args:
        batches: Of one update, whose gradient must be a sum over sequences.
        keeps_prompts: Sequences of a prompt follow one another, at the place of the longest.
    """
    prompts = [tuple(row) for batch in batches for row in batch["prompt_ids"].tolist()]
    lengths = torch.cat([b["prompt_mask"].sum(1) + b["completion_mask"].sum(1) for b in batches])
    keys = [(-length, prompt) for length, prompt in zip(lengths.tolist(), prompts, strict=True)]
    first: dict[tuple[int, ...], Any] = {}
    if keeps_prompts:
        for key in sorted(keys):
            first.setdefault(key[1], key)
    order = sorted(range(len(keys)), key=lambda i: (first.get(prompts[i], keys[i]), keys[i]))
    parts = torch.tensor(order).chunk(len(batches))
    dealt = [dict(batch) for batch in batches]
    for name, value in batches[0].items():
        if isinstance(value, Tensor) and value.dim():
            rows = torch.cat([batch[name] for batch in batches])
            for batch, part in zip(dealt, parts, strict=True):
                batch[name] = rows[part.to(rows.device)]
    return dealt


def row_sizes(batch: Batch) -> Tensor:
    """[B, 3] int64: which of the batch's prompts a row has, tokens of prompt and of completion."""
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(tuple(row), len(numbers)) for row in batch["prompt_ids"].tolist()]
    tokens = batch["prompt_mask"].sum(1)
    return torch.stack([tokens.new_tensor(prompts), tokens, batch["completion_mask"].sum(1)], dim=1)


def plan_passes(sizes: Tensor, max_tokens: int, shares_prompts: bool) -> list[list[list[int]]]:
    """The rows of each pass through the model, so that none has more than max_tokens.

    A sequence that is longer has a pass of its own. Where prompts are shared a pass has the tokens
    of its distinct prompts and of its completions; else those of its padded rows. A pass has as
    many rows in every process, for they meet in each: FSDP gathers shards, and TRL gathers metrics
    of every row.

    Args:
        sizes: [P, B, 3] int64, ``row_sizes`` of every process.
        max_tokens: The budget.
        shares_prompts: Whether a pass computes its prompts once.

    Returns:
        For each process its passes.
    """
    count = sizes.shape[1]
    processes = [[(i, *row) for i, row in enumerate(rows)] for rows in sizes.tolist()]
    if not shares_prompts:  # sequences of one length pad each other least
        for rows in processes:
            rows.sort(key=lambda row: row[2] + row[3])

    def fit(start: int, end: int) -> bool:
        parts = (rows[start:end] for rows in processes)
        return all(_num_tokens(part, shares_prompts) <= max_tokens for part in parts)

    bounds = [0]
    while bounds[-1] < count:
        start, end = bounds[-1], bounds[-1] + 1
        while end < count and fit(start, end + 1):
            end += 1
        bounds.append(end)
    return [
        [[row[0] for row in rows[start:end]] for start, end in pairwise(bounds)]
        for rows in processes
    ]


def num_tokens(batch: Batch, rows: list[int], shares_prompts: bool) -> int:
    """Tokens of a pass through the model, as ``plan_passes`` counts them."""
    sizes = row_sizes(batch).tolist()
    return _num_tokens([(row, *sizes[row]) for row in rows], shares_prompts)


def _num_tokens(rows: list[tuple[int, int, int, int]], shares_prompts: bool) -> int:
    if shares_prompts:
        prompts = {prompt: length for _, prompt, length, _ in rows}
        return sum(prompts.values()) + sum(row[3] for row in rows)
    return len(rows) * (max(row[2] for row in rows) + max(1, *(row[3] for row in rows)))


def take(batch: Batch, rows: list[int]) -> Batch:
    """These sequences, without the columns in which all of them are padded.

    A completion that is masked whole (``mask_truncated_completions``) is padding, its trace too; of
    sequences that have no other one column is left.
    """
    index = torch.tensor(rows, device=batch["prompt_ids"].device)
    num_rows, num_steps = batch["completion_ids"].shape
    prompt = int(batch["prompt_mask"][index].sum(1).max())
    steps = max(1, int(batch["completion_mask"][index].sum(1).max()))
    taken = dict(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != num_rows:
            continue
        part = value[index]
        if name in ("prompt_ids", "prompt_mask"):
            part = part[:, part.shape[1] - prompt :]
        elif name == f"{_TRACE_PREFIX}lengths":
            part = part.clamp(max=steps)
        elif part.dim() > 1 and part.shape[1] == num_steps:
            part = part[:, :steps]
        taken[name] = part
    return taken


def put_back(parts: Sequence[Tensor], passes: list[list[int]], num_steps: int) -> Tensor:
    """[B, num_steps]: what the passes found, in the batch's order and padded with 0 again.

    Args:
        parts: [rows, steps] of each pass.
        passes: The rows of each.
        num_steps: Steps of the batch.
    """
    found = torch.cat([F.pad(part, (0, num_steps - part.shape[1])) for part in parts])
    order = torch.tensor([row for rows in passes for row in rows], device=found.device)
    return found[order.argsort()]
