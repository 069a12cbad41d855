"""Soft-thinking rollouts with vLLM in this process: paged attention, continuous batching, an
unmodified release.

The steps are drawn by the same code as the TransformersEngine's, from the same noise. Only the
model's arithmetic differs, by rounding.

Where several processes train, each has an engine of its own on its own device, and generates its
own prompts. They start together, and take weights over together where the model is sharded: no
engine leaves the others waiting there when it fails, and who uses them tells the others (the
trainer does, see together.py). Nothing else waits for another process.

An engine of a model in training is asleep but within ``sync`` and ``run``: its weights and its
cache leave the device to the update (see vllm_sleep.py). vLLM's CPU build cannot sleep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from softgrpo.rollout.engine import (
    Rollout,
    RolloutEngine,
    check_requests,
    find_eos_token_ids,
)
from softgrpo.rollout.request import Request
from softgrpo.rollout.vllm_plugin.packed import unpack
from softgrpo.rollout.vllm_plugin.versions import require_vllm
from softgrpo.rollout.vllm_plugin.wire import encode_request
from softgrpo.rollout.vllm_processes import check_devices
from softgrpo.rollout.vllm_sleep import awake
from softgrpo.rollout.weights import shapes, walk
from softgrpo.thinking.phases import Markers
from softgrpo.together import gathered, num_processes

OWN_DEVICE = "softgrpo.rollout.vllm_plugin.executor.OwnDeviceExecutor"


class VLLMEngine(RolloutEngine):
    """RolloutEngine over vLLM, offline, in this process.

    Args:
        model: A folder in Hugging Face format or a hub id.
        dtype: Of weights and arithmetic, as vLLM names it.
        max_model_len: Longest prompt and completion together, in tokens; None: the model's context.
        max_num_seqs: Sequences decoded together; the others wait.
        eos_token_ids: Tokens that end a sequence; None: the model's and the tokenizer's.
        source: The transformers model in training whose weights ``sync`` takes over, LoRA folded
            into them.
        options: More arguments of ``vllm.LLM``.

    Raises:
        ValueError: This vLLM has not been tested (says how to override), or is not there;
            an option that soft thinking cannot be used with, or adapters that cannot be folded
            into the weights; names it.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 128,
        eos_token_ids: Sequence[int] | None = None,
        source: Any = None,
        **options: Any,
    ) -> None:
        require_vllm()
        if source is not None:
            shapes(source)  # refuses what cannot be handed over
        # Weights are handed over as they lie in memory, so the engine must live in this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM
        from vllm.platforms import current_platform

        from softgrpo.rollout.vllm_plugin.options import engine_options

        arguments = engine_options(options)
        if num_processes() > 1:
            arguments |= _one_of_several(arguments)
        self._sleeps = source is not None and current_platform.is_sleep_mode_available()
        self.llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            enable_sleep_mode=self._sleeps,
            **arguments,
        )
        if self._sleeps:
            self.llm.sleep(level=1)
        if num_processes() > 1:
            # When it is collected it would destroy the process group that the training goes on in.
            self.llm.llm_engine.engine_core._finalizer.detach()
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.tokenizer.clean_up_tokenization_spaces = False
        config = self.llm.llm_engine.vllm_config.model_config
        self.max_model_len = config.max_model_len
        self.vocab_size = config.get_vocab_size()
        self.eos_token_ids = (
            find_eos_token_ids(
                config.try_get_generation_config().get("eos_token_id"), self.tokenizer
            )
            if eos_token_ids is None
            else set(eos_token_ids)
        )
        self._source = source
        self._num_requests = 0

    def sync(self, max_bytes: int = 2**28) -> None:
        """Take over the source's weights; nothing to do where there is none.

        Where the source is sharded every process must call it: the shards are gathered, one
        part of the weights at a time. One that fails goes on gathering, so that none waits.

        Args:
            max_bytes: Of the weights, gathered and handed to the workers at a time.
        """
        if self._source is None:
            return
        parts = in_parts(walk(self._source), max_bytes)
        try:
            with self._awake("weights"):
                self._load(parts)
        finally:  # after an error: the others wait for this process's shards
            for _ in parts:
                pass

    def _load(self, parts: Iterable[list[tuple[str, Tensor]]]) -> None:
        parallel = self.llm.llm_engine.vllm_config.parallel_config
        # Several workers are other processes.
        is_sent = parallel.distributed_executor_backend not in ("uni", OWN_DEVICE)
        self.llm.collective_rpc("begin_weights")
        for part in parts:
            # Several workers share no device, and what is sent is pickled.
            sent = [(name, weight.cpu()) for name, weight in part] if is_sent else part
            self.llm.collective_rpc("take_weights", args=(sent,))
        self.llm.collective_rpc("end_weights")
        self.llm.reset_prefix_cache()  # what it holds was computed with the old weights

    def _awake(self, *tags: str) -> AbstractContextManager[None]:
        return awake(self.llm, *tags) if self._sleeps else nullcontext()

    def close(self) -> None:
        """Stop the engine and free its memory; it generates no more."""
        engine: Any = self.llm.llm_engine
        if num_processes() > 1:
            engine.model_executor.shutdown()
        else:
            engine.engine_core.shutdown()

    @torch.no_grad()
    def run(
        self, requests: Sequence[Request], on_finished: Callable[[int, Rollout], object]
    ) -> None:
        """See RolloutEngine.run."""
        check_requests(requests, self.max_model_len)
        for config in dict.fromkeys(request.config for request in requests):
            config.check_vocabulary(self.vocab_size)
            Markers(config.think_end, self.tokenizer)  # refuses what it cannot produce
        parameters = [self._parameters(request) for request in requests]
        with self._awake("weights", "kv_cache"):
            self._run(requests, parameters, on_finished)

    def _run(
        self,
        requests: Sequence[Request],
        parameters: Sequence[Any],
        on_finished: Callable[[int, Rollout], object],
    ) -> None:
        engine: Any = self.llm.llm_engine
        running: dict[str, int] = {}
        try:
            for place, request in enumerate(requests):
                self._num_requests += 1
                name = f"rollout-{self._num_requests}"
                running[name] = place
                prompt = {"prompt_token_ids": list(request.prompt)}
                engine.add_request(name, prompt, parameters[place])
            while running:
                for output in engine.step():
                    place = running.pop(output.request_id)
                    on_finished(place, read_rollout(output, requests[place], self.tokenizer))
        finally:
            engine.abort_request(list(running))
            engine.step()  # with a step's schedule the worker learns which requests have ended

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sent, own = encode_request(request, record="packed")
        return SamplingParams(
            **own,
            stop_token_ids=sorted(self.eos_token_ids),
            ignore_eos=True,  # vLLM's own idea of it; ours are the tokens above
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=sent,
        )


