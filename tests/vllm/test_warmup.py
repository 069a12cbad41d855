"""A server that thinks by default starts: what vLLM runs for itself to warm up does not think."""

from __future__ import annotations

import json

import pytest
import torch

from softgrpo.rollout.vllm_plugin import wire
from tests.helpers import thinking
from tests.vllm.engines import make_model, running_engine


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """An engine as a server with defaults starts it."""
    sent, _ = wire.encode_config(thinking(max_think_tokens=3))
    monkeypatch.setenv(wire.DEFAULTS_VARIABLE, json.dumps(sent))
    make_model(tmp_path, tied=True)
    with running_engine(tmp_path, max_num_seqs=4) as engine:
        yield engine


def _warm_up(worker):
    """What vLLM's GPU worker runs before its first request."""
    from vllm.v1.worker.gpu.warmup import run_mixed_prefill_decode_warmup, warmup_kernels

    def sample(_):
        return worker.sample_tokens(None)  # the interpreter cannot run the kernel of grammars

    steps = worker.model_runner, worker.execute_model, sample
    warmup_kernels(*steps)
    run_mixed_prefill_decode_warmup(*steps, num_tokens=8)


def test_the_workers_own_requests_do_not_think(engine, monkeypatch):
    """With penalties, a bias and bad words, each of which is refused beside thinking."""
    from vllm import SamplingParams

    def start(worker):
        worker.thoughts.start("warm-up", SamplingParams.for_sampler_warmup(), 2)

    engine.llm.collective_rpc(start)
    (use_v2,) = engine.llm.collective_rpc(lambda worker: worker.use_v2_model_runner)
    if use_v2:
        from vllm.v1.sample.ops import topk_topp_sampler

        if not torch.accelerator.is_available():
            monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
            monkeypatch.setattr(topk_topp_sampler, "HAS_TRITON", False)  # as for grammars
        engine.llm.collective_rpc(_warm_up)
    assert engine.llm.collective_rpc("num_thoughts") == [0]


def test_beam_search_does_not_think_and_a_clients_request_does(engine):
    """Beams are made of tokens' log-probabilities, which a soft step has not."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    validate = engine.llm.llm_engine.input_processor.validate_logits_processors_params

    def asked(kind, **values):
        params = SamplingParams(output_kind=kind, **values)
        validate(params)
        return wire.decode_request(params.clone())  # vLLM sends on a copy of what it validated

    # As BeamSearchOnlineMixin makes them.
    assert asked(RequestOutputKind.CUMULATIVE, logprobs=4, max_tokens=1, temperature=0.0) is None
    for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY):
        assert asked(kind).config.max_think_tokens == 3
