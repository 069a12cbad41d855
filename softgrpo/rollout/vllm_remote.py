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

from safetensors.torch import save_file

from softgrpo.rollout.engine import Rollout, RolloutEngine, check_requests
from softgrpo.rollout.request import Request
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.weights import check_weights, walk
from softgrpo.thinking.phases import Markers


class VLLMServerEngine(RolloutEngine):
    """RolloutEngine over HTTP.

    Args:
        url: Of the server.
        tokenizer: The served model's.
        eos_token_ids: Tokens that end a sequence.
        max_num_seqs: Requests open at a time; the server's own limit decides how many it decodes.
        source: The transformers model in training whose weights ``sync`` hands over, LoRA folded
            into them.
        folder: Where the weights are written, seen by the server under the same path; None: the
            system's temporary folder.

    Raises:
        ValueError: No server answers there; adapters that cannot be folded into the weights.
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
        if source is not None:
            check_weights(source)
        self.client = Client(url)
        self.tokenizer = tokenizer
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_num_seqs = max_num_seqs
        self._source = source
        self._folder = folder

    def sync(self) -> None:
        """Hand the source's weights over; nothing to do where there is none.

        Raises:
            ValueError: The server has no development endpoints, or could not read the weights.
        """
        if self._source is None:
            return
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="softgrpo-") as folder:
            path = str(Path(folder) / "weights.safetensors")
            save_file({name: w.contiguous().cpu() for name, w in walk(self._source)}, path)
            os.chmod(folder, 0o755)  # the server may be another user's
            try:
                self.client.post(
                    "/collective_rpc", {"method": "update_weights_from", "args": [path]}
                )
                # What the prefix cache holds was computed with the old weights.
                self.client.post("/reset_prefix_cache", {})
            except ValueError as error:
                raise ValueError(
                    f"{error}; the server takes weights when it is started as "
                    "VLLM_SERVER_DEV_MODE=1 softgrpo serve MODEL, and sees this machine's files"
                ) from error

    def run(
        self, requests: Sequence[Request], on_finished: Callable[[int, Rollout], object]
    ) -> None:
        """See RolloutEngine.run; ValueError also where the server refuses a request."""
        check_requests(requests, context=None)  # the server knows its own
        for think_end in {request.config.think_end for request in requests}:
            Markers(think_end, self.tokenizer)

        def one(request: Request) -> Rollout:
            record, finish_reason = self.client.complete(
                request,
                stop_token_ids=self.eos_token_ids,
                ignore_eos=True,  # the model's own idea of it; ours are the tokens above
            )
            return record.rollout(request.prompt, finish_reason, self.tokenizer.decode)

        with ThreadPoolExecutor(self.max_num_seqs) as pool:
            waiting = {pool.submit(one, request): i for i, request in enumerate(requests)}
            try:
                for future in as_completed(waiting):
                    on_finished(waiting[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
