"""How the tokens of a packed row attend: laid out by sequence again, for the attention alone.

There are three layouts, with the same results. Each takes the row's queries, keys and values, and
lets every token attend to its ancestors:

- ``Blocks``: distinct prompts among themselves, then blocks of completion tokens over prompt and
  completion, under masks. The plain way, and the fastest for short sequences on a CPU. Its masks
  grow with the square of the length.
- ``Paths``: every sequence by itself, causally, prompt included. It has no mask: what is kept for
  the backward pass grows with the tokens. A shared prompt attends once for each of its sequences.
- ``Varlen``: prompts and completions in one call of torch's variable-length flash attention. It has
  no mask, and each token attends once. For NVIDIA's GPUs from Ampere on, in half precision. The
  kernel has not been run: only its arguments have been tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from softgrpo.modeling.attention import attend_in_groups
from softgrpo.modeling.kernels import product_dtype
from softgrpo.replay.packing import Packed

# On a CPU, completions of at least so many tokens attend without masks, unless a prompt is longer.
_LONG = 1024


class Layout(Protocol):
    """Where the tokens of a packed row stand while they attend."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attention of every token to its ancestors.

        Args:
            query: [S, H, D].
            key: [S, H', D], H a multiple of H'.
            value: As key.
            options: ``scale`` and ``dropout_p`` of F.scaled_dot_product_attention.

        Returns:
            [S, H, D].
        """
        ...


def choose_layout(packed: Packed, device: torch.device, dtype: torch.dtype) -> Layout:
    """The layout for a row on a device.

    Args:
        packed: The row.
        device: Of the model.
        dtype: In which it attends (autocast's, where that is on).
    """
    if _has_varlen(device, dtype):
        return Varlen.of(packed, device)
    prompt = max(packed.prompt_lengths)
    steps = max(map(len, packed.paths)) - min(packed.prompt_lengths)
    if device.type == "cpu" and steps < max(prompt, _LONG):
        return Blocks.of(packed, device)
    return Paths.of(packed, device)


def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@dataclass(frozen=True)
class Blocks:
    """Prompts, then blocks of completion tokens, under masks.

    Attributes:
        prompts: [G, P] int64, the packed tokens of the distinct prompts; padded at the right, where
            a causal mask hides it.
        completions: [B, T] int64, those of the completions; padded at the right.
        paths: [B, M] int64, those of prompt and completion together.
        seen: For every block of completion tokens [B, 1, block, keys] bool. Keys after a block's
            last query are left out.
        places: [S] int64, where each token's result stands among prompts and completions.
    """

    prompts: Tensor
    completions: Tensor
    paths: Tensor
    seen: list[Tensor]
    places: Tensor

    @staticmethod
    def of(packed: Packed, device: torch.device, block: int = 256) -> Blocks:
        """Args: the row, its device, and how many completion tokens attend together."""
        prompts = [packed.paths[i][: packed.prompt_lengths[i]] for i in packed.leaders]
        pairs = list(zip(packed.paths, packed.prompt_lengths, strict=True))
        completions = [path[start:] for path, start in pairs]
        padded = _padded(prompts), _padded(completions)
        places = np.empty(len(packed.source), dtype=np.int64)
        for first, table, rows in (
            (0, padded[0], prompts),
            (padded[0].size, padded[1], completions),
        ):
            for row, tokens in enumerate(rows):
                places[tokens] = first + row * table.shape[1] + np.arange(len(tokens))
        starts = np.array(packed.prompt_lengths)
        paths = _padded(packed.paths)
        seen = []
        for first in range(0, padded[1].shape[1], block):
            steps = np.arange(first, min(first + block, padded[1].shape[1]))
            keys = np.arange(min(int(starts.max()) + first + block, paths.shape[1]))
            seen.append(keys <= (starts[:, None] + steps)[:, None, :, None])

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return Blocks(
            prompts=tensor(padded[0]),
            completions=tensor(padded[1]),
            paths=tensor(paths),
            seen=[tensor(keys) for keys in seen],
            places=tensor(places),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """See Layout.attend."""
        prompts = F.scaled_dot_product_attention(
            _rows(query, self.prompts),
            _rows(key, self.prompts),
            _rows(value, self.prompts),
            is_causal=True,
            enable_gqa=key.shape[1] != query.shape[1],
            **options,
        )
        results = [prompts.transpose(1, 2).flatten(0, 1)]
        queries = _rows(query, self.completions)
        keys, values = _rows(key, self.paths), _rows(value, self.paths)
        blocks = queries.split([seen.shape[2] for seen in self.seen], dim=2)
        parts = [
            attend_in_groups(
                block,
                keys[:, :, : seen.shape[-1]],
                values[:, :, : seen.shape[-1]],
                seen,
                **options,
            )
            for block, seen in zip(blocks, self.seen, strict=True)
        ]
        if parts:
            results.append(torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, self.places)


@dataclass(frozen=True)
class Paths:
    """Every sequence by itself, causally, from its prompt's first token on.

    Attributes:
        tokens: [M] int64, the packed tokens of all sequences, one after the other.
        lengths: Tokens of each sequence.
        places: [S] int64, where each token's result stands among them.
    """

    tokens: Tensor
    lengths: list[int]
    places: Tensor

    @staticmethod
    def of(packed: Packed, device: torch.device) -> Paths:
        """The layout of a row on a device."""
        tokens = np.concatenate(packed.paths)
        return Paths(
            torch.from_numpy(tokens).to(device),
            [len(path) for path in packed.paths],
            torch.from_numpy(_places(tokens)).to(device),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """See Layout.attend."""
        if query.device.type != "cpu":  # only kernels for half precision take groups without a mask
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        parts = [x.index_select(0, self.tokens).split(self.lengths) for x in (query, key, value)]
        options |= {"is_causal": True, "enable_gqa": key.shape[1] != query.shape[1]}
        results = [
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                **options,
            )[0].transpose(0, 1)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(results).index_select(0, self.places)


@dataclass(frozen=True)
class Varlen:
    """Distinct prompts, then completions over prompt and completion, in one call.

    Attributes:
        queries: [Q] int64, packed tokens: prompts, then completions.
        keys: [M] int64: prompts, then whole sequences.
        query_ends, key_ends: [G + B + 1] int32, where each begins and the last one ends.
        longest: Most queries and most keys of one.
        places: [S] int64, where each token's result stands among the queries.
        kernel: With torch.nn.attention.varlen.varlen_attn's signature: the last queries see the
            last keys.
    """

    queries: Tensor
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    places: Tensor
    kernel: Callable[..., Any]

    @staticmethod
    def of(
        packed: Packed, device: torch.device, kernel: Callable[..., Any] = varlen_attn
    ) -> Varlen:
        """The layout of a row on a device."""
        prompts = [packed.paths[i][: packed.prompt_lengths[i]] for i in packed.leaders]
        pairs = zip(packed.paths, packed.prompt_lengths, strict=True)
        queries = [*prompts, *(path[start:] for path, start in pairs)]
        keys = [*prompts, *packed.paths]

        def ends(parts: list[np.ndarray]) -> Tensor:
            counts = np.array([0, *map(len, parts)], dtype=np.int32)
            return torch.from_numpy(counts.cumsum(dtype=np.int32)).to(device)

        tokens = np.concatenate(queries)
        return Varlen(
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(np.concatenate(keys)).to(device),
            ends(queries),
            ends(keys),
            (max(map(len, queries)), max(map(len, keys))),
            torch.from_numpy(_places(tokens)).to(device),
            kernel,
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """See Layout.attend.

        Raises:
            ValueError: Attention is to be dropped at random, which the kernel cannot.
        """
        if options.get("dropout_p"):
            raise ValueError(
                f"attention_dropout={options['dropout_p']}: packed rows attend without dropout on "
                "a GPU; set it to 0, or share_prompts: false"
            )
        # Autocast does not cast for this kernel.
        query, key, value = (x.to(product_dtype(x.device, x.dtype)) for x in (query, key, value))
        output = self.kernel(
            query.index_select(0, self.queries),
            key.index_select(0, self.keys),
            value.index_select(0, self.keys),
            self.query_ends,
            self.key_ends,
            *self.longest,
            scale=options.get("scale"),
            window_size=(-1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output.index_select(0, self.places)


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """[S, H, D] at index [R, L] -> [R, H, L, D]."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[R, longest], padded with 0 at the right."""
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _places(tokens: np.ndarray) -> np.ndarray:
    """For each packed token one of its places in ``tokens``, which holds each at least once."""
    places = np.empty(tokens.max() + 1, dtype=np.int64)
    places[tokens] = np.arange(len(tokens))
    return places
