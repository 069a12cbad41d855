"""How the tokens of a packed row attend: laid out by sequence again, for the attention alone.

There are three layouts, with the same results: ``in_blocks``, the fastest for short sequences on a
CPU, whose masks grow with the square of the length; ``along_paths``, which has no mask; and
``in_one_call``, which has none either and lets each token attend once, for NVIDIA's GPUs in half
precision. That kernel has not been run: only its arguments have been tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from softgrpo.modeling.attention import attend_in_groups
from softgrpo.modeling.kernels import product_dtype
from softgrpo.replay.packing import Packed

# Attention of every token of a row to its ancestors: of queries [S, H, D], keys and values
# [S, H', D], H a multiple of H', and ``scale`` and ``dropout_p`` of F.scaled_dot_product_attention
# by name, to [S, H, D].
Attend = Callable[..., Tensor]

# On a CPU, completions of at least so many tokens attend without masks, unless a prompt is longer.
_LONG = 1024


def choose_layout(packed: Packed, dtype: torch.dtype) -> Callable[[Packed], Attend]:
    """The layout for a row, by its lengths, its device and the dtype in which it attends."""
    device = packed.source.device
    if _has_varlen(device, dtype):
        return in_one_call
    prompt = max(packed.prompt_lengths)
    steps = max(map(len, packed.paths)) - min(packed.prompt_lengths)
    is_short = device.type == "cpu" and steps < max(prompt, _LONG)
    return in_blocks if is_short else along_paths


def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def in_blocks(packed: Packed, block: int = 256) -> Attend:
    """Distinct prompts among themselves, then ``block`` completion tokens at a time under masks.

    A completion token attends to all before it, its prompt included.
    """
    pairs = list(zip(packed.paths, packed.prompt_lengths, strict=True))
    tables = [
        _padded([packed.paths[i][: packed.prompt_lengths[i]] for i in packed.leaders]),
        _padded([path[start:] for path, start in pairs]),
        _padded(packed.paths),
    ]
    starts, num_steps = np.array(packed.prompt_lengths), tables[1].shape[1]
    masks = []
    for first in range(0, num_steps, block):
        steps = np.arange(first, min(first + block, num_steps))
        # Keys after the block's last query are left out.
        keys = np.arange(min(int(starts.max()) + first + block, tables[2].shape[1]))
        masks.append(keys <= (starts[:, None] + steps)[:, None, :, None])

    device = packed.source.device
    places = _places(np.concatenate([table.ravel() for table in tables[:2]]), device)
    # Padding stands at the right, where causal masks hide it: it may be any token.
    prompts, completions, paths = (_tensor(table.clip(0), device) for table in tables)
    seen = [_tensor(mask, device) for mask in masks]

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        alone = F.scaled_dot_product_attention(
            _rows(query, prompts),
            _rows(key, prompts),
            _rows(value, prompts),
            is_causal=True,
            enable_gqa=key.shape[1] != query.shape[1],
            **options,
        )
        results = [alone.transpose(1, 2).flatten(0, 1)]
        keys, values = _rows(key, paths), _rows(value, paths)
        queries = _rows(query, completions).split([mask.shape[2] for mask in seen], dim=2)
        parts = []
        for part, mask in zip(queries, seen, strict=True):
            own, shown = keys[:, :, : mask.shape[-1]], values[:, :, : mask.shape[-1]]
            parts.append(attend_in_groups(part, own, shown, mask, **options))
        if parts:
            results.append(torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, places)

    return attend


def along_paths(packed: Packed) -> Attend:
    """Every sequence by itself, causally, from its prompt's first token on.

    What is kept for the backward pass grows with the tokens. A shared prompt attends once for each
    of its sequences.
    """
    device, lengths = packed.source.device, [len(path) for path in packed.paths]
    path = np.concatenate(packed.paths)
    tokens, places = _tensor(path, device), _places(path, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if device.type != "cpu":  # only kernels for half precision take groups without a mask
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        parts = [x.index_select(0, tokens).split(lengths) for x in (query, key, value)]
        results = [
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                is_causal=True,
                enable_gqa=key.shape[1] != query.shape[1],
                **options,
            )[0].transpose(0, 1)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(results).index_select(0, places)

    return attend


def in_one_call(packed: Packed, kernel: Callable[..., Any] = varlen_attn) -> Attend:
    """Distinct prompts, then completions over prompt and completion, in one call of a kernel.

    Args:
        packed: The row.
        kernel: With torch.nn.attention.varlen.varlen_attn's signature: the last queries see the
            last keys.
    """
    prompts = [packed.paths[i][: packed.prompt_lengths[i]] for i in packed.leaders]
    pairs = zip(packed.paths, packed.prompt_lengths, strict=True)
    of_queries = [*prompts, *(path[start:] for path, start in pairs)]
    of_keys = [*prompts, *packed.paths]
    longest = max(map(len, of_queries)), max(map(len, of_keys))
    device, path = packed.source.device, np.concatenate(of_queries)
    queries, keys = _tensor(path, device), _tensor(np.concatenate(of_keys), device)
    ends = [
        _tensor(np.array([0, *map(len, parts)]).cumsum(dtype=np.int32), device)
        for parts in (of_queries, of_keys)
    ]
    places = _places(path, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if options.get("dropout_p"):
            raise ValueError(
                f"attention_dropout={options['dropout_p']}: packed rows attend without dropout on "
                "a GPU; set it to 0, or share_prompts: false"
            )
        # Autocast does not cast for this kernel.
        query, key, value = (x.to(product_dtype(x.device, x.dtype)) for x in (query, key, value))
        output = kernel(
            query.index_select(0, queries),
            key.index_select(0, keys),
            value.index_select(0, keys),
            *ends,
            *longest,
            scale=options.get("scale"),
            window_size=(-1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output.index_select(0, places)

    return attend


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """[S, H, D] at index [R, L] -> [R, H, L, D]."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[R, longest], padded with -1 at the right."""
    padded = np.full((len(rows), max(map(len, rows))), -1)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _places(tokens: np.ndarray, device: torch.device) -> Tensor:
    """For each packed token one of its places in ``tokens``, which holds each, and -1 elsewhere."""
    (held,) = (tokens >= 0).nonzero()
    places = np.empty(tokens.max() + 1, dtype=np.int64)
    places[tokens[held]] = held
    return _tensor(places, device)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
