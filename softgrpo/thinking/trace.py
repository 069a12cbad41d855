"""The trace: what a rollout records and a replay needs. The object that every package passes on.

Batch first, padded with zeros. It holds no text, no reward and no model: an engine makes it, the
trainer replays it, a file keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from softgrpo.thinking.config import ThinkingConfig

_DTYPES = {
    "ids": torch.int32,
    "scores": torch.float32,
    "support": torch.bool,
    "is_soft": torch.bool,
    "lengths": torch.int32,
    "embedding_noise": torch.float32,
}
_FORMAT = "softgrpo.trace.v1"


@dataclass(frozen=True)
class Steps:
    """N recorded steps, of whichever sequences, as a replay takes them.

    Attributes:
        ids: [N, K] int, the columns; column 0 is the token of an ordinary step, the others 0 there.
        scores: [N, K] float, what was drawn.
        support: [N, K] bool.
        soft: int64, the rows that are soft.
        tokens: int64, the others.
        embedding_noise: [N, D] float32 for policy ``embedding_gaussian``, else None.
    """

    ids: Tensor
    scores: Tensor
    support: Tensor
    soft: Tensor
    tokens: Tensor
    embedding_noise: Tensor | None = None

    @staticmethod
    def of(
        ids: Tensor,
        scores: Tensor,
        support: Tensor,
        is_soft: Tensor,
        embedding_noise: Tensor | None = None,
    ) -> Steps:
        """By a mask is_soft [N]; the columns that a token does not use may hold anything."""
        ids = torch.cat([ids[:, :1], ids[:, 1:].masked_fill(~is_soft[:, None], 0)], dim=1)
        soft, tokens = is_soft.nonzero()[:, 0], (~is_soft).nonzero()[:, 0]
        return Steps(ids, scores, support, soft, tokens, embedding_noise)


class SoftTrace:
    """Recorded steps of B sequences, padded to T steps. Frozen.

    A plain class on purpose: FSDP2 looks into dataclasses, tuples and dicts that a model is given,
    and casts the tensors in them to its training dtype. Scores in bfloat16 are other mixtures.

    Attributes:
        ids: [B, T, K] int32, support token ids by falling weight; column 0 is the reported token.
        scores: [B, T, K] float32, what was drawn: g' (Gumbel), Gamma draws (Dirichlet), noisy
            probabilities (Gaussian), probabilities (the other soft policies); 0 at tokens.
        support: [B, T, K] bool, the columns in the support when drawn. At an ordinary token only
            column 0; all False at a forced token, which nobody drew, and at padding.
        is_soft: [B, T] bool. False: an ordinary token in column 0.
        lengths: [B] int32, generated steps, the ending token included.
        embedding_noise: [B, T, D] float32 for policy ``embedding_gaussian``, else None.
        settings: What the replay must share (ThinkingConfig.replay_settings).
        source: Where it came from (engine, seed, first sequence); informative.
    """

    ids: Tensor
    scores: Tensor
    support: Tensor
    is_soft: Tensor
    lengths: Tensor
    embedding_noise: Tensor | None
    settings: dict[str, object]
    source: dict[str, object]

    def __init__(
        self,
        ids: Tensor,
        scores: Tensor,
        support: Tensor,
        is_soft: Tensor,
        lengths: Tensor,
        embedding_noise: Tensor | None = None,
        settings: dict[str, object] | None = None,
        source: dict[str, object] | None = None,
    ) -> None:
        vars(self).update(
            ids=ids,
            scores=scores,
            support=support,
            is_soft=is_soft,
            lengths=lengths,
            embedding_noise=embedding_noise,
            settings={} if settings is None else settings,
            source={} if source is None else source,
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a trace is frozen: {name} cannot be set")

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def num_steps(self) -> int:
        """T, the padded number of steps."""
        return self.ids.shape[1]

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, True at generated steps."""
        return torch.arange(self.num_steps, device=self.ids.device) < self.lengths[:, None]

    @property
    def is_forced(self) -> Tensor:
        """[B, T] bool, tokens that were put there (a marker at the budget), not drawn."""
        return self.mask & ~self.support[..., 0]

    @property
    def tokens(self) -> list[list[int]]:
        """The reported token ids of each sequence, without padding."""
        pairs = zip(self.ids[..., 0].tolist(), self.lengths.tolist(), strict=True)
        return [row[:length] for row, length in pairs]

    def steps(self, mask: Tensor) -> Steps:
        """The steps where mask [B, T] is True, in row-major order."""
        noise = None if self.embedding_noise is None else self.embedding_noise[mask]
        return Steps.of(
            self.ids[mask], self.scores[mask], self.support[mask], self.is_soft[mask], noise
        )

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> SoftTrace:
        """The trace of some rows (a slice or a list of indices), padding kept."""
        if isinstance(rows, int):
            raise TypeError("index a trace with a slice or a list: it stays a batch")
        return self._map(lambda x: x[rows])

    def split(self, size: int) -> list[SoftTrace]:
        """Consecutive traces of at most ``size`` rows."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def pad(self, num_steps: int) -> SoftTrace:
        """Pad to T = num_steps; ValueError when a sequence is longer."""
        longest = int(self.lengths.max()) if len(self) else 0
        if num_steps < longest:
            raise ValueError(f"num_steps={num_steps}: a sequence has {longest} steps")
        extra = num_steps - self.num_steps  # a negative pad trims
        return self._map(
            lambda x: x if x.dim() == 1 else F.pad(x, (0, 0) * (x.dim() - 2) + (0, extra))
        )

    @staticmethod
    def cat(traces: Sequence[SoftTrace]) -> SoftTrace:
        """One trace of all rows, padded to the longest; the settings must agree."""
        first = traces[0]
        for other in traces[1:]:
            if other.settings != first.settings:
                raise ValueError(f"settings differ: {first.settings} and {other.settings}")
        num_steps = max(trace.num_steps for trace in traces)
        parts = [trace.pad(num_steps).tensors() for trace in traces]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return SoftTrace(**tensors, settings=first.settings, source=first.source)

    def to(self, device: torch.device | str) -> SoftTrace:
        return self._map(lambda x: x.to(device))

    def require(self, config: ThinkingConfig) -> None:
        """Refuse a replay under settings other than the rollout's.

        A setting that the trace does not name is younger than its file, and had its default.

        Raises:
            ValueError: Names each setting that differs, with both values.
        """
        settings = ThinkingConfig().replay_settings() | self.settings
        differing = {
            name: (settings[name], value)
            for name, value in config.replay_settings().items()
            if settings[name] != value
        }
        if differing:
            listed = ", ".join(
                f"{k}: drawn with {a}, replayed with {b}" for k, (a, b) in differing.items()
            )
            raise ValueError(f"the trace was drawn under other settings ({listed})")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None."""
        values = {name: getattr(self, name) for name in _DTYPES}
        return {name: value for name, value in values.items() if value is not None}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; settings and source go to its header as JSON."""
        from safetensors.torch import save_file

        header = {"settings": json.dumps(self.settings), "source": json.dumps(self.source)}
        tensors = {name: value.contiguous() for name, value in self.tensors().items()}
        save_file(tensors, str(path), metadata={"format": _FORMAT, **header})

    @staticmethod
    def load(path: str | Path) -> SoftTrace:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The file is no trace, or is damaged: tensors are missing, or of other dtypes
                or shapes, lengths are out of range, or the header is no JSON.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no trace ({_FORMAT}): {error}") from error
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} is no trace ({_FORMAT}): its header has {sorted(header)}")
        _check(tensors, path)
        return SoftTrace(
            **tensors,
            settings=_json_object(header, "settings", path),
            source=_json_object(header, "source", path),
        )

    def _map(self, function) -> SoftTrace:  # noqa: ANN001
        tensors = {name: function(value) for name, value in self.tensors().items()}
        return SoftTrace(**tensors, settings=self.settings, source=self.source)


def _check(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Raise ValueError where a file's tensors are not those of a trace."""
    for name in set(_DTYPES) - {"embedding_noise"}:
        if name not in tensors:
            raise ValueError(f"{path}: the trace has no {name}")
    rows, steps, columns = (*tensors["ids"].shape, 0, 0, 0)[:3]
    noise = tensors.get("embedding_noise", tensors["ids"])
    shapes = {
        "ids": [rows, steps, columns],
        "scores": [rows, steps, columns],
        "support": [rows, steps, columns],
        "is_soft": [rows, steps],
        "lengths": [rows],
        "embedding_noise": [rows, steps, *noise.shape[2:3]],
    }
    for name, tensor in tensors.items():
        if name not in _DTYPES:
            raise ValueError(f"{path}: the trace has {name!r}, which is not known")
        if tensor.dtype != _DTYPES[name] or list(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{path}: {name} of the trace is {tensor.dtype} {list(tensor.shape)}; it must be "
                f"{_DTYPES[name]} {shapes[name]}"
            )
    lengths = tensors["lengths"]
    if columns < 1 or not ((lengths >= 0) & (lengths <= steps)).all() or (tensors["ids"] < 0).any():
        raise ValueError(f"{path}: the trace's ids or lengths are out of range")


def _json_object(header: dict[str, str], name: str, path: str | Path) -> dict[str, object]:
    try:
        value = json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {name} of the trace cannot be read ({error!r})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {name} of the trace must be an object, not {value!r}")
    return value


def from_tokens(
    completions: Iterable[Sequence[int]], config: ThinkingConfig, num_columns: int = 1
) -> SoftTrace:
    """The trace of ordinary completions: token ids only, nothing soft."""
    rows = [torch.as_tensor(row, dtype=torch.int32) for row in completions]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    ids = torch.zeros(len(rows), int(lengths.max()), num_columns, dtype=torch.int32)
    support = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens), 0] = tokens
        support[row, : len(tokens), 0] = True
    return SoftTrace(
        ids=ids,
        scores=torch.zeros(ids.shape),
        support=support,
        is_soft=torch.zeros(ids.shape[:2], dtype=torch.bool),
        lengths=lengths,
        settings=config.replay_settings(),
    )
