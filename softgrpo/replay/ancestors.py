"""Attention of a packed row: every token attends to its ancestors.

As a matrix this mask has S x S elements, and attention under it costs S x S, however little of it
is ancestry. With sdpa it is therefore no matrix: ``AncestorMask`` is handed through the model like
any mask, and where it reaches torch's attention the row's tokens are laid out by sequence again,
for the attention alone: distinct prompts among themselves, completions over prompt and completion.
That costs no more than the padded batch's attention, and no model needs to know. (It travels as the
mask, not in a global, so that a checkpointed layer meets it again in the backward pass.) Eager
attention adds the matrix to its scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.replay.packing import Packed, pack

# Queries of a completion taken together. Keys after a block's last query are left out, so that long
# completions cost little more than half of their square.
_BLOCK = 256
_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class AncestorMask(Tensor):
    """A mask [1, 1, S, S] for F.scaled_dot_product_attention that is a layout, not a matrix.

    Anything else a model computes from it raises NotImplementedError: its values are not there.
    """

    ancestry: _Layout

    @staticmethod
    def of(packed: Packed, groups: int | None = None) -> AncestorMask:
        """The mask of a packed row, for a model that repeats that many heads of keys and values."""
        size = len(packed.source)
        one = torch.ones((), dtype=torch.bool, device=packed.source.device)
        mask = one.expand(1, 1, size, size).as_subclass(AncestorMask)
        mask.ancestry = _Layout.of(packed, groups)
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kwargs = dict(zip(_SDPA_ARGUMENTS, args, strict=False)) | kwargs
            layout = kwargs.pop("attn_mask").ancestry
            kwargs.pop("is_causal", None)
            return layout.attend(**kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            raise NotImplementedError(f"a mask of ancestors has no {func.__name__}")
        return result


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a packed row stand while they attend.

    Attributes:
        prompts: [G, P] int64, the packed tokens of the distinct prompts; padded at the right, where
            a causal mask hides it.
        completions: [B, T] int64, those of the completions; padded at the right.
        paths: [B, M] int64, those of prompt and completion together.
        seen: For every block of ``_BLOCK`` completion tokens [B, 1, block, keys] bool.
        places: [S] int64, where each token's result stands among prompts and completions.
        groups: Heads of keys and values that are not repetitions; None: nothing is repeated.
    """

    prompts: Tensor
    completions: Tensor
    paths: Tensor
    seen: list[Tensor]
    places: Tensor
    groups: int | None

    @staticmethod
    def of(packed: Packed, groups: int | None) -> _Layout:
        paths, starts = packed.paths, packed.prompt_lengths
        device, width = paths.device, paths.shape[1]
        shared = int(starts.max())
        prompts = paths[packed.leaders, :shared]
        is_prompt = torch.arange(shared, device=device) < starts[packed.leaders, None]
        steps = int((packed.lengths - starts).max())
        positions = starts[:, None] + torch.arange(steps, device=device)
        completions = paths.gather(1, positions.clamp_max(width - 1))
        is_completion = positions < packed.lengths[:, None]
        seen = []
        for start in range(0, steps, _BLOCK):
            keys = torch.arange(min(shared + start + _BLOCK, width), device=device)
            seen.append(keys <= positions[:, None, start : start + _BLOCK, None])
        places = torch.empty_like(packed.source)
        order = torch.arange(prompts.numel() + completions.numel(), device=device)
        places[prompts[is_prompt]] = order[: prompts.numel()].view_as(prompts)[is_prompt]
        places[completions[is_completion]] = order[prompts.numel() :].view_as(completions)[
            is_completion
        ]
        return _Layout(prompts, completions, paths, seen, places, groups)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool = False, **options: Any
    ) -> Tensor:
        """Attention to ancestors: query [1, H, S, D], keys and values [1, H', S, D].

        Where there is a mask transformers' sdpa repeats keys and values for every head of a group;
        that is undone here, before they are laid out.

        Args:
            enable_gqa, options: Of F.scaled_dot_product_attention; options: dropout_p, scale.

        Returns:
            [1, H, S, D].
        """
        if self.groups is not None and key.shape[1] == query.shape[1] > self.groups:
            repeats = query.shape[1] // self.groups
            key, value, enable_gqa = key[:, ::repeats], value[:, ::repeats], True
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        prompts = F.scaled_dot_product_attention(
            _rows(q, self.prompts),
            _rows(k, self.prompts),
            _rows(v, self.prompts),
            is_causal=True,
            enable_gqa=enable_gqa,
            **options,
        )
        results = [prompts.transpose(1, 2).flatten(0, 1)]
        queries = _rows(q, self.completions)
        keys, values = _rows(k, self.paths), _rows(v, self.paths)
        blocks = [
            attend_in_groups(
                queries[:, :, i * _BLOCK : (i + 1) * _BLOCK],
                keys[:, :, : seen.shape[-1]],
                values[:, :, : seen.shape[-1]],
                seen,
                **options,
            )
            for i, seen in enumerate(self.seen)
        ]
        if blocks:
            results.append(torch.cat(blocks, dim=2).transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, self.places).transpose(0, 1)[None]


