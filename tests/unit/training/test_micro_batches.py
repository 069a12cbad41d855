"""Batches dealt out by prompt and by tokens: every sequence once, within the budget."""

from __future__ import annotations

import pytest
import torch

from softgrpo.replay import Replayed
from softgrpo.thinking import SoftTrace
from softgrpo.training.micro_batches import (
    as_batch,
    deal_out,
    in_passes,
    model_inputs,
    num_tokens,
    plan_passes,
    row_sizes,
    sharing_pays,
    take,
    trace_columns,
)
from tests.helpers import thinking

PROMPTS = [[3, 4, 5], [6], [3, 4, 5], [7, 8], [6], [7, 8]]
LENGTHS = [2, 5, 1, 3, 4, 2]


def _batch(prompts=PROMPTS, lengths=LENGTHS, width=6):
    """TRL's form: prompts padded at the left, completions at the right, a step's columns."""
    longest = max(map(len, prompts)) + 1  # nobody needs the first column
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    steps = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {
        "prompt_ids": torch.tensor(ids),
        "prompt_mask": (torch.tensor(ids) > 0).long(),
        "completion_ids": torch.arange(len(prompts) * width).view(len(prompts), width),
        "completion_mask": steps.long(),
        "advantages": torch.arange(len(prompts)).float(),
        "trace_scores": torch.randn(len(prompts), width, 3),
        "num_items_in_batch": torch.tensor(sum(lengths)),
        "old_per_token_logps": None,
    }


def _plan(batch, max_tokens, shares_prompts):
    (passes,) = plan_passes(row_sizes(batch)[None], max_tokens, shares_prompts)
    return passes


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("budget", [1, 8, 12, 17, 1000])
def test_every_sequence_has_one_pass_and_passes_keep_to_the_budget(budget, shares_prompts):
    passes = _plan(_batch(), budget, shares_prompts)
    assert sorted(row for rows in passes for row in rows) == list(range(6))
    for rows in passes:
        if shares_prompts:
            distinct = {tuple(PROMPTS[row]) for row in rows}
            tokens = sum(map(len, distinct)) + sum(LENGTHS[row] for row in rows)
        else:
            longest = max(len(PROMPTS[row]) for row in rows) + max(LENGTHS[row] for row in rows)
            tokens = len(rows) * longest
        assert tokens <= budget or len(rows) == 1


def test_a_shared_prompt_is_counted_once():
    batch = _batch([[3, 4, 5, 6]] * 3, [2, 2, 2])
    sizes = row_sizes(batch)[[0, 2]].tolist()
    assert num_tokens(sizes, shares_prompts=True) == 8
    assert num_tokens(sizes, shares_prompts=False) == 12
    assert _plan(batch, 10, shares_prompts=True) == [[0, 1, 2]]
    assert _plan(batch, 10, shares_prompts=False) == [[0], [1], [2]]


def test_without_sharing_the_like_lengths_go_together():
    batch = _batch([[3]] * 4, [6, 1, 6, 1])
    assert _plan(batch, 14, shares_prompts=False) == [[1, 3], [0, 2]]


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("budget", [1, 8, 12, 17, 1000])
def test_processes_have_as_many_rows_in_a_pass_and_all_keep_to_the_budget(budget, shares_prompts):
    batches = [_batch(), _batch([[3]] * 6, [1] * 6), _batch([[3, 4, 5]] * 6, [6, 0, 6, 0, 3, 3])]
    sizes = torch.stack([row_sizes(batch) for batch in batches])
    plans = plan_passes(sizes, budget, shares_prompts)
    counts = [[len(rows) for rows in passes] for passes in plans]
    assert counts[0] == counts[1] == counts[2]
    for batch, passes in zip(batches, plans, strict=True):
        assert sorted(row for rows in passes for row in rows) == list(range(6))
        for rows in passes:
            part = take(batch, rows)
            padded = part["prompt_ids"].numel() + part["completion_ids"].numel()
            distinct = {tuple(row) for row in part["prompt_ids"].tolist()}
            packed = sum(token > 0 for row in distinct for token in row)
            packed += int(part["completion_mask"].sum())
            assert (packed if shares_prompts else padded) <= budget or len(rows) == 1
    if budget == 1000:
        assert counts[0] == [6]


