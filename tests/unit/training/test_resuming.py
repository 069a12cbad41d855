"""A resumed run's order, rollouts and settings: the checkpoint's, or those of its config."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler
from trl.trainer.utils import RepeatSampler

from softgrpo.training.resuming import (
    EpochSampler,
    load_rollouts,
    restore_settings,
    save_rollouts,
    settings_of,
)


def test_the_order_of_an_epoch_does_not_depend_on_those_before():
    def sampler():
        return EpochSampler(RepeatSampler(range(12), mini_repeat_count=2, batch_size=3, seed=5))

    run, resumed = sampler(), sampler()
    orders = []
    for epoch in range(3):
        run.set_epoch(epoch)
        orders.append(list(run))
    resumed.set_epoch(2)
    assert list(resumed) == orders[2] and len(resumed) == len(orders[2]) == 24
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == list(RepeatSampler(range(12), mini_repeat_count=2, batch_size=3, seed=5))


def test_an_order_that_is_not_shuffled_stays():
    sampler = EpochSampler(RepeatSampler(range(4), mini_repeat_count=1, shuffle=False))
    sampler.set_epoch(3)
    assert list(sampler) == [0, 1, 2, 3]


def test_rollouts_are_read_as_they_were_written_by_each_process(tmp_path):
    total = torch.tensor(7)
    batches = [
        {"ids": ids, "total": total, "old": None}
        for ids in (torch.arange(6).view(2, 3)[:, ::2], torch.zeros(1, 3, dtype=torch.int64))
    ]
    save_rollouts(tmp_path, 0, 5, batches)
    save_rollouts(tmp_path, 1, 5, [])
    step, found = load_rollouts(tmp_path, 0, torch.device("cpu"))
    assert step == 5 and len(found) == 2
    for batch, wanted in zip(found, batches, strict=True):
        assert batch.keys() == wanted.keys() - {"old"}
        assert all(torch.equal(batch[name], wanted[name]) for name in batch)
    assert load_rollouts(tmp_path, 1, torch.device("cpu")) == (5, [])
    with pytest.raises(ValueError, match="rollouts_2.safetensors is missing"):
        load_rollouts(tmp_path, 2, torch.device("cpu"))


def _start(rate, steps, schedule="linear", **settings):
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, **settings)
    return optimizer, get_scheduler(schedule, optimizer, 1, steps)


def _train(optimizer, scheduler, steps):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))


def _resume(saved, optimizer, scheduler):
    settings = settings_of(optimizer)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    return restore_settings(optimizer, scheduler, settings)


def _rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_the_same_settings_go_on_exactly(schedule):
    first = _start(0.1, 9, schedule)
    saved = _train(*first, 4)
    second = _start(0.1, 9, schedule)
    assert _resume(saved, *second) is None
    assert second[0].state_dict()["param_groups"] == saved[0]["param_groups"]
    ends = [_train(*start, 3) for start in (first, second)]
    assert ends[0][1] == ends[1][1] and ends[0][0]["param_groups"] == ends[1][0]["param_groups"]


def test_a_longer_schedule_holds_from_the_next_step_on_and_is_told():
    saved = _train(*_start(0.1, 4), 4)
    optimizer, scheduler = _start(0.1, 8)
    whole = _start(0.1, 8)
    _train(*whole, 4)
    assert _resume(saved, optimizer, scheduler) == (_rates(whole[0])[0], 0.0)
    assert _rates(optimizer) == _rates(whole[0]) == scheduler.get_last_lr()
    _train(optimizer, scheduler, 2)
    _train(*whole, 2)
    assert _rates(optimizer) == _rates(whole[0])


def test_other_settings_hold_and_the_moments_stay():
    saved = _train(*_start(0.1, 8, betas=(0.9, 0.99), weight_decay=0.1), 4)
    optimizer, scheduler = _start(0.2, 8, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-6)
    assert _resume(saved, optimizer, scheduler) == pytest.approx((0.2 * 4 / 7, 0.1 * 4 / 7))
    first, second = optimizer.param_groups
    assert (first["betas"], first["weight_decay"], first["eps"]) == ((0.8, 0.9), 0.3, 1e-6)
    assert second["weight_decay"] == 0.0
    moment = optimizer.state[first["params"][0]]["exp_avg"]
    assert torch.equal(moment, saved[0]["state"][0]["exp_avg"])


def test_a_schedule_that_is_a_state_goes_on_from_it():
    optimizer, scheduler = _start(0.1, 8, "reduce_lr_on_plateau")
    assert isinstance(scheduler, ReduceLROnPlateau)
    optimizer.param_groups[0]["lr"] = 0.01
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = _start(0.1, 8, "reduce_lr_on_plateau")
    assert _resume(saved, *again) is None
    assert _rates(again[0]) == [0.01, 0.1]
