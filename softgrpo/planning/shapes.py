"""The shape of a model: what its config alone says about its size, as plain numbers.

The model is built on the meta device, where tensors have shapes and no memory, so parameters are
counted and not computed from formulas, adapters too. What its layers keep for the backward pass is
counted as well: by what autograd would save, of a first layer and of each more. So a deep model
takes no longer than two layers do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

# Two lengths tell what grows with the tokens from what does not.
_LENGTHS = 64, 128


@dataclass(frozen=True)
class Shape:
    """A model's numbers. Counts are of parameters unless they say bytes."""

    parameters: int  # all of the model, its adapters aside
    trained: int  # with a gradient: the adapters with LoRA, else all but a frozen embedding
    adapters: int  # LoRA's own
    adapted: int  # features that the linear layers with adapters put out, of a token
    multiplied: int  # that every token is multiplied by: linear layers but the head, with adapters
    head: int  # the output head's weight
    packed: int  # that a CPU lays out for a rollout: linear layers, head and adapters too
    largest_layer: int  # of one decoder layer, which FSDP2 gathers at a time

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    widest: int  # features of the widest product inside a layer, the MLP's

    bytes_of_weights: int  # of a parameter as it is loaded
    bytes_of_adapters: int  # of an adapter's
    bytes_of_products: int  # of a number in which products are computed (autocast's)
    is_cast: bool  # whether autocast is on
    kept_bytes: int  # what a token's layers keep for the backward pass, without checkpointing
    attended_bytes: int  # of these, queries, keys and values with the attention's result
    casts_bytes: int  # what a pass keeps whatever its tokens: weights cast by autocast

    @property
    def weight_bytes(self) -> int:
        """All weights in one piece, adapters too."""
        return self.parameters * self.bytes_of_weights + self.adapters * self.bytes_of_adapters

    @property
    def trained_bytes(self) -> int:
        """Those that have a gradient; the gradient has as many."""
        each = self.bytes_of_adapters if self.adapters else self.bytes_of_weights
        return self.trained * each

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one position in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_of_products


