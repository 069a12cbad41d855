"""When a copy of the model makes the rollouts, and in which dtype."""

from __future__ import annotations

import pytest
import torch

from softgrpo.training.engines import DTYPES, rollout_dtype

FULL, HALF, FP16 = torch.float32, torch.bfloat16, torch.float16
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("weights", "autocast", "device", "expected"),
    [
        (FULL, HALF, GPU, HALF),
        (FULL, FP16, GPU, FP16),
        (FULL, None, GPU, None),
        (HALF, HALF, GPU, None),
        (FULL, HALF, CPU, None),
        (HALF, None, CPU, None),
    ],
)
def test_auto_is_a_copy_where_an_accelerator_would_cast_every_step(
    weights, autocast, device, expected
):
    assert rollout_dtype("auto", weights, autocast, device, is_sharded=False) == expected
    whole = weights if expected is None else expected
    assert rollout_dtype("auto", weights, autocast, device, is_sharded=True) == whole


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("weights", [FULL, HALF])
def test_what_is_set_holds(weights, device):
    assert rollout_dtype("model", weights, HALF, device, is_sharded=False) is None
    assert rollout_dtype("model", weights, HALF, device, is_sharded=True) == weights
    for name, dtype in DTYPES.items():
        for is_sharded in (False, True):
            assert rollout_dtype(name, weights, HALF, device, is_sharded) == dtype
