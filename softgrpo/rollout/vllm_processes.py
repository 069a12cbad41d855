"""The devices of several processes, which each have an engine. It knows no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Where a process's engine is to run.

    Attributes:
        name: As its driver calls it; ``cpu``.
        total: Its memory in bytes.
        free: Bytes of it that this process may still take. Processes on one CPU share them.
    """

    name: str
    total: int
    free: int


def check_devices(devices: Sequence[Device], share: float) -> None:
    """Refuse devices on which the same engine cannot run.

    Args:
        devices: Of all processes.
        share: ``gpu_memory_utilization``: of a device's memory, what an engine takes.

    Raises:
        ValueError: They are not alike, or one has too little memory left; names the processes.
    """
    first = devices[0]
    for rank, device in enumerate(devices):
        if (device.name, device.total) != (first.name, first.total):
            raise ValueError(
                f"engine='vllm': the processes' devices must be alike, but process {rank} has "
                f"{_shown(device)} and process 0 {_shown(first)}; start on devices of one kind, or "
                "use engine: transformers"
            )
    for rank, device in enumerate(devices):
        if share * device.total > device.free:
            raise ValueError(
                f"vllm_gpu_memory_utilization={share}: vLLM would take "
                f"{share * device.total / _GIB:.1f} GiB of process {rank}'s {_shown(device)}, of "
                f"which {device.free / _GIB:.1f} are free: at most "
                f"{int(100 * device.free / device.total) / 100} would do"
            )


def _shown(device: Device) -> str:
    return f"{device.name} ({device.total / _GIB:.1f} GiB)"
