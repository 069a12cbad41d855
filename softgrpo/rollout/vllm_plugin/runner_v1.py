"""Soft thinking in vLLM's V1 model runner (the default on CPUs)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput

from softgrpo.rollout.vllm_plugin.sampling import empty_logprobs, write
from softgrpo.rollout.vllm_plugin.thoughts import Thoughts


class SoftRunnerV1:
    """Mixed in over V1's GPUModelRunner, whose methods and attributes it uses."""

    thoughts: Thoughts
    _ends: list[int]

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        self.thoughts.finish(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            self.thoughts.start(new.req_id, new.sampling_params, new.prompt_len)
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        for new in scheduler_output.scheduled_new_reqs:
            if new.req_id in self.thoughts:
                # Its noise is its own, and on a CPU vLLM's generator of a seeded request fails
                # where a prompt is computed in pieces.
                self.requests[new.req_id].generator = None
                self.input_batch.generators.pop(self.input_batch.req_id_to_index[new.req_id], None)
        return result

    def _preprocess(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = super()._preprocess(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        request_ids = self.input_batch.req_ids
        starts = self.input_batch.num_computed_tokens_cpu[: len(request_ids)].tolist()
        counts = [scheduler_output.num_scheduled_tokens[i] for i in request_ids]
        self._ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.thoughts.mix_inputs(
            self.inputs_embeds.gpu, self.model.embed_input_ids, request_ids, starts, counts
        )
        return inputs

    def _sample(self: Any, logits: Tensor | None, spec_decode_metadata: Any) -> SamplerOutput:
        request_ids = self.input_batch.req_ids
        others = [i for i in request_ids if i not in self.thoughts]
        if logits is None or len(others) == len(request_ids):
            return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        drawn = self.thoughts.draw(logits, request_ids, self._ends)  # vLLM's works in place
        metadata = self.input_batch.sampling_metadata
        if others:
            # Logprobs cost a pass over the vocabulary: only where one of the others wants them.
            if not any(i in self.input_batch.num_logprobs for i in others):
                self.input_batch.sampling_metadata = replace(metadata, max_num_logprobs=None)
            try:
                output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
            finally:
                self.input_batch.sampling_metadata = metadata
        else:
            tokens = torch.zeros(len(logits), 1, dtype=torch.int32, device=logits.device)
            output = SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)
        if output.logprobs_tensors is None and metadata.max_num_logprobs is not None:
            output.logprobs_tensors = empty_logprobs(logits, metadata.max_num_logprobs)
        write(drawn, output)
        return output
