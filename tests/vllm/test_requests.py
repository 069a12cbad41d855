"""Requests as a server makes them: what is wrong is refused before it runs, and hurts nobody."""

from __future__ import annotations

import json

import pytest

from softgrpo.rollout.vllm_engine import VLLMEngine
from softgrpo.rollout.vllm_plugin import wire
from tests.helpers import WORDS, thinking
from tests.vllm.engines import PROMPTS, make_model, running_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    with running_engine(folder) as engine:
        yield engine


def _generate(engine, sent, prompts=PROMPTS[:1], **values):
    from vllm import SamplingParams

    parameters = SamplingParams(
        **{"max_tokens": 12, "ignore_eos": True, "extra_args": sent} | values
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return engine.llm.generate(inputs, parameters, use_tqdm=False)


# There can be one engine at a time: the tests that make their own come before the shared one.
def test_the_ends_that_a_model_declares_are_the_engines(tmp_path):
    make_model(tmp_path, tied=True)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [5, 6]}))
    with running_engine(tmp_path) as engine:
        assert engine.eos_token_ids == {5, 6, engine.tokenizer.eos_token_id}


def test_a_seed_and_a_prompt_computed_in_pieces(folder):
    """vLLM's own sampling of such a request fails on CPUs, and takes the engine with it."""
    sent = {"soft_tau": 0.7, "soft_think_end": []}
    found = []
    for budget in (32, 256):
        with running_engine(folder, max_num_batched_tokens=budget, max_num_seqs=8) as engine:
            outputs = _generate(engine, sent, PROMPTS, seed=8)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def test_defaults_make_every_request_think_that_does_not_decline(folder, monkeypatch):
    sent, _ = wire.encode_config(thinking(max_think_tokens=3, think_end=("s t",)))
    monkeypatch.setenv(wire.DEFAULTS_VARIABLE, json.dumps(sent))
    marker = [WORDS.index("s"), WORDS.index("t")]
    with running_engine(folder) as engine:
        for asked, ends in ((None, True), ({"soft_policy": "off"}, False)):
            outputs = _generate(engine, asked, PROMPTS, temperature=0.0, max_tokens=5)
            assert all((list(o.outputs[0].token_ids[3:5]) == marker) == ends for o in outputs)


@pytest.mark.parametrize(
    ("sent", "values", "named"),
    [
        ({"soft_tau": -1}, {}, "soft_tau"),
        ({"soft_top_k": "five"}, {}, "soft_top_k"),
        ({"soft_nonsense": 1}, {}, "soft_nonsense"),
        ({"soft_tau": 0.1}, {"repetition_penalty": 1.3}, "repetition_penalty"),
    ],
)
def test_a_malformed_request_is_refused_by_name_and_the_engine_lives_on(
    engine, sent, values, named
):
    from vllm.exceptions import VLLMValidationError  # what the server answers with HTTP 400

    with pytest.raises(VLLMValidationError, match=named):
        _generate(engine, sent, **values)
    (output,) = _generate(engine, {"soft_tau": 0.5, "soft_think_end": "</t>"})
    assert len(output.outputs[0].token_ids) == 12


def test_samples_of_one_request_differ_and_its_seed_reproduces_them(engine):
    sent = {"soft_tau": 0.7, "soft_temperature": 2.0, "soft_think_end": "</t>"}
    first, again = (_generate(engine, sent, n=4, seed=8)[0].outputs for _ in range(2))
    assert [o.token_ids for o in first] == [o.token_ids for o in again]
    assert len({tuple(o.token_ids) for o in first}) == 4
    unseeded = _generate(engine, sent, n=4)[0].outputs
    assert len({tuple(o.token_ids) for o in unseeded}) == 4


def test_fewer_logprobs_than_columns_and_none(engine):
    sent = {"soft_tau": 0.7, "soft_top_k": 4, "soft_think_end": []}
    outputs = [_generate(engine, sent, logprobs=n, seed=1)[0].outputs[0] for n in (None, 1, 5)]
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids
    assert {len(step) for step in outputs[1].logprobs} == {1}  # the reported token is the first
    assert {len(step) for step in outputs[2].logprobs} == {5}


def test_each_prompt_may_have_a_limit_of_its_own(engine):
    limits = [1, 5, 9, 2]
    rollouts = engine.generate(
        PROMPTS, thinking(think_end=()), max_new_tokens=limits, num_generations=2
    )
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    wanted = [limit for limit in limits for _ in range(2)]
    ends = [rollout.finish_reason for rollout in rollouts]
    assert all(n == m or end == "stop" for n, m, end in zip(lengths, wanted, ends, strict=True))
    assert ends.count("length") >= 4


def test_a_top_k_beyond_the_vocabulary_keeps_all_of_it(engine):
    sent = {"soft_max_think_tokens": 1, "soft_think_end": "</t>", "soft_seed": 2}
    whole, beyond = (_generate(engine, sent, top_k=k)[0].outputs[0] for k in (0, 1000))
    assert whole.token_ids == beyond.token_ids


@pytest.mark.parametrize(
    ("option", "value"),
    [("pipeline_parallel_size", 2), ("async_scheduling", True), ("enable_prompt_embeds", False)],
)
def test_an_option_that_does_not_go_with_it_is_refused_by_name(folder, option, value):
    with pytest.raises(ValueError, match=f"{option}={value}: soft thinking needs"):
        VLLMEngine(str(folder), **{option: value})


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        (thinking("embedding_gaussian"), {}, "policy='embedding_gaussian'"),
        (thinking(top_k=33), {}, "top_k=33"),
        (thinking(answer_temperature=0.001), {}, "answer_temperature=0.001"),
        (thinking(), {"max_new_tokens": 0}, "max_new_tokens=0"),
        (thinking(), {"max_new_tokens": 10_000}, "context of 256"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(engine, config, options, named):
    with pytest.raises(ValueError, match=named):
        engine.generate(PROMPTS, config, **{"max_new_tokens": 4} | options)
    assert not engine.llm.llm_engine.has_unfinished_requests()


def test_a_server_is_started_with_what_soft_thinking_needs():
    from softgrpo.rollout.vllm_plugin.options import server_arguments

    needed = server_arguments(["--port", "8000", "--max-logprobs=50"])
    assert {"--worker-cls", "--scheduler-cls", "--enable-prompt-embeds"} <= set(needed)
    assert "--no-async-scheduling" in needed and "--max-logprobs" not in needed
    with pytest.raises(ValueError, match="--async-scheduling: soft thinking sets it itself"):
        server_arguments(["--async_scheduling"])