def test_a_part_keeps_its_rows_and_drops_columns_of_padding():
    batch = _batch()
    part = take(batch, [1, 4])
    assert part["prompt_ids"].tolist() == [[6], [6]]
    assert part["prompt_mask"].tolist() == [[1], [1]]
    for name in ("completion_ids", "completion_mask", "trace_scores"):
        assert torch.equal(part[name], batch[name][[1, 4], :5])
    assert part["advantages"].tolist() == [1, 4]
    assert part["num_items_in_batch"] == sum(LENGTHS)
    assert part["old_per_token_logps"] is None


def test_a_masked_completion_is_padding_and_one_column_is_left():
    batch = _batch()
    batch["trace_lengths"] = torch.tensor(LENGTHS)
    batch["completion_mask"][[0, 1]] = 0
    for rows, steps, lengths in ([0, 1], 1, [1, 1]), ([1, 2, 5], 2, [2, 1, 2]):
        part = take(batch, rows)
        assert part["completion_mask"].shape == part["completion_ids"].shape == (len(rows), steps)
        assert part["completion_mask"].sum(1).tolist() == [
            0 if row in (0, 1) else LENGTHS[row] for row in rows
        ]
        assert part["trace_scores"].shape == (len(rows), steps, 3)
        assert part["trace_lengths"].tolist() == lengths
    assert batch["trace_lengths"].tolist() == LENGTHS


def test_what_passes_find_comes_back_in_order():
    batch, passes = _batch(), [[5, 1], [0], [2, 4, 3]]
    found = in_passes(
        lambda b: Replayed(b["completion_ids"], b["trace_scores"][..., 0]), batch, passes
    )
    mask = batch["completion_mask"]
    assert torch.equal(found.logps * mask, batch["completion_ids"] * mask)
    assert torch.equal(found.entropies * mask, batch["trace_scores"][..., 0] * mask)


