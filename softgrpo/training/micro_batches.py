"""A rollout's batches dealt out for the passes through the model: by length, prompt and tokens.

A batch here is TRL's: a dict of tensors with one row a sequence, and scalars that all share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


# Where completions are so many times as long as their prompts, processes that wait for one another
# lose more by keeping prompts together than sharing these saves (simulated in its test).
_DWARFED = 4


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


def plan_passes(batch: Batch, max_tokens: int, shares_prompts: bool) -> list[list[int]]:
    """The rows of each pass through the model, so that none has more than max_tokens.

    A sequence that is longer has a pass of its own. Where prompts are shared a pass has the tokens
    of its distinct prompts and of its completions; else those of its padded rows.
    """
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(tuple(row), len(numbers)) for row in batch["prompt_ids"].tolist()]
    prompt_lengths = batch["prompt_mask"].sum(1).tolist()
    lengths = batch["completion_mask"].sum(1).tolist()
    order = list(range(len(prompts)))
    if not shares_prompts:  # sequences of one length pad each other least
        order.sort(key=lambda row: prompt_lengths[row] + lengths[row])

    def num_tokens(rows: list[int]) -> int:
        if shares_prompts:
            distinct = {prompts[row]: prompt_lengths[row] for row in rows}
            return sum(distinct.values()) + sum(lengths[row] for row in rows)
        widest = max(prompt_lengths[row] for row in rows) + max(lengths[row] for row in rows)
        return len(rows) * widest

    passes: list[list[int]] = [[]]
    for row in order:
        if passes[-1] and num_tokens([*passes[-1], row]) > max_tokens:
            passes.append([])
        passes[-1].append(row)
    return passes


def in_passes(passes: list[list[int]], count: int) -> list[list[int]]:
    """The same rows in at least ``count`` passes: the largest are halved."""
    passes = list(passes)
    while len(passes) < count:
        largest = max(passes, key=len)
        place, middle = passes.index(largest), len(largest) // 2
        passes[place : place + 1] = [largest[:middle], largest[middle:]]
    return passes


def take(batch: Batch, rows: list[int]) -> Batch:
    """These sequences, without the columns in which all of them are padded."""
    index = torch.tensor(rows, device=batch["prompt_ids"].device)
    num_rows, num_steps = batch["completion_ids"].shape
    prompt = int(batch["prompt_mask"][index].sum(1).max())
    steps = int(batch["completion_mask"][index].sum(1).max())
    taken = dict(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != num_rows:
            continue
        part = value[index]
        if name in ("prompt_ids", "prompt_mask"):
            part = part[:, part.shape[1] - prompt :]
        elif part.dim() > 1 and part.shape[1] == num_steps:
            part = part[:, :steps]
        taken[name] = part
    return taken
