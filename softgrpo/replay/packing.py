"""A micro-batch as one row, in which prompts that begin alike are computed once.

Most tokens of a GRPO micro-batch are copies: a prompt has G samples, and the same few-shot examples
stand in front of every question. Here the prompts are a tree, and each completion follows the last
token of its prompt. The tree is laid out in one row without padding. A token attends to its
ancestors alone (see replay.ancestors), so the results are those of the padded batch, computed for
its distinct tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A micro-batch of B sequences as one row of S tokens.

    Attributes:
        source: [S] int64, index of each token in the flattened [B * L] batch.
        positions: [S] int64, its position in its own sequence.
        predictor: [N] int64, for each completion token of the batch (in row-major order of its
            mask), the packed token whose hidden state predicts it.
        paths: For each sequence the packed tokens of prompt and completion in order, int64; on the
            host, as all that follows.
        prompt_lengths: For each sequence the tokens of its prompt.
        leaders: One sequence for every distinct prompt.
    """

    source: Tensor
    positions: Tensor
    predictor: Tensor
    paths: Sequence[np.ndarray]
    prompt_lengths: Sequence[int]
    leaders: Sequence[int]


def pack(input_ids: Tensor, attention_mask: Tensor, num_steps: int) -> Packed:
    """Lay a left-padded batch out as a tree of its prompts with its completions.

    Args:
        input_ids: [B, P + T] int64; the last ``num_steps`` columns are completions, which are never
            shared (a soft step's input is not its token's).
        attention_mask: [B, P + T].
        num_steps: T.
    """
    num_prompt = input_ids.shape[1] - num_steps
    prompt_ids = input_ids[:, :num_prompt].tolist()
    present = attention_mask.bool().cpu().numpy()
    children: dict[tuple[int, int], int] = {}
    prompts: dict[int, int] = {}  # the last token of each distinct prompt, and who has it first
    size = 0
    source: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictor: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    prompt_lengths: list[int] = []
    for row, is_present in enumerate(present):
        columns = is_present.nonzero()[0]
        count = int(np.searchsorted(columns, num_prompt))
        path: list[int] = []
        for depth, column in enumerate(columns[:count].tolist()):
            edge = (path[-1] if path else -1, prompt_ids[row][column])
            if edge not in children:
                children[edge] = size
                size += 1
                source.append(columns[depth : depth + 1] + row * len(is_present))
                positions.append(np.array([depth]))
            path.append(children[edge])
        prompts.setdefault(path[-1] if path else -1, row)
        prompt_lengths.append(count)
        steps = np.arange(size, size + len(columns) - count)
        size += len(steps)
        source.append(columns[count:] + row * len(is_present))
        positions.append(np.arange(count, len(columns)))
        paths.append(np.concatenate([np.array(path, dtype=np.int64), steps]))
        predictor.append(paths[-1][count - 1 : -1] if len(steps) else steps)

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(input_ids.device)

    return Packed(
        source=tensor(source),
        positions=tensor(positions),
        predictor=tensor(predictor),
        paths=paths,
        prompt_lengths=prompt_lengths,
        leaders=list(prompts.values()),
    )