@pytest.mark.parametrize("keeps_prompts", [True, False])
def test_long_ones_come_first_samples_of_a_prompt_meet_and_every_row_stays_whole(keeps_prompts):
    batch = _batch()
    halves = [{k: v[i : i + 3] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
              for i in (0, 3)]  # fmt: skip
    dealt = deal_out(halves, 2, keeps_prompts)
    order = [int(row) for part in dealt for row in part["advantages"]]
    # With their prompts rows 1 and 4 have 6 and 5 tokens, 3 and 5 have 5 and 4, so have 0 and 2.
    assert order == ([1, 4, 3, 5, 0, 2] if keeps_prompts else [1, 4, 3, 0, 5, 2])
    for part in dealt:
        for row, index in enumerate(part["advantages"].long().tolist()):
            for name, value in batch.items():
                if torch.is_tensor(value) and value.dim():
                    assert torch.equal(part[name][row], value[index]), name


def test_sequences_stay_in_their_update():
    batch = _batch()
    pairs = [{k: v[i : i + 2] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
             for i in (0, 2, 4)]  # fmt: skip
    dealt = deal_out(pairs, 1, keeps_prompts=True)
    assert [part["advantages"].tolist() for part in dealt] == [[1, 0], [3, 2], [4, 5]]
    dealt = deal_out(pairs, 2, keeps_prompts=True)
    assert {int(x) for part in dealt[:2] for x in part["advantages"]} == {0, 1, 2, 3}
    assert dealt[2]["advantages"].tolist() == [4, 5]


def test_a_batch_and_the_inputs_of_a_model_are_each_other_s_inverse():
    config = thinking()
    trace = SoftTrace(
        ids=torch.randint(9, (6, 6, 3), dtype=torch.int32), scores=torch.randn(6, 6, 3),
        support=torch.rand(6, 6, 3) > 0.5, is_soft=torch.rand(6, 6) > 0.5,
        lengths=torch.tensor(LENGTHS, dtype=torch.int32), settings=config.replay_settings(),
    )  # fmt: skip
    kept = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    batch = {name: _batch()[name] for name in kept} | trace_columns(trace)
    again = as_batch(**model_inputs(batch, config))
    assert again.keys() == batch.keys()
    for name, value in batch.items():
        assert torch.equal(again[name], value), name


PROCESSES, PROMPTS_EACH, GENERATIONS = 8, 8, 8


def _rollouts(ratio, size, seed):
    """For each process its batches: log-normal completions, ``ratio`` times as long as prompts."""
    torch.manual_seed(seed)
    processes = []
    for _ in range(PROCESSES):
        prompts = [[3 + p] * int(torch.randint(5, 16, ())) for p in range(PROMPTS_EACH)]
        means = torch.randn(PROMPTS_EACH, 1) * 0.6  # prompts differ, and samples of a prompt more
        scales = (means + torch.randn(PROMPTS_EACH, GENERATIONS) * 0.8 - 0.5).exp()
        lengths = (10 * ratio * scales).long().clamp(1, 1500).flatten().tolist()
        rows = [prompt for prompt in prompts for _ in range(GENERATIONS)]
        whole = {
            name: value[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
            for name, value in _batch(rows, lengths, max(lengths)).items()
            if name in ("prompt_ids", "prompt_mask", "completion_mask")
        }
        parts = {name: value.split(size) for name, value in whole.items()}
        batches = zip(*parts.values(), strict=True)
        processes.append([dict(zip(parts, batch, strict=True)) for batch in batches])
    return processes


def _work(batch):
    """Tokens of a pass in which prompts are shared."""
    prompts = {tuple(prompt) for prompt in batch["prompt_ids"].tolist()}
    return sum(sum(map(bool, p)) for p in prompts) + int(batch["completion_mask"].sum())


def _together(processes):
    """Tokens that processes compute or wait for: in each pass as many as the busiest."""
    work = torch.tensor([[_work(batch) for batch in batches] for batches in processes])
    return int(work.max(0).values.sum())


def _by_prompt(batches):
    """How they were dealt out before: in the order of prompts, whatever the lengths."""
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    prompts = rows["prompt_ids"].tolist()
    order = torch.tensor(sorted(range(len(prompts)), key=prompts.__getitem__))
    parts = {name: value[order].chunk(len(batches)) for name, value in rows.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("ratio", [0.5, 2, 16])
def test_processes_in_step_wait_little_for_one_another(ratio, size):
    """Simulated: tokens of eight processes, as a multiple of what the mean one has to compute.

    Dealt out by prompt as before, as ``sharing_pays`` says, and the other way::

        completion / prompt     0.5               2                 16
        rows a batch       1    1.73 1.34 1.47    2.52 1.48 1.68    2.89 1.59 1.74
                           2    1.93 1.58 1.91    2.56 1.76 1.75    2.65 1.61 1.72
                           8    2.27 1.83 2.45    2.41 1.83 1.86    2.34 1.61 1.67

    What is left is that some processes have more to compute in all.
    """
    before, after, other = 0.0, 0.0, 0.0
    for seed in range(3):
        processes = _rollouts(ratio, size, seed)
        alone = [_by_prompt(batches) for batches in processes]
        mean = sum(_work(batch) for batches in alone for batch in batches) / PROCESSES
        pays = [sharing_pays(batches) for batches in processes]
        chosen = [deal_out(x, len(x), pay) for x, pay in zip(processes, pays, strict=True)]
        turned = [deal_out(x, len(x), not pay) for x, pay in zip(processes, pays, strict=True)]
        before += _together(alone) / mean / 3
        after += _together(chosen) / mean / 3
        other += _together(turned) / mean / 3
    assert after < 1.9 and before - after > 0.25
    assert after < other + 0.02
