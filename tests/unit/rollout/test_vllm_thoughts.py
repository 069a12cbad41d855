"""A worker's thinking requests, driven as vLLM drives them: in pieces and interrupted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softgrpo.modeling.inputs import mix
from softgrpo.rollout import Request
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.rollout.vllm_plugin.thoughts import Thoughts
from tests.helpers import thinking, word_tokenizer

V, D, PROMPT = 36, 8, 5


@pytest.fixture
def embedding():
    return nn.Embedding(V, D).requires_grad_(False)


@pytest.fixture
def thoughts():
    return Thoughts(word_tokenizer(), V)


def _start(thoughts, name, seed=0, **settings):
    request = Request((), thinking(**{"think_end": ()} | settings), 9, seed=seed)
    sent, answer = wire.encode_request(request)
    nothing = dict.fromkeys(wire._UNSUPPORTED)
    params = SimpleNamespace(extra_args=sent, seed=None, **nothing | answer)
    thoughts.start(name, params, PROMPT)


def _draw(thoughts, names, ends, seed):
    torch.manual_seed(seed)
    return thoughts.draw(torch.randn(len(names), V), names, ends)


def test_nothing_is_drawn_before_a_prompt_is_whole(thoughts):
    _start(thoughts, "a"), _start(thoughts, "b")
    assert [part.rows.tolist() for part in _draw(thoughts, ["a", "b"], [5, 3], 0)] == [[0]]
    assert [part.rows.tolist() for part in _draw(thoughts, ["a", "b"], [6, 5], 0)] == [[0, 1]]


def test_equal_settings_are_drawn_together_and_others_apart(thoughts):
    for name, settings in {"a": {}, "b": {"tau": 0.1}, "c": {}, "d": {"top_k": 2}}.items():
        _start(thoughts, name, **settings)
    parts = _draw(thoughts, ["a", "plain", "b", "c", "d"], [5] * 5, 0)
    assert [part.rows.tolist() for part in parts] == [[0, 3], [2], [4]]
    assert [part.ids.shape[1] for part in parts] == [5, 5, 3]


def test_a_draw_depends_on_the_seed_alone_and_leaves_the_logits(thoughts):
    _start(thoughts, "a", seed=3), _start(thoughts, "b", seed=3), _start(thoughts, "c", seed=4)
    logits = torch.randn(1, V).repeat(3, 1)
    before = logits.clone()
    (part,) = thoughts.draw(logits, ["a", "b", "c"], [5] * 3)
    assert torch.equal(logits, before)
    assert torch.equal(part.values[0], part.values[1])
    assert not torch.equal(part.values[0], part.values[2])


def test_what_is_fed_is_the_mixture_however_the_positions_are_cut(thoughts, embedding):
    """Decoding position by position, and the recomputation after a preemption, in pieces."""
    _start(thoughts, "a"), _start(thoughts, "b", top_k=2)
    fed = torch.zeros(2, 4, D)
    for t in range(4):
        _draw(thoughts, ["a", "b"], [PROMPT + t] * 2, t)
        inputs = torch.zeros(2, D)
        thoughts.mix_inputs(inputs, embedding, ["a", "b"], [PROMPT + t] * 2, [1, 1])
        fed[:, t] = inputs
    _, ids, weights = map(torch.from_numpy, thoughts._thoughts["a"].fed.mixed())
    torch.testing.assert_close(fed[0], mix(embedding, ids, weights))
    for pieces in ([(0, 9)], [(0, 6), (6, 3)], [(3, 4), (7, 2)]):
        again = torch.zeros(2, 9, D)
        for start, count in pieces:
            inputs = torch.full((2 * count, D), -1.0)  # -1: the tokens' own embeddings
            thoughts.mix_inputs(inputs, embedding, ["a", "b"], [start] * 2, [count] * 2)
            again[:, start : start + count] = inputs.view(2, count, D)
        assert (again[:, 3:PROMPT] == -1).all()
        torch.testing.assert_close(again[:, PROMPT:], fed)


def test_ordinary_tokens_are_left_to_vllm(thoughts, embedding):
    _start(thoughts, "a", think_end=("</t>",), max_think_tokens=1)
    for t in range(3):  # a soft step, the marker, an answer's token
        _draw(thoughts, ["a"], [PROMPT + t], t)
    inputs = torch.full((3, D), -1.0)
    thoughts.mix_inputs(inputs, embedding, ["a"], [PROMPT], [3])
    assert (inputs[1:] == -1).all() and (inputs[0] != -1).all()


def test_a_request_is_forgotten_when_it_ends_and_kept_when_it_is_taken_in_again(thoughts):
    _start(thoughts, "a")
    _draw(thoughts, ["a"], [5], 0)
    _start(thoughts, "a")  # after a preemption it comes as new
    assert _draw(thoughts, ["a"], [5], 1) == [] and len(_draw(thoughts, ["a"], [6], 1)) == 1
    thoughts.finish(["a", "never seen"])
    assert len(thoughts) == 0 and "a" not in thoughts


def test_settings_are_forgotten_with_their_last_request(thoughts):
    """A server meets as many as its clients think of."""
    for i in range(5):
        _start(thoughts, f"a{i}", tau=0.1 + i), _start(thoughts, f"b{i}", tau=0.1 + i)
        thoughts.finish([f"a{i}"])
        assert len(thoughts._phases) == 1
        thoughts.finish([f"b{i}"])
    assert not thoughts._phases
