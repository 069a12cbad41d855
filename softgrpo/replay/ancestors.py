"""Attention of a packed row: every token attends to its ancestors.

A matrix of who attends to whom has S x S elements, and attention under it costs as much. So
``AncestorMask`` is not a matrix. A model with sdpa attention passes it on like any mask; when it
reaches torch's attention, the row's tokens are laid out by sequence again, for that call alone (see
replay.layouts). This costs no more than the attention of the padded batch, and models need no
change. It is passed as the mask and not in a global, so that a checkpointed layer has it again in
the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.modeling.attention import narrow_layers
from softgrpo.modeling.kernels import product_dtype
from softgrpo.replay.layouts import Attend, choose_layout
from softgrpo.replay.packing import Packed, pack

_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class AncestorMask(Tensor):
    """A mask [1, 1, S, S] for F.scaled_dot_product_attention that is a layout, not a matrix.

    It has no values: anything else that a model computes from it raises NotImplementedError.
    """

    attention: Attend
    groups: int | None

    @staticmethod
    def of(packed: Packed, attention: Attend, groups: int | None = None) -> AncestorMask:
        """The mask of a row that attends by a layout.

        ``groups`` are the heads of keys and values where a model repeats them; None: it does not.
        """
        size = len(packed.source)
        one = torch.ones((), dtype=torch.bool, device=packed.source.device)
        mask = one.expand(1, 1, size, size).as_subclass(AncestorMask)
        mask.attention, mask.groups = attention, groups
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kwargs = dict(zip(_SDPA_ARGUMENTS, args, strict=False)) | kwargs
            mask = kwargs.pop("attn_mask")
            for implied in ("is_causal", "enable_gqa"):
                kwargs.pop(implied, None)
            return mask._attend(**kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            raise NotImplementedError(f"a mask of ancestors has no {func.__name__}")
        return result

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attention of query [1, H, S, D] to keys and values [1, H', S, D]: [1, H, S, D].

        With a mask, transformers' sdpa repeats keys and values for every head of a group. That is
        undone here, before they are laid out.
        """
        if self.groups is not None and key.shape[1] == query.shape[1] > self.groups:
            repeats = query.shape[1] // self.groups
            key, value = key[:, ::repeats], value[:, ::repeats]
        rows = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return self.attention(*rows, **options).transpose(0, 1)[None]


def packed_hidden(model: Any, inputs: Tensor, packed: Packed) -> Tensor:
    """Hidden states [S, D] of a row, by a causal LM with sdpa attention.

    ``inputs`` are the padded batch's, [B, L, D].
    """
    # transformers' sdpa repeats keys and values by this attribute of its layers. A model of another
    # kind may not have it.
    repeats = any(getattr(module, "num_key_value_groups", 1) > 1 for module in model.modules())
    groups = model.config.get_text_config().num_key_value_heads if repeats else None
    layout = choose_layout(packed, product_dtype(inputs.device, inputs.dtype))
    return model.base_model(
        inputs_embeds=inputs.flatten(0, 1)[packed.source][None],
        attention_mask=AncestorMask.of(packed, layout(packed), groups),
        position_ids=packed.positions[None],
        use_cache=False,
    ).last_hidden_state[0]


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Refuse a model whose attention takes no mask of ancestors.

    Its configuration is checked first. Then two sequences that begin alike are run both as a batch
    and as a packed row.

    Raises:
        ValueError: Names the attention implementation, the kind of layer, or what differs.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    implementation = config._attn_implementation
    if implementation != "sdpa":
        raise ValueError(
            f"share_prompts: attention {implementation!r} takes no mask of ancestors; load the "
            "model with attn_implementation sdpa, or set share_prompts: false"
        )
    if kinds := narrow_layers(config):
        raise ValueError(
            f"share_prompts: {name} has layers other than full attention ({kinds}): "
            "set share_prompts: false"
        )
    embedding = model.get_input_embeddings()
    count = min(embedding.weight.shape[0], 5)
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 4]], device=embedding.weight.device) % count
    packed = pack(ids, torch.ones_like(ids), 2)
    inputs = embedding(ids)
    was_training = model.training
    model.eval()
    try:
        expected = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        found = packed_hidden(model, inputs, packed)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"share_prompts: {name} takes no mask of ancestors ({error}): set share_prompts: false"
        ) from error
    finally:
        model.train(was_training)
    expected = expected.flatten(0, 1)[packed.source]
    difference = (found - expected).abs().max().item()
    tolerance = 1e-3 if found.dtype == torch.float32 else 0.1
    if not difference <= tolerance * (1 + expected.abs().max().item()):
        raise ValueError(
            f"share_prompts: {name} sees more than a token's ancestors (hidden states differ by "
            f"{difference:.3g}): set share_prompts: false"
        )
