"""Rollouts from running ``softgrpo serve``, which are given the weights through a shared folder.

For servers on this machine, or ones that see the same files: the weights are written to a folder
and the servers read them from there. That needs their development endpoints
(``VLLM_SERVER_DEV_MODE=1``), by which anyone who reaches a server can change it: keep it to
yourself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from softgrpo import __version__
from softgrpo.rollout.engine import Rollout, RolloutEngine, check_requests
from softgrpo.rollout.request import Request
from softgrpo.rollout.vllm_client import Client, ServerError
from softgrpo.rollout.vllm_plugin.versions import check_version
from softgrpo.rollout.weights import shapes, walk
from softgrpo.thinking.phases import Markers

_START = "start it as VLLM_SERVER_DEV_MODE=1 softgrpo serve MODEL"


class VLLMServerEngine(RolloutEngine):
    """RolloutEngine over HTTP.

    Where several processes train, each has an engine, which generates at one of the servers. None
    waits for another: whoever makes them tells all processes what one of them raises.

    Args:
        urls: Of the servers.
        tokenizer: The served model's.
        eos_token_ids: Tokens that end a sequence.
        max_num_seqs: Requests open at a time; the server's own limit decides how many it decodes.
        source: The transformers model in training whose weights ``sync`` hands over, LoRA folded
            into them.
        folder: Where the weights are written, seen by the servers under the same path; None: the
            system's temporary folder.
        process: Which of the processes this is. It generates at server ``process`` modulo their
            number; process 0 hands the weights to all of them.

    Raises:
        ValueError: A server that ``check_server`` refuses; adapters that cannot be folded into the
            weights.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        max_num_seqs: int = 128,
        source: Any = None,
        folder: str | None = None,
        process: int = 0,
    ) -> None:
        self.client = Client(urls[process % len(urls)])
        self.tokenizer = tokenizer
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_num_seqs = max_num_seqs
        self._source = source
        self._folder = folder
        self._served = [Client(url) for url in urls] if process == 0 else []
        if source is not None:
            wanted = shapes(source)
            for client in self._served:
                check_server(client, wanted)

    def sync(self) -> None:
        """Hand the source's weights over, in process 0; nothing to do where there is no source.

        Every process walks the weights, and all shards have been gathered before anything is sent.

        Raises:
            ServerError: A server could not take the weights; names it.
        """
        if self._source is None:
            return
        weights = walk(self._source)
        try:
            kept = {name: weight.contiguous().cpu() for name, weight in weights if self._served}
        finally:  # after an error: the others wait for this process's shards
            for _ in weights:
                pass
        if self._served:
            self._hand_over(kept)

    def _hand_over(self, weights: dict[str, Tensor]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="softgrpo-") as folder:
            path = str(Path(folder) / "weights.safetensors")
            save_file(weights, path)
            os.chmod(folder, 0o755)  # a server may be another user's
            with ThreadPoolExecutor(len(self._served)) as pool:
                list(pool.map(partial(_update, path=path), self._served))

    def run(
        self, requests: Sequence[Request], on_finished: Callable[[int, Rollout], object]
    ) -> None:
        """See RolloutEngine.run; ServerError where the server fails or refuses a request."""
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


def check_server(client: Client, wanted: Mapping[str, Sequence[int]]) -> None:
    """Refuse a server that cannot take these weights.

    Args:
        client: Of the server.
        wanted: Name and shape of every weight.

    Raises:
        ServerError: It has no development endpoints; another softgrpo or an untested vLLM is there;
            it serves another model: names a tensor and both shapes.
    """
    try:
        served = client.served()
    except ServerError as error:
        raise ServerError(f"{error}; {_START}") from error
    if served.get("softgrpo") != __version__:
        raise ServerError(
            f"{client.url}: softgrpo {served.get('softgrpo')} is there, and {__version__} here: "
            "install the same"
        )
    try:
        check_version(str(served.get("vllm")))
    except ValueError as error:
        raise ServerError(f"{client.url}: {error}") from error
    found = served.get("shapes")
    there: Mapping[str, Any] = found if isinstance(found, dict) else {}
    for name in dict.fromkeys([*wanted, *there]):
        here, other = wanted.get(name), there.get(name)
        if here is None or other is None or list(here) != other:
            raise ServerError(
                f"{client.url}: it serves another model ({client.model}): {name} is "
                f"{other or 'missing'} there and {here or 'missing'} here; serve the one that is "
                "trained"
            )


def _update(client: Client, path: str) -> None:
    try:
        client.post("/collective_rpc", {"method": "update_weights_from", "args": [path]})
        # What the prefix cache holds was computed with the old weights.
        client.post("/reset_prefix_cache", {})
    except ServerError as error:
        raise ServerError(
            f"the weights could not be handed over: {error}; they lie in {path}, which the server "
            "must see"
        ) from error