def attend_in_groups(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """F.scaled_dot_product_attention with the heads of a group as rows of one query block.

    Keys and values are not repeated for each head; torch's own grouping is slow on a CPU.

    Args:
        query: [B, H, L, D].
        key, value: [B, H', S, D], H a multiple of H'.
        mask: [B, 1, L, S] or None.
        options: dropout_p and scale.

    Returns:
        [B, H, L, D of the values].
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    if mask is not None and length > 1:  # a single row broadcasts
        mask = mask.repeat(1, 1, heads // groups, 1)
    output = F.scaled_dot_product_attention(
        query.reshape(batch, groups, heads // groups * length, size),
        key,
        value,
        attn_mask=mask,
        **options,
    )
    return output.reshape(batch, heads, length, value.shape[-1])


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """[S, H, D] at index [R, L] -> [R, H, L, D]."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def ancestor_matrix(packed: Packed) -> Tensor:
    """[S, S] bool, True where the row's token attends to the column's."""
    size = len(packed.source)
    matrix = torch.zeros(size, size, dtype=torch.bool, device=packed.source.device)
    for path, length in zip(packed.paths, packed.lengths.tolist(), strict=True):
        own = path[:length]
        matrix[own[:, None], own] |= torch.ones_like(matrix[:length, :length]).tril()
    return matrix


def ancestor_mask(packed: Packed, model: Any, dtype: torch.dtype) -> Tensor:
    """[1, 1, S, S] as the model's attention takes it, which is ``sdpa`` or ``eager``.

    Args:
        packed: The row.
        model: A causal LM.
        dtype: Of the hidden states.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa":
        # What transformers' sdpa asks before it repeats anything; a model may do it in its own way.
        repeats = any(getattr(module, "num_key_value_groups", 1) > 1 for module in model.modules())
        return AncestorMask.of(packed, config.num_key_value_heads if repeats else None)
    hidden = ~ancestor_matrix(packed)[None, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )


def is_cheaper(packed: Packed, implementation: str, shape: torch.Size) -> bool:
    """Whether a packed row attends at no greater cost than its padded batch [B, L].

    Eager attention computes all S x S scores of a row: where sequences share little, that is more
    than B x L x L.
    """
    return implementation == "sdpa" or len(packed.source) ** 2 <= shape.numel() * shape[1]


def narrow_layers(config: Any) -> str:
    """The kinds of layer that do not attend to every earlier token; empty where all do.

    Args:
        config: The text model's.
    """
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds or not getattr(config, "sliding_window", None):
        return ", ".join(sorted(kinds))
    return "sliding window"


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Refuse a model whose attention cannot be told who attends to whom.

    Its configuration is asked first; then two sequences that begin alike are run both ways.

    Raises:
        ValueError: Names the attention implementation, the kind of layer, or what differs.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"share_prompts: attention {implementation!r} takes no mask of ancestors; load the "
            "model with attn_implementation sdpa or eager, or set share_prompts: false"
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
        found = model.base_model(
            inputs_embeds=inputs.flatten(0, 1)[packed.source][None],
            attention_mask=ancestor_mask(packed, model, inputs.dtype),
            position_ids=packed.positions[None],
            use_cache=False,
        ).last_hidden_state[0]
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
