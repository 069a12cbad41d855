"""Soft-thinking rollouts with vLLM in this process: paged attention, continuous batching, an
unmodified release.

The steps are drawn by the same code as the TransformersEngine's, from the same noise. Only the
model's arithmetic differs, by rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from softgrpo.modeling.parameters import whole
from softgrpo.rollout.engine import Rollout, check_prompts, find_eos_token_ids
from softgrpo.rollout.vllm_plugin.packed import unpack
from softgrpo.rollout.vllm_plugin.versions import require_vllm
from softgrpo.rollout.vllm_plugin.wire import ThinkingRequest, encode_request
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import Markers


class VLLMEngine:
    """RolloutEngine over vLLM, offline, in this process.

    Args:
        model: A folder in Hugging Face format or a hub id.
        dtype: Of weights and arithmetic, as vLLM names it.
        max_model_len: Longest prompt and completion together, in tokens; None: the model's context.
        max_num_seqs: Sequences decoded together; the others wait.
        eos_token_ids: Tokens that end a sequence; None: the model's and the tokenizer's.
        source: The transformers model in training whose weights ``sync`` takes over.
        options: More arguments of ``vllm.LLM``.

    Raises:
        ValueError: This vLLM has not been tested (says how to override), or is not there;
            an option that soft thinking cannot be used with; names it.
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
        # Weights are handed over as they lie in memory, so the engine must live in this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        from softgrpo.rollout.vllm_plugin.options import engine_options

        self.llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            **engine_options(options),
        )
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
        part of the weights at a time.

        Args:
            max_bytes: Of the weights, gathered and handed to the workers at a time.
        """
        if self._source is None:
            return
        parallel = self.llm.llm_engine.vllm_config.parallel_config
        is_sent = parallel.distributed_executor_backend != "uni"  # workers are other processes
        parameters = self._source.named_parameters()
        weights = ((name, whole(parameter.detach())) for name, parameter in parameters)
        self.llm.collective_rpc("begin_weights")
        for part in in_parts(weights, max_bytes):
            # Several workers share no device, and what is sent is pickled.
            sent = [(name, weight.cpu()) for name, weight in part] if is_sent else part
            self.llm.collective_rpc("take_weights", args=(sent,))
        self.llm.collective_rpc("end_weights")
        self.llm.reset_prefix_cache()  # what it holds was computed with the old weights

    def close(self) -> None:
        """Stop the engine and free its memory; it generates no more."""
        self.llm.llm_engine.engine_core.shutdown()

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
        """See RolloutEngine.generate."""
        requests = [list(prompt) for prompt in prompts for _ in range(num_generations)]
        if not isinstance(max_new_tokens, int):
            max_new_tokens = [limit for limit in max_new_tokens for _ in range(num_generations)]
        return self.generate_each(
            requests,
            [config] * len(requests),
            max_new_tokens=max_new_tokens,
            seed=seed,
            first_sequence=first_sequence,
            objectives=None if objective is None else [objective] * len(requests),
            on_finished=on_finished,
        )

    @torch.no_grad()
    def generate_each(
        self,
        prompts: Sequence[Sequence[int]],
        configs: Sequence[ThinkingConfig],
        *,
        max_new_tokens: int | Sequence[int],
        seed: int = 0,
        first_sequence: int = 0,
        objectives: Sequence[Objective | None] | None = None,
        on_finished: Callable[[int, Rollout], object] | None = None,
    ) -> list[Rollout]:
        """One sequence of each prompt, each with a config, and perhaps an objective, of its own.

        The rest is as in RolloutEngine.generate.
        """
        limits = check_prompts(prompts, max_new_tokens, self.max_model_len)
        for config in {id(config): config for config in configs}.values():
            config.check_vocabulary(self.vocab_size)
            Markers(config.think_end, self.tokenizer)  # refuses what it cannot produce
        objectives = [None] * len(prompts) if objectives is None else objectives
        requests = [
            ThinkingRequest(config, seed, first_sequence + index, objective, record="packed")
            for index, (config, objective) in enumerate(zip(configs, objectives, strict=True))
        ]
        parameters = [
            self._parameters(request, limit)
            for request, limit in zip(requests, limits, strict=True)
        ]
        engine: Any = self.llm.llm_engine
        running: dict[str, int] = {}
        rollouts: dict[int, Rollout] = {}
        try:
            for index, prompt in enumerate(prompts):
                self._num_requests += 1
                name = f"rollout-{self._num_requests}"
                running[name] = index
                engine.add_request(name, {"prompt_token_ids": list(prompt)}, parameters[index])
            while running:
                for output in engine.step():
                    index = running.pop(output.request_id)
                    rollouts[index] = read_rollout(output, requests[index], self.tokenizer)
                    if on_finished is not None:
                        on_finished(index, rollouts[index])
        finally:
            engine.abort_request(list(running))
            engine.step()  # with a step's schedule the worker learns which requests have ended
        return [rollouts[index] for index in range(len(prompts))]

    def _parameters(self, request: ThinkingRequest, max_new_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sent, answer = encode_request(request)
        return SamplingParams(
            **answer,
            max_tokens=max_new_tokens,
            stop_token_ids=sorted(self.eos_token_ids),
            ignore_eos=True,  # vLLM's own idea of it; ours are the tokens above
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=sent,
        )


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


def read_rollout(output: Any, request: ThinkingRequest, tokenizer: Any) -> Rollout:
    """A finished RequestOutput, whose record is packed, as a rollout.

    Raises:
        NonFiniteLogitsError: Names the step at which the logits were not finite.
        ValueError: vLLM ended it before its time.
    """
    record = unpack(output.kv_transfer_params, request, engine="vllm")
    finish_reason = output.outputs[0].finish_reason
    return record.rollout(output.prompt_token_ids, finish_reason, tokenizer.decode)
