"""The wire: what is sent is what is read, and what cannot be read is refused by its name."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.rollout.vllm_plugin.packed import KEY, PackedRecord, unpack
from softgrpo.thinking import Objective, ThinkingConfig
from softgrpo.thinking.advance import advance
from softgrpo.thinking.phases import Markers, ThinkingPhases
from tests.helpers import thinking, word_tokenizer

POLICIES = ["discrete", "soft", "gumbel", "dirichlet", "gaussian"]
# SamplingParams as vLLM has them when nothing is asked for.
NOTHING = {
    "extra_args": None, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
    "logit_bias": None, "allowed_token_ids": None, "bad_words": None, "structured_outputs": None,
    "max_tokens": 16,
}  # fmt: skip


def _params(extra_args=None, **values):
    return SimpleNamespace(**NOTHING | values | {"extra_args": extra_args})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 32, "top_p": 1.0, "min_p": 0.1, "noise_clamp": None, "prob_floor": 0.0},
        {"think_end": ("</t>", "s t"), "max_think_tokens": 7, "tau": 0.3, "alpha": 2.5},
        {"think_end": (), "temperature": 0.6, "answer_top_k": 3, "answer_top_p": 0.9},
        {"cold_stop_entropy": 0.1, "cold_stop_steps": 3, "answer_min_p": 0.05, "sigma": 0.01},
    ],
)
def test_settings_come_back_as_they_were_sent(policy, settings):
    config = thinking(policy, **settings)
    objective = Objective(config, None, "sum")
    request = Request((), config, 9, objective, seed=2**64 - 1, index=12)
    sent, answer = wire.encode_request(request, record="packed")
    overhead = json.loads(json.dumps(sent))  # a server's way
    params = _params(overhead, **answer)
    assert wire.decode_request(params) == request and wire.is_packed(params)


def test_every_setting_travels():
    own = {f.name for f in fields(ThinkingConfig) if not f.name.startswith("answer_")}
    sent, answer = wire.encode_config(ThinkingConfig())
    assert {name.removeprefix("soft_") for name in sent} == own
    assert {f"answer_{name}" for name in answer} | own == {f.name for f in fields(ThinkingConfig)}
    assert all(isinstance(v, (str, int, float, list)) for v in sent.values())


def test_who_asks_for_nothing_gets_nothing_and_defaults_are_defaults():
    assert wire.decode_request(_params()) is None
    assert wire.decode_request(_params({"other": 1})) is None
    defaults = {"soft_policy": "gumbel", "soft_tau": 0.3, "soft_think_end": ["####"]}

    def read(sent=None, **values):
        params = _params(sent, **values)
        wire.complete_request(params, defaults)
        once = dict(params.extra_args)
        wire.complete_request(params, defaults)  # a request of several prompts comes by as often
        assert params.extra_args == once
        return wire.decode_request(params)

    config = read({"soft_tau": 0.5, "other": 1}, temperature=0.7).config
    assert (config.tau, config.think_end, config.answer_temperature) == (0.5, ("####",), 0.7)
    assert read().config.tau == 0.3
    assert read({"soft_policy": "off"}) is None
    greedy = read(temperature=0.0).config
    assert (greedy.answer_top_k, greedy.answer_temperature) == (1, 1.0)


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({"soft_tau": "warm"}, "soft_tau='warm': must be a finite number"),
        ({"soft_tau": 0}, "soft_tau=0: must be > 0"),
        ({"soft_tau": float("nan")}, "soft_tau=nan: must be a finite number"),
        ({"soft_tau": "off"}, "soft_tau='off': must be a finite number"),
        ({"soft_top_k": 2.5}, "soft_top_k=2.5: must be a whole number"),
        ({"soft_top_k": True}, "soft_top_k=True"),
        ({"soft_top_k": 33}, "top_k=33: at most 32"),
        ({"soft_policy": "gumbol"}, "soft_policy='gumbol'"),
        ({"soft_policy": "embedding_gaussian"}, "policy='embedding_gaussian'"),
        ({"soft_noise_clamp": [1]}, "soft_noise_clamp=\\(1,\\): must be a list of 2"),
        ({"soft_think_end": [3]}, "soft_think_end=\\(3,\\): must be a list"),
        ({"soft_think_end": "x" * 101}, "soft_think_end=.*at most"),
        ({"soft_seed": -1}, "soft_seed=-1"),
        ({"soft_sequence": 2**64}, "soft_sequence=18.*must be in"),
        ({"soft_seed": True}, "soft_seed=True: must be a whole number"),
        ({"soft_policy": {}}, "soft_policy={}"),
        ({"soft_record": "zip"}, "soft_record='zip': must be one of"),
        ({"soft_density": "dirichlet"}, "soft_density='dirichlet'"),
        ({"soft_reduction": "median", "soft_density": "gumbel"}, "soft_reduction='median'"),
        ({"soft_temp": 1.0}, "soft_temp: no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(sent, named):
    with pytest.raises(ValueError, match=named):
        wire.decode_request(_params(sent))


@pytest.mark.parametrize(
    "asked", [{"repetition_penalty": 1.1}, {"min_tokens": 3}, {"logit_bias": {1: 2.0}}]
)
def test_what_would_be_ignored_is_refused(asked):
    with pytest.raises(ValueError, match=next(iter(asked))):
        wire.decode_request(_params({"soft_tau": 0.1}, **asked))
    assert wire.decode_request(_params(**asked)) is None


def test_requests_of_equal_settings_may_be_drawn_together():
    def key(config, seed=0):
        sent, answer = wire.encode_request(Request((), config, 9, seed=seed, index=seed))
        request = wire.decode_request(_params(sent, **answer))
        return request.config, request.objective

    assert key(thinking()) == key(thinking(), seed=5)
    assert len({key(thinking()), key(thinking(tau=0.1)), key(thinking(answer_top_p=0.5))}) == 3
    assert key(thinking(think_end=("a", "b"))) != key(thinking(think_end=("b", "a")))


@pytest.mark.parametrize("way", ["flat", "dictionary", "packed"])
@pytest.mark.parametrize("policy", POLICIES)
def test_steps_come_back_as_they_were_drawn(policy, way):
    """In columns, through a server's dictionary that drops ids it has seen, or packed."""
    config = thinking(policy, max_think_tokens=4, top_p=0.7)
    objective = Objective(config, None, "sum")
    request = Request((), config, 8, objective)
    phases = ThinkingPhases(Markers(config.think_end, word_tokenizer()), config)
    numbers = np.array([phases.begin()])
    drawn, ids, values = [], [], []
    packed = PackedRecord(request)
    for _ in range(8):
        logits, noise = torch.randn(1, 36), torch.empty(1, config.num_columns).exponential_()
        step, is_soft = advance(logits, noise, config, phases, numbers)
        logp = torch.randn(1)
        drawn.append((step, bool(is_soft), logp.item()))
        row, value = wire.encode_steps(step, is_soft, [phases.ended_by(0)], logp, 36)
        assert len(set(row[0].tolist())) == row.numel() == wire.num_logprobs(request)
        reported = torch.cat([row[:, :1], row], -1), torch.cat([value[:, :1], value], -1)
        # Beside a request of more columns, whose room vLLM fills up.
        packed.append(*(F.pad(x[0], (0, 3)).numpy() for x in reported))
        if way == "dictionary":
            kept = dict(zip(reported[0][0].tolist(), reported[1][0].tolist(), strict=True))
            row, value = torch.tensor([list(kept)]), torch.tensor([list(kept.values())])
        ids.append(row), values.append(value)
    if way == "packed":
        record = unpack({"other": 1, KEY: packed.text()}, request, "test")
    else:
        record = wire.decode_steps(torch.cat(ids), torch.cat(values), request, "test")
    trace = record.trace
    assert record.thinking_ended_by == "budget" and record.non_finite_step is None
    for t, (step, is_soft, logp) in enumerate(drawn):
        assert torch.equal(trace.ids[0, t], step.ids[0].int())
        assert torch.equal(trace.scores[0, t], step.scores[0])
        assert torch.equal(trace.support[0, t], step.support[0])
        assert bool(trace.is_soft[0, t]) == is_soft
        assert record.logps[t] == logp
    trace.require(config)
    assert trace.is_forced.any()


def test_logits_that_are_not_finite_are_reported():
    config = thinking()
    phases = ThinkingPhases(Markers(config.think_end, word_tokenizer()), config)
    numbers = np.array([phases.begin()])
    request = Request((), config, 2)
    parts = []
    for logits in (torch.randn(1, 36), torch.full((1, 36), torch.nan)):
        step, is_soft = advance(logits, torch.ones(1, 4), config, phases, numbers)
        parts.append(wire.encode_steps(step, is_soft, [None], None, 36))
    ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
    assert torch.isfinite(values).all() and (ids < 36).all()
    assert wire.decode_steps(ids, values, request, "test").non_finite_step == 2
