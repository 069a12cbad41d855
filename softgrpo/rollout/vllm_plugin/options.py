"""What vLLM must be started with for soft thinking, offline and as a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vllm
from vllm.platforms import current_platform

from softgrpo.rollout.vllm_plugin.versions import check_version
from softgrpo.rollout.vllm_plugin.wire import MAX_LOGPROBS

_HERE = __package__
# Whether a thought has ended is decided from text, on the host, before the next step may run.
_REQUIRED: dict[str, Any] = {
    "worker_cls": f"{_HERE}.worker.SoftWorker",
    "scheduler_cls": f"{_HERE}.scheduler.SoftScheduler",
    "logits_processors": [f"{_HERE}.validation:RequestValidator"],
    "enable_prompt_embeds": True,
    "async_scheduling": False,
    "pipeline_parallel_size": 1,
    "speculative_config": None,
    "enable_batch_sharded_sampling": False,
}
_DEFAULTS: dict[str, Any] = {"max_logprobs": MAX_LOGPROBS, "generation_config": "vllm"}
if current_platform.is_cpu():
    _DEFAULTS["gpu_memory_utilization"] = 0.3  # of the machine's memory; vLLM's own is nine tenths
    _DEFAULTS["block_size"] = 32  # vLLM's own, 128, is longer than most prompts: none were shared


def engine_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A user's engine arguments with those that soft thinking needs.

    Raises:
        ValueError: This vLLM has not been tested (says how to override), or is not there;
            an argument that soft thinking cannot be used with; names it.
    """
    check_version(vllm.__version__)
    for name, value in _REQUIRED.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name}={options[name]!r}: soft thinking needs {value!r}")
    return {**_DEFAULTS, **options, **_REQUIRED}


def server_arguments(arguments: Sequence[str]) -> list[str]:
    """What ``vllm serve`` needs beside a user's own arguments.

    Raises:
        ValueError: This vLLM has not been tested (says how to override), or is not there;
            an argument that soft thinking sets itself; names it.
    """
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
    for name in _REQUIRED:
        flag = name.replace("_", "-")
        if given & {f"--{flag}", f"--no-{flag}"}:
            raise ValueError(f"--{flag}: soft thinking sets it itself")
    needed: list[str] = []
    for name, value in engine_options({}).items():
        flag = name.replace("_", "-")
        if f"--{flag}" in given or value is None:
            continue
        if isinstance(value, bool):
            needed.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            needed += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return needed
