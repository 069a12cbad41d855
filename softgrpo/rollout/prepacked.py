"""Linear layers that keep their weights as the processor multiplies them.

On a CPU every product of a step first lays the weights out anew for its cache; with the few rows
that a decoding step has, that is a quarter of the time or more. Here each weight is laid out once a
rollout (by oneDNN, as torch.compile's frozen graphs have it), at the price of a second copy of the
weights while it lasts. It is the same product, up to the order of its sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Laying a model's weights out takes about as long as this many tokens win back.
WORTH_TOKENS = 512


@contextmanager
def prepacked(model: Any, num_tokens: int) -> Iterator[None]:
    """Let a model's linear layers multiply by laid out weights, where that pays.

    Args:
        model: Any module. Its weights must stay as they are while this lasts.
        num_tokens: Tokens that are to be generated, at most.
    """
    layers = [] if num_tokens < WORTH_TOKENS else [x for x in model.modules() if _can_pack(x)]
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.forward = partial(_multiply, packed, layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _multiply(packed: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _can_pack(module: nn.Module) -> bool:
    """Whether it is a plain linear layer, on a CPU, in a dtype that oneDNN multiplies natively."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight, has_bfloat16 = module.weight, torch.ops.mkldnn._is_mkldnn_bf16_supported
    return (
        type(weight) in (nn.Parameter, Tensor)  # no shard of one
        and weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or weight.dtype == torch.bfloat16 and has_bfloat16())
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not torch.is_autocast_enabled("cpu")  # which would have it multiply in another dtype
    )
