"""vLLM where several processes train: each has an engine of its own, on its own device."""

from __future__ import annotations

import os

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import get_memory_node_info
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from softgrpo.rollout.vllm_processes import Device


class OwnDeviceExecutor(UniProcExecutor):
    """One worker, in this process, on the device that the launcher gave it.

    vLLM's ``external_launcher`` is the same, but its processes agree on the size of the key-value
    cache while they start: where one of them fails, the others would wait for it there.
    """

    def _distributed_args(self) -> tuple[str, int, int]:
        return "env://", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])


def make_groups() -> None:
    """Make the process groups that every vLLM wants; all processes must call it.

    Afterwards no process waits for another while its engine starts.
    """
    method, rank, local_rank = "env://", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, rank, method, local_rank, current_platform.dist_backend)
        ensure_model_parallel_initialized(1, 1)


def own_device() -> Device:
    """This process's. On a CPU the processes of a machine share what is free."""
    if current_platform.is_cpu():
        memory = get_memory_node_info()
        free = memory.available_memory // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return Device("cpu", memory.total_memory, free)
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(index)
    return Device(current_platform.get_device_name(index), total, free)
