"""What this machine does, measured in seconds: the numbers that devices.py otherwise guesses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from softgrpo.planning.devices import Device

# A product like those of a training pass: tokens, inputs, outputs.
_TOKENS, _WIDTH = 512, 1024
_COPIED = 2**24  # numbers in float32, more than a cache holds
_ROWS = 8  # of a decoding step
_LAYERS = 4


def measure(device: torch.device) -> Device:
    """Measure a device; the best of several turns, so that a neighbour's work counts least."""
    single, half = (_product(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    bandwidth = _bandwidth(device)
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        memory = torch.accelerator.get_memory_info(device)[1]
    return Device(
        memory=memory,
        half_flops=half,
        single_flops=single,
        bandwidth=bandwidth,
        training_share=1.0,
        decoding_share=min(1.0, _reading(device) / bandwidth),
        layer_seconds=_layer_seconds(device),
        is_measured=True,
    )


def _best(run: Callable[[], object], device: torch.device, turns: int = 7) -> float:
    """Seconds of the quickest turn; on a CPU those that its threads have worked.

    So the work of neighbours counts little.
    """
    seconds = []
    for _ in range(turns):
        start = _clock(device)
        run()
        seconds.append(_clock(device) - start)
    return min(seconds)


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a forward product and its two backward ones."""
    x, weight, gradient = (
        torch.randn(*size, device=device, dtype=dtype)
        for size in ((_TOKENS, _WIDTH), (_WIDTH, _WIDTH), (_TOKENS, _WIDTH))
    )

    def run() -> None:
        F.linear(x, weight)
        gradient @ weight
        gradient.T @ x

    return 3 * 2 * _TOKENS * _WIDTH**2 / _best(run, device)


def _bandwidth(device: torch.device) -> float:
    """Bytes/s of reading and writing."""
    source = torch.ones(_COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _reading(device: torch.device) -> float:
    """Bytes/s at which a product with few rows reads its weights."""
    weight = torch.randn(4 * _WIDTH, 4 * _WIDTH, device=device)
    x = torch.randn(1, 4 * _WIDTH, device=device)
    return weight.nbytes / _best(lambda: F.linear(x, weight), device)


@torch.no_grad()
def _layer_seconds(device: torch.device) -> float:
    """Of a decoder layer so small that its products take no time: its calls."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=_LAYERS,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model: Any = LlamaModel(config).eval()
    model.to(device)
    inputs = torch.zeros(_ROWS, 1, 64, device=device)
    seconds = _best(lambda: model(inputs_embeds=inputs, use_cache=False), device, turns=30)
    return seconds / _LAYERS