def _one_of_several(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine needs beside, where every process has one; all must ask.

    Raises:
        ValueError: Several devices an engine; devices that are not alike, or have no room.
    """
    size = arguments.get("tensor_parallel_size", 1)
    if size != 1:
        raise ValueError(
            f"tensor_parallel_size={size}: each of the {num_processes()} processes has an engine "
            "on one device of its own: must be 1"
        )
    from softgrpo.rollout.vllm_plugin.executor import make_groups, own_device

    is_sized = "kv_cache_memory_bytes" in arguments  # then the share is not read
    check_devices(
        gathered(own_device()), 0 if is_sized else arguments.get("gpu_memory_utilization", 0)
    )
    make_groups()
    return {"distributed_executor_backend": OWN_DEVICE}


def in_parts(
    weights: Iterable[tuple[str, Tensor]], num_bytes: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """Weights in order, in lists of ``num_bytes`` at most; a larger one is a list of its own."""
    part: list[tuple[str, Tensor]] = []
    held = 0
    for name, weight in weights:
        if part and held + weight.nbytes > num_bytes:
            yield part
            part, held = [], 0
        part.append((name, weight))
        held += weight.nbytes
    if part:
        yield part


def read_rollout(output: Any, request: Request, tokenizer: Any) -> Rollout:
    """A finished RequestOutput, whose record is packed, as a rollout.

    Raises:
        NonFiniteLogitsError: Names the step at which the logits were not finite.
        ValueError: vLLM ended it before its time.
    """
    record = unpack(output.kv_transfer_params, request, engine="vllm")
    finish_reason = output.outputs[0].finish_reason
    return record.rollout(output.prompt_token_ids, finish_reason, tokenizer.decode)
