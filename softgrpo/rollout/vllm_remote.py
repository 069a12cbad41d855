"""Rollouts from a running ``softgrpo serve``, which is given the weights through a shared folder.

For a server on this machine, or one that sees the same files: the weights are written to a folder
and the server reads them from there. That needs the server's development endpoints
(``VLLM_SERVER_DEV_MODE=1``), by which anyone who reaches it can change it: keep it to yourself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from softgrpo.modeling.parameters import whole
from softgrpo.rollout.engine import Rollout, check_prompts
from softgrpo.rollout.vllm_client import Server
from softgrpo.rollout.vllm_plugin.wire import ThinkingRequest
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers


class VLLMServerEngine:
    """RolloutEngine over HTTP.

    Args:
        url: Of the server.
        tokenizer: The served model's.
        eos_token_ids: Tokens that end a sequence.
        max_num_seqs: Requests open at a time; the server's own limit decides how many it decodes.
        source: The transformers model in training whose weights ``sync`` hands over.
        folder: Where the weights are written, seen by the server under the same path; None: the
            system's temporary folder.

    Raises:
        ValueError: No server answers there.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        max_num_seqs: int = 128,
        source: Any = None,
        folder: str | None = None,
    ) -> None:
        self.server = Server(url)
        self.tokenizer = tokenizer
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_num_seqs = max_num_seqs
        self._source = source
        self._folder = folder

    @torch.no_grad()
    def sync(self) -> None:
        """Hand the source's weights over; nothing to do where there is none.

        Raises:
            ValueError: The server has no development endpoints, or could not read the weights.
        """
        if self._source is None:
            return
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="softgrpo-") as folder:
            path = str(Path(folder) / "weights.safetensors")
            parameters = self._source.named_parameters()
            save_file({n: whole(p.detach()).contiguous().cpu() for n, p in parameters}, path)
            os.chmod(folder, 0o755)  # the server may be another user's
            try:
                self.server.post(
                    "/collective_rpc", {"method": "update_weights_from", "args": [path]}
                )
                # What the prefix cache holds was computed with the old weights.
                self.server.post("/reset_prefix_cache", {})
            except ValueError as error:
                raise ValueError(
                    f"{error}; the server takes weights when it is started as "
                    "VLLM_SERVER_DEV_MODE=1 softgrpo serve MODEL, and sees this machine's files"
                ) from error

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: ThinkingConfig,
        *,
        max_new_tokens: int | Sequence[int],
        num_generations: int = 1,
        seed: int = 0,
        first_sequence: int = 0,
        objective: Objective | None = None,
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> list[Rollout]:
        """See RolloutEngine.generate; ValueError also where the server refuses a request."""
        Markers(config.think_end, self.tokenizer)
        limits = check_prompts(prompts, max_new_tokens, context=None)  # the server knows its own

        def one(index: int) -> Rollout:
            prompt = list(prompts[index // num_generations])
            request = ThinkingRequest(config, seed, first_sequence + index, objective)
            record, finish_reason = self.server.complete(
                prompt,
                request,
                limits[index // num_generations],
                stop_token_ids=self.eos_token_ids,
                ignore_eos=True,  # the model's own idea of it; ours are the tokens above
            )
            return record.rollout(prompt, finish_reason, self.tokenizer.decode)

        rollouts: dict[int, Rollout] = {}
        with ThreadPoolExecutor(self.max_num_seqs) as pool:
            count = len(prompts) * num_generations
            waiting = {pool.submit(one, index): index for index in range(count)}
            try:
                for future in as_completed(waiting):
                    index = waiting[future]
                    rollouts[index] = future.result()
                    if on_finished is not None:
                        on_finished(index, rollouts[index])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [rollouts[index] for index in range(count)]
