"""What a run will need, from numbers; and what this process really holds and may hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgrpo.training import memory
from softgrpo.training.memory import (
    gradient_bytes,
    group_limits,
    held,
    moment_bytes,
    more_activations,
    shortage,
)
from tests.helpers import run_processes

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "moments", "activations", "is_too_much"),
    [
        (20, 0, 0, False),
        (20, 4, 0, False),
        (20, 5, 0, True),
        (20, None, 0, False),
        (25, None, 0, True),
        (20, 2, 3, True),
    ],
)
def test_what_is_held_and_to_come_against_what_is_allowed(peak, moments, activations, is_too_much):
    moments = None if moments is None else moments * GIB
    message = shortage(peak * GIB, moments, activations * GIB, allowed=24 * GIB)
    assert (message is not None) is is_too_much
    if message:
        assert f"{peak}.0 GiB" in message and "24.0 GiB" in message
        assert ("unknown" in message) == (moments is None)


@pytest.mark.parametrize(
    ("num_bytes", "num_tokens", "expected"),
    [(100, 50, 100), (100, 100, 0), (100, 400, 0), (-5, 10, 0), (30, 80, 7)],
)
def test_larger_passes_need_more_in_proportion(num_bytes, num_tokens, expected):
    assert more_activations(num_bytes, num_tokens, max_tokens=100) == expected


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_moments_to_come_are_those_the_first_step_makes(name):
    kind, options = OPTIMIZERS[name]
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7).to(torch.bfloat16), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimizer = kind(model.parameters(), **options)
    for parameter in model[:2].parameters():
        parameter.grad = torch.ones_like(parameter)
    expected = moment_bytes(optimizer)
    assert gradient_bytes(optimizer) == 4 * (3 * 5 + 5) + 2 * (5 * 7 + 7)
    optimizer.step()
    tensors = [x for state in optimizer.state.values() for x in state.values() if x is not None]
    assert sum(x.nbytes for x in tensors if x.dim()) == expected
    assert moment_bytes(optimizer) == (expected if name == "sgd" else 0)


def test_of_another_optimizer_nothing_is_said():
    class Other(torch.optim.AdamW):
        pass

    for optimizer in (Other([nn.Parameter(torch.ones(3))]), torch.optim.Adagrad([torch.ones(3)])):
        assert moment_bytes(optimizer) is None


V1 = "4:cpu,cpuacct:/other\n3:memory:/jobs/a\n0::/\n"


def test_limits_are_those_of_every_group_above_of_both_versions(tmp_path):
    proc, mount = tmp_path / "proc/self", tmp_path / "sys/fs/cgroup"
    assert group_limits(tmp_path) == []
    proc.mkdir(parents=True)
    (mount / "memory/jobs/a").mkdir(parents=True)
    (proc / "cgroup").write_text(V1)
    (mount / "memory/jobs/a/memory.limit_in_bytes").write_text("300\n")
    (mount / "memory/jobs/memory.limit_in_bytes").write_text("200\n")
    (mount / "memory/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert sorted(group_limits(tmp_path)) == [200, 300, 2**63 - 4096]
    (mount / "user/job").mkdir(parents=True)
    (proc / "cgroup").write_text("0::/user/job\n")
    (mount / "user/job/memory.max").write_text("max\n")
    (mount / "user/memory.max").write_text("100\n")
    assert group_limits(tmp_path) == [100]
    (proc / "cgroup").write_text("0::/../seen/from/elsewhere\n")  # a container's own root
    (mount / "memory.max").write_text("50\n")
    assert group_limits(tmp_path) == [50]


HOLD = """
import torch
from softgrpo.training.memory import held
cpu = torch.device("cpu")
before, _ = held(cpu)
x = torch.ones(2**26)
during, _ = held(cpu)
del x
after, peak = held(cpu)
assert during - before > 250 * 2**20, (before, during)
assert after < before + 30 * 2**20 and peak > during - 2**20, (during, after, peak)
"""


@pytest.mark.skipif(held(torch.device("cpu")) is None, reason="no /proc/self/status")
def test_what_a_process_holds_and_has_held():
    run_processes(HOLD)


def test_a_launch_shares_the_machine(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_kibibytes", lambda _: {"MemAvailable": 80})
    monkeypatch.setattr(memory, "group_limits", lambda _: [1000, 240])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.allowed(cpu, now=10) == 90
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.allowed(cpu, now=10) == 50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert memory.allowed(cpu, now=25) == 30
