"""Numbers of one process's rollouts, and of two that add up."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from softgrpo.thinking import SoftTrace
from softgrpo.training.metrics import gap_metrics, thinking_metrics
from tests.helpers import roll_out, thinking, tiny_model


def test_the_gap_is_that_of_the_steps():
    ours = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]])
    batch = {
        "sampling_per_token_logps": torch.tensor([[-1.5, -2.0, 9.0], [-2.0, 9.0, 9.0]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
    }
    found = gap_metrics(ours, batch, Accelerator(cpu=True))
    assert found == {"soft/logp_gap_max": 1.0, "soft/logp_gap_mean": 0.5}
    batch["completion_mask"].zero_()
    assert set(gap_metrics(ours, batch, Accelerator(cpu=True)).values()) == {0.0}


class _Twice:
    """Two processes with the same rollouts."""

    device = torch.device("cpu")

    def reduce(self, local, reduction):
        assert reduction == "sum"
        return 2 * local


@pytest.mark.parametrize("policy", ["gumbel", "discrete"])
def test_means_and_shares_do_not_depend_on_how_many_processes_there_are(policy):
    config = thinking(policy, max_think_tokens=4)
    rollouts = roll_out(tiny_model(), config)
    trace = SoftTrace.cat([rollout.trace for rollout in rollouts])
    alone, twice = (
        thinking_metrics(rollouts, trace, config, accelerator)
        for accelerator in (Accelerator(cpu=True), _Twice())
    )
    assert alone == pytest.approx(twice)
    share = float(trace.is_soft.sum() / trace.mask.sum())
    assert alone["soft/share_of_steps"] == pytest.approx(share)
    assert ("soft/effective_support" in alone) == (share > 0) == (policy == "gumbel")
    closed = [rollout.thinking_ended_by is not None for rollout in rollouts]
    assert alone["soft/thinking_closed"] == pytest.approx(sum(closed) / len(closed))
