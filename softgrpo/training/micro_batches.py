"""Batches with their traces: dealt out by length and prompt, and run in passes of so many tokens.

A batch here is TRL's: a dict of tensors with one row a sequence, and scalars that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.replay import Replayed
from softgrpo.thinking import SoftTrace, ThinkingConfig

Batch = dict[str, Any]
_TRACE_PREFIX = "trace_"
# Where completions have so many times the tokens of their prompts, several processes lose more by
# waiting for one another than they save by sharing prompts (simulated in the test).
_DWARFED = 4
# Losses whose normaliser is the number of sequences in a micro-batch (or holds it as a factor).
_MEANS_OVER_SEQUENCES = ("grpo", "sapo", "luspo", "dr_grpo")


def trace_columns(trace: SoftTrace) -> Batch:
    """A trace's tensors as entries of a batch, which TRL shuffles and splits like any other."""
    return {f"{_TRACE_PREFIX}{name}": value for name, value in trace.tensors().items()}


def model_inputs(batch: Batch, config: ThinkingConfig) -> dict[str, Any]:
    """A batch as the arguments of a model that replays (see ``add_replay``)."""
    tensors = {
        name.removeprefix(_TRACE_PREFIX): value
        for name, value in batch.items()
        if name.startswith(_TRACE_PREFIX)
    }
    return {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        "trace": SoftTrace(**tensors, settings=config.replay_settings()),
    }


def as_batch(input_ids: Tensor, attention_mask: Tensor, trace: SoftTrace) -> Batch:
    """The inverse of ``model_inputs``: the last columns, as many as a trace's, are completions."""
    start = input_ids.shape[1] - trace.num_steps
    return trace_columns(trace) | {
        "prompt_ids": input_ids[:, :start],
        "prompt_mask": attention_mask[:, :start],
        "completion_ids": input_ids[:, start:],
        "completion_mask": attention_mask[:, start:],
    }


def is_sum_over_sequences(trainer: Any) -> bool:
    """Whether an update's gradient is the same however its sequences are split.

    It is where each has its own share of the loss, and not where something is averaged over the
    tokens of a micro-batch.
    """
    return (
        trainer.loss_type != "bnpo"
        and trainer.top_entropy_quantile == 1.0
        and not trainer._entropy_bonus_enabled
    )


def weight_of_part(trainer: Any, num_sequences: int, num_all: int) -> float:
    """What the loss of some sequences of a micro-batch counts in that of all."""
    return num_sequences / num_all if trainer.loss_type in _MEANS_OVER_SEQUENCES else 1.0


def sharing_pays(batches: list[Batch]) -> bool:
    """Whether several processes should keep the sequences of a prompt together, to compute it once.

    They go through their batches in step, so each waits for the one with the longest sequences.
    """
    if len(batches[0]["prompt_ids"]) == 1:
        return False
    prompts = sum(int(batch["prompt_mask"].sum()) for batch in batches)
    return _DWARFED * prompts > sum(int(batch["completion_mask"].sum()) for batch in batches)


def deal_out(batches: list[Batch], num_together: int, keeps_prompts: bool) -> list[Batch]:
    """The sequences of some batches of one size, dealt out again, long ones first.

    So the n-th batches of all processes are alike in length, and the first one needs the most
    memory.

    Args:
        batches: Of updates whose gradient is a sum over sequences.
        num_together: So many consecutive ones are of one update, and exchange their sequences.
        keeps_prompts: Sequences of a prompt follow one another, at the place of the longest.
    """
    groups = (batches[i : i + num_together] for i in range(0, len(batches), num_together))
    return [batch for group in groups for batch in _deal_out_one_update(group, keeps_prompts)]


def _deal_out_one_update(batches: list[Batch], keeps_prompts: bool) -> list[Batch]:
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
    processes = [list(enumerate(rows)) for rows in sizes.tolist()]
    if not shares_prompts:  # sequences of one length pad each other least
        for rows in processes:
            rows.sort(key=lambda row: sum(row[1][1:]))

    def fit(start: int, end: int) -> bool:
        parts = ([size for _, size in rows[start:end]] for rows in processes)
        return all(num_tokens(part, shares_prompts) <= max_tokens for part in parts)

    bounds = [0]
    while bounds[-1] < count:
        start, end = bounds[-1], bounds[-1] + 1
        while end < count and fit(start, end + 1):
            end += 1
        bounds.append(end)
    return [
        [[row for row, _ in rows[start:end]] for start, end in pairwise(bounds)]
        for rows in processes
    ]


def num_tokens(sizes: list[list[int]], shares_prompts: bool) -> int:
    """Tokens of a pass through the model whose rows have these ``row_sizes``."""
    prompts, lengths, steps = zip(*sizes, strict=True)
    if shares_prompts:
        return sum(dict(zip(prompts, lengths, strict=True)).values()) + sum(steps)
    return len(sizes) * (max(lengths) + max(1, *steps))


def largest_pass(batch: Batch, passes: list[list[int]], shares_prompts: bool) -> int:
    """The most tokens that one of a batch's passes has."""
    sizes = row_sizes(batch).tolist()
    return max(num_tokens([sizes[row] for row in rows], shares_prompts) for rows in passes)


def take(batch: Batch, rows: list[int]) -> Batch:
    """These sequences, without the columns in which all of them are padded.

    A completion that is masked whole (``mask_truncated_completions``) is padding, and so is its
    trace. One column of completions is always left.
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


def in_passes(
    replay: Callable[[Batch], Replayed], batch: Batch, passes: list[list[int]]
) -> Replayed:
    """What ``replay`` says of a batch, asked pass by pass; all of its rows are in one of them."""
    parts = zip(*(replay(take(batch, rows)) for rows in passes), strict=True)
    num_steps = batch["completion_ids"].shape[1]
    return Replayed(*(_put_back(part, passes, num_steps) for part in parts))


def _put_back(parts: tuple[Tensor, ...], passes: list[list[int]], num_steps: int) -> Tensor:
    """[B, num_steps]: what the passes found, in the batch's order and padded with 0 again."""
    found = torch.cat([F.pad(part, (0, num_steps - part.shape[1])) for part in parts])
    order = torch.tensor([row for rows in passes for row in rows], device=found.device)
    return found[order.argsort()]


@contextmanager
def without_checkpointing(model: Any) -> Iterator[None]:
    """Let a model's layers keep their activations for the backward pass."""
    layers = [x for x in model.modules() if getattr(x, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
