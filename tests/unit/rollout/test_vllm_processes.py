"""Devices on which the engines of several processes cannot run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from softgrpo.rollout.vllm_processes import Device, check_devices

GIB = 2**30
GPU = Device("NVIDIA A100", 80 * GIB, 60 * GIB)


def test_devices_that_are_alike_and_have_room_will_do():
    check_devices([GPU, GPU, replace(GPU, free=24 * GIB)], share=0.3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(GPU, name="NVIDIA H100"), r"process 1 has NVIDIA H100 \(80.0 GiB\) and process 0"),
        (replace(GPU, total=40 * GIB), r"process 1 has NVIDIA A100 \(40.0 GiB\) and process 0"),
        (
            replace(GPU, free=23 * GIB),
            r"vllm_gpu_memory_utilization=0.3: .* 24.0 GiB of process 1's .* 23.0 are free: at "
            r"most 0.28 would do",
        ),
    ],
)
def test_others_are_refused_by_name(other, message):
    with pytest.raises(ValueError, match=message):
        check_devices([GPU, other], share=0.3)