def shape_of(
    config: Any,
    *,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    lora: Any = None,
    embeds_learn: bool = False,
    model: Any = None,
) -> Shape:
    """The shape of a causal LM.

    Args:
        config: transformers' config of it.
        dtype: Of its weights.
        autocast: The dtype that training casts products to, if it does.
        lora: peft's LoraConfig; None: all weights are trained.
        embeds_learn: Whether an input embedding that is not the head is trained (policy
            ``discrete``).
        model: The causal LM itself, with its adapters, where it is there; None: it is built, which
            takes half a second with LoRA.

    Raises:
        ValueError: The config describes no causal LM that can be looked through without weights, or
            none that takes these adapters.
    """
    try:
        model = model or _causal_lm(config, dtype, lora)
        kept, attended, casts = _kept(config, dtype, autocast, lora)
    except _LoraError as error:
        raise ValueError(f"lora: {error}") from error
    except Exception as error:  # whatever a config makes of the library that reads it
        raise ValueError(
            f"model: {type(config).__name__} cannot be looked through without its weights: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    text = config.get_text_config()
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    adapters = {id(p): p for name, p in model.named_parameters() if "lora_" in name}
    own = {id(p): p for p in model.parameters() if id(p) not in adapters}
    is_untied = embedding is not head
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    if is_untied and not embeds_learn:
        trained.pop(id(embedding), None)
    packed = _count(linear.weight for linear in _linears(model))
    heads = text.num_attention_heads
    return Shape(
        parameters=_count(own.values()),
        trained=_count(trained.values()),
        adapters=_count(adapters.values()),
        adapted=sum(m.out_features for layer in _layers(model) for m in _adapted(layer)),
        multiplied=packed - head.numel(),
        head=head.numel(),
        packed=packed,
        largest_layer=max(_count(layer.parameters()) for layer in _layers(model)),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=head.shape[0],
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        widest=max(m.out_features for layer in _layers(model) for m in _linears(layer)),
        bytes_of_weights=dtype.itemsize,
        bytes_of_adapters=next((p.itemsize for p in adapters.values()), dtype.itemsize),
        bytes_of_products=(autocast or dtype).itemsize,
        is_cast=autocast is not None,
        kept_bytes=kept,
        attended_bytes=attended,
        casts_bytes=casts,
    )


class _LoraError(Exception):
    """What peft says of a LoraConfig on a model."""


def _causal_lm(config: Any, dtype: torch.dtype, lora: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        model.train()
        if lora is None:
            return model
        from peft import get_peft_model

        try:
            return get_peft_model(model, lora).get_base_model()
        except Exception as error:
            raise _LoraError(error) from error


def _layers(model: Any) -> nn.ModuleList:
    """The decoder layers: the longest list of modules that there is."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (m for m in module.modules() if isinstance(m, nn.Linear))


def _adapted(module: nn.Module) -> Iterator[Any]:
    return (m for m in module.modules() if getattr(m, "lora_A", None))


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


# What autograd keeps ------------------------------------------------------------------------------
def _kept(
    config: Any, dtype: torch.dtype, autocast: torch.dtype | None, lora: Any
) -> tuple[int, ...]:
    """Bytes kept of a token, those of them by attention, and bytes that no token adds to."""
    if not _is_alike(lora):
        return _kept_of(_causal_lm(config, dtype, lora), dtype, autocast)
    one, two = (
        _kept_of(_causal_lm(_first_layers(config, count), dtype, lora), dtype, autocast)
        for count in (1, 2)
    )
    more = config.get_text_config().num_hidden_layers - 1
    return tuple(first + more * (both - first) for first, both in zip(one, two, strict=True))


def _is_alike(lora: Any) -> bool:
    """Whether adapters are put on every layer in the same way, and not on some by their numbers."""
    if lora is None:
        return True
    targets = lora.target_modules or ()
    is_pattern = isinstance(targets, str) and targets != "all-linear"
    if is_pattern or lora.layers_to_transform is not None or lora.rank_pattern:
        return False
    return isinstance(targets, str) or not any("." in name for name in targets)


def _first_layers(config: Any, count: int) -> Any:
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    return cut


def _kept_of(model: Any, dtype: torch.dtype, autocast: torch.dtype | None) -> tuple[int, int, int]:
    """As ``_kept``, of a model with so many layers as it has."""
    totals, attended = zip(*(_run(model, n, dtype, autocast) for n in _LENGTHS), strict=True)
    step = _LENGTHS[1] - _LENGTHS[0]
    each = (totals[1] - totals[0]) // step
    return each, (attended[1] - attended[0]) // step, max(0, totals[0] - each * _LENGTHS[0])


def _run(
    model: Any, length: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> tuple[int, int]:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, tuple[Any, int]] = {}  # the storage too, or its address would be given again
    mode = _Pretending(autocast)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    hidden = model.get_input_embeddings().weight.shape[1]
    inputs = torch.zeros(1, length, hidden, dtype=dtype, device="meta")
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), mode:
        output = model.base_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(size for _, size in kept.values()), mode.attended


class _Pretending(TorchFunctionMode):
    """Attention and autocast, which the meta device does not have.

    Attention keeps what every kernel without a matrix of scores keeps: its inputs and its result.
    """

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self._autocast = autocast
        self.attended = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            result = _Attention.apply(*(self._cast(x) for x in args[:3]))
            self.attended += sum(x.nbytes for x in args[:3]) + result.nbytes
            return result
        if func is F.linear:
            args = tuple(self._cast(x) for x in args)
        return func(*args, **(kwargs or {}))

    def _cast(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if self._autocast is None or tensor is None else tensor.to(self._autocast)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        # As kernels lay it out: what a model makes contiguous afterwards is so already.
        result = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        return result
