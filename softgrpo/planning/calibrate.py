"""What this machine does, measured in seconds: the numbers that devices.py otherwise guesses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from softgrpo.planning import speed
from softgrpo.planning.devices import Device
from softgrpo.planning.shapes import Shape, shape_of

# A product like those of a training pass: tokens, inputs, outputs.
_TOKENS, _WIDTH = 512, 1024
_COPIED = 2**24  # numbers in float32, more than a cache holds
_ROWS = 16  # of a decoding step


def measure(device: torch.device) -> Device:
    """Measure a device; the best of several turns, so that a neighbour's work counts least."""
    single, half = (_product(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    rates = Device(
        memory=memory_of(device),
        half_flops=half,
        single_flops=single,
        bandwidth=_bandwidth(device),
        training_share=1.0,
        decoding_share=1.0,
        layer_seconds=_layer_seconds(device),
    )
    training, decoding = _training_share(device, rates), _decoding_share(device, rates)
    return replace(rates, training_share=training, decoding_share=decoding)


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory, of a CPU all of the machine's."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.accelerator.get_memory_info(device)[1]


def _best(run: Callable[[], object], device: torch.device, turns: int = 5) -> float:
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


def _training_share(device: torch.device, rates: Device) -> float:
    """Of a pass through the measured layers, forward and backward, what the model of it counts."""
    model, shape = _model(device)
    inputs = torch.zeros(1, _TOKENS, shape.hidden, device=device)

    def run() -> None:
        model(inputs_embeds=inputs, use_cache=False).last_hidden_state.sum().backward()
        model.zero_grad()

    flops = 3 * _TOKENS * speed.forward_flops(shape, _TOKENS / 2)
    moved = speed.PASSAGES * _TOKENS * shape.kept_bytes
    return speed.pass_seconds(flops, moved, shape, rates) / _best(run, device)


@torch.no_grad()
def _decoding_share(device: torch.device, rates: Device) -> float:
    """Of one token of some rows through the measured layers."""
    model, shape = _model(device)
    inputs = torch.zeros(_ROWS, 1, shape.hidden, device=device)
    seconds = _best(lambda: model(inputs_embeds=inputs, use_cache=False), device, turns=15)
    seconds -= shape.layers * rates.layer_seconds
    flops, moved = 2 * _ROWS * shape.multiplied, 4 * shape.multiplied
    return min(1.0, speed.step_seconds(flops, moved, shape, rates) / max(seconds, 1e-9))


@torch.no_grad()
def _layer_seconds(device: torch.device) -> float:
    """Of a decoder layer so small that its products take no time: its calls."""
    model, shape = _model(device, hidden_size=64, intermediate_size=64)
    inputs = torch.zeros(_ROWS, 1, shape.hidden, device=device)
    run = partial(model, inputs_embeds=inputs, use_cache=False)
    return _best(run, device, turns=15) / shape.layers


def _model(device: torch.device, **sizes: int) -> tuple[Any, Shape]:
    """Layers to be measured, more than a cache holds, and their shape."""
    from transformers import AutoModel, LlamaConfig

    values: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2560} | sizes
    values |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=8, num_hidden_layers=3, **values)
    return AutoModel.from_config(config).to(device), shape_of(config)
