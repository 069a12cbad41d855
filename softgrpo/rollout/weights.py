"""A model's whole weights, one at a time, as an engine that has a copy of the model takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from softgrpo.modeling.parameters import whole

_ADVICE = "write engine: transformers, or leave it out of the adapter's config"
# What activation checkpointing and torch.compile put between a module and its name.
_TRANSPARENT = {"_checkpoint_wrapped_module", "_orig_mod"}


def walk(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the plain model, whole, with LoRA in it, in the order of its modules.

    Where the model is sharded (FSDP2) every process must walk it to the end: a parameter is
    gathered when its turn comes, one at a time. The order is the same in all of them.

    LoRA is folded out of place, weight + scale * B @ A for each active adapter: the sum is computed
    in float32 (float64 where the weight is) and rounded once, to the weight's own dtype. A float32
    weight is what peft's ``merge_and_unload`` makes of it. The model itself is only read.

    Args:
        model: The causal LM, without the wrappers of DDP or PEFT; adapters may be in its layers.

    Yields:
        The name as in the plain model's ``named_parameters`` (of tied weights the first), and the
        tensor, where the parameter is; an unfolded one shares its memory.

    Raises:
        ValueError: As ``shapes``.
    """
    for name, parameter, layer in _parameters(model):
        weight = whole(parameter.detach())
        yield name, weight if layer is None else _folded(weight, layer)


def shapes(model: Any) -> dict[str, list[int]]:
    """The name and the whole shape of what ``walk`` will give, in its order; nothing is gathered.

    Raises:
        ValueError: An adapter other than LoRA on a linear layer or an embedding, or one that parts
            tied weights; names the module.
    """
    return {name: list(parameter.shape) for name, parameter, _ in _parameters(model)}


def shapes_by(config: Any, trust_remote_code: bool = False) -> dict[str, list[int]]:
    """The same of the model that a transformers config describes, without making its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return shapes(model)


def _parameters(model: Any) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Name, parameter, and the LoRA layer that is folded into it or None, each parameter once."""
    _check_ties(model)
    seen: set[int] = set()
    for name, parameter, layer in _of_module(model, ""):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter, layer


def _of_module(module: Any, prefix: str) -> Iterator[tuple[str, nn.Parameter, Any]]:
    if isinstance(module, ModulesToSaveWrapper):
        yield from _of_module(_served(module), prefix)
    elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        _check_layer(module, prefix)
        for name, parameter in module.get_base_layer().named_parameters():
            yield prefix + name, parameter, module if name == "weight" else None
    else:
        for name, parameter in module.named_parameters(recurse=False):
            yield prefix + name, parameter, None
        for name, child in module.named_children():
            yield from _of_module(child, prefix if name in _TRANSPARENT else f"{prefix}{name}.")


def _served(module: Any) -> Any:
    """The copy that ``modules_to_save`` trains in a module's place, else the module."""
    if isinstance(module, ModulesToSaveWrapper):
        active = module.active_adapters
        return module.modules_to_save[active[0]] if active else module.original_module
    return module


def _check_layer(layer: Any, prefix: str) -> None:
    name = prefix.rstrip(".")
    if type(layer) not in (lora.Linear, lora.Embedding):
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise ValueError(f"{name}: an adapter of {kind} cannot be folded into weights: {_ADVICE}")
    for adapter in layer.active_adapters:
        if adapter in layer.lora_variant:
            variant = type(layer.lora_variant[adapter]).__name__
            raise ValueError(f"{name}: {variant} cannot be folded into weights: {_ADVICE}")
        if layer.lora_bias.get(adapter):
            raise ValueError(f"{name}: lora_bias=True cannot be folded into weights: {_ADVICE}")


def _check_ties(model: Any) -> None:
    """A model whose config ties its two embeddings is served with one weight for both."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return
    ends = _served(model.get_input_embeddings()), _served(model.get_output_embeddings())
    has_adapter = any(isinstance(end, BaseTunerLayer) for end in ends)
    if has_adapter or ends[0].weight is not ends[1].weight:
        raise ValueError(
            "tie_word_embeddings: the input embedding and the output head are one weight in what "
            f"is served, and an adapter on one of them parts them: {_ADVICE}"
        )


@torch.no_grad()
def _folded(weight: Tensor, layer: Any) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(dtype)
    for adapter in layer.active_adapters:
        if adapter in layer.scaling and adapter not in layer.merged_adapters:
            total = total + _delta(layer, adapter, dtype)
    return total.to(weight.dtype)


def _delta(layer: Any, adapter: str, dtype: torch.dtype) -> Tensor:
    """What an adapter adds to the weight."""
    if isinstance(layer, lora.Embedding):
        a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        is_transposed = True
    else:
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        is_transposed = layer.fan_in_fan_out
    product = whole(b.detach()).to(dtype) @ whole(a.detach()).to(dtype)
    scaled: Tensor = product * layer.scaling[adapter]
    return scaled.T if is_transposed else scaled
