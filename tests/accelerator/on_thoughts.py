"""A vLLM worker's thoughts on an accelerator, driven as vLLM drives them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.rollout.vllm_plugin.thoughts import Thoughts
from softgrpo.thinking import Objective
from tests.accelerator.pretend import DEVICE
from tests.helpers import POLICY_DENSITIES, thinking, word_tokenizer

V, D, PROMPT, STEPS = 36, 8, 5, 6
REQUESTS = {"a": {}, "b": {"tau": 0.1}, "c": {}, "d": {"max_think_tokens": 3}}
SERVED = [case for case in POLICY_DENSITIES if case[0] != "embedding_gaussian"]


def _start(thoughts, name, policy, density, reduction, settings):
    config = thinking(policy, **settings)
    objective = None if density == "none" else Objective(config, density, reduction)
    request = Request((), config, STEPS, objective, seed=3, index=ord(name))
    sent, answer = wire.encode_request(request)
    nothing = dict.fromkeys(wire._UNSUPPORTED)
    params = SimpleNamespace(extra_args=sent, seed=None, **nothing | answer)
    thoughts.start(name, params, PROMPT)


def _decode(device, *case):
    """What six steps of four requests drew and were fed, then fed again as after a preemption."""
    embedding = nn.Embedding(V, D).requires_grad_(False).to(device)
    thoughts = Thoughts(word_tokenizer(), V)
    for name, settings in REQUESTS.items():
        _start(thoughts, name, *case, settings)
    names = [*REQUESTS, "plain"]
    rows, count = [], len(names)
    for t in range(STEPS):
        logits = 2 * torch.randn(count, V)
        for drawn in thoughts.draw(logits.to(device), names, [PROMPT + t] * count):
            rows += [drawn.rows, drawn.tokens, drawn.ids, drawn.values]
        fed = torch.full((count, D), -1.0, device=device)
        thoughts.mix_inputs(fed, embedding, names, [PROMPT + t] * count, [1] * count)
        rows.append(fed)
    again = torch.full((4 * (PROMPT + STEPS), D), -1.0, device=device)
    length = PROMPT + STEPS
    thoughts.mix_inputs(again, embedding, names[:4], [0] * 4, [length] * 4)
    return [value.cpu() for value in [*rows, again]]


@pytest.mark.parametrize("case", SERVED, ids="-".join)
def test_what_is_drawn_and_fed_is_the_cpus(case):
    torch.manual_seed(1)
    wanted = _decode(torch.device("cpu"), *case)
    torch.manual_seed(1)
    found = _decode(DEVICE, *case)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
