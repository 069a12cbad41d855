"""What all engines have in common: what they are asked, what they refuse, where sequences end."""

from __future__ import annotations

import inspect

import pytest

from softgrpo.rollout import Request, Rollout, RolloutEngine, TransformersEngine
from softgrpo.rollout.engine import check_requests, find_eos_token_ids
from softgrpo.rollout.vllm_engine import VLLMEngine
from softgrpo.rollout.vllm_remote import VLLMServerEngine
from softgrpo.thinking import Objective
from tests.helpers import thinking, word_tokenizer

ENGINES = [TransformersEngine, VLLMEngine, VLLMServerEngine]


class _Backwards(RolloutEngine):
    """Ends the sequences from the last to the first; a rollout's text says which it is."""

    def __init__(self):
        self.requests = []

    def run(self, requests, on_finished):
        self.requests += requests
        for place in reversed(range(len(requests))):
            on_finished(place, Rollout([], [], str(place), None, None, "stop", None))

    def sync(self):
        pass


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_runs_requests_and_the_protocol_makes_them(engine):
    assert engine.generate is RolloutEngine.generate
    for name in ("run", "sync"):
        assert getattr(engine, name) is not getattr(RolloutEngine, name)
        wanted, found = (
            list(inspect.signature(getattr(e, name)).parameters.values())
            for e in (RolloutEngine, engine)
        )
        assert found[: len(wanted)] == wanted
        assert all(more.default is not inspect.Parameter.empty for more in found[len(wanted) :])


def test_every_sample_of_a_prompt_is_a_request():
    engine, config = _Backwards(), thinking()
    objective, seen = Objective(config), []
    rollouts = engine.generate(
        [[3], [4, 5]], config, max_new_tokens=[7, 6], num_generations=2, seed=9, first_sequence=40,
        objective=objective, on_finished=lambda place, rollout: seen.append((place, rollout.text)),
    )  # fmt: skip
    assert engine.requests == [
        Request((3,), config, 7, objective, seed=9, index=40),
        Request((3,), config, 7, objective, seed=9, index=41),
        Request((4, 5), config, 6, objective, seed=9, index=42),
        Request((4, 5), config, 6, objective, seed=9, index=43),
    ]
    assert [rollout.text for rollout in rollouts] == ["0", "1", "2", "3"]
    assert seen == [(place, str(place)) for place in (3, 2, 1, 0)]


def test_a_limit_for_all_prompts_or_one_for_each():
    engine = _Backwards()
    engine.generate([[3], [4]], thinking(), max_new_tokens=7)
    assert [request.limit for request in engine.requests] == [7, 7]
    assert engine.generate([], thinking(), max_new_tokens=7) == []
    with pytest.raises(ValueError, match="1 limits for 2 prompts"):
        engine.generate([[3], [4]], thinking(), max_new_tokens=[7])


@pytest.mark.parametrize(
    ("prompt", "limit", "why"),
    [((), 1, "no tokens"), ((3,), 0, "max_new_tokens=0"), ((3, 4), 8, "context of 9")],
)
def test_what_no_engine_can_generate_is_refused(prompt, limit, why):
    whole = Request((3, 4), thinking(), 7)
    check_requests([whole], 9)
    check_requests([whole], None)
    with pytest.raises(ValueError, match=why):
        check_requests([whole, Request(prompt, thinking(), limit)], 9)


@pytest.mark.parametrize("declared", [None, 1, [1], [5, 6]])
def test_the_ends_are_the_models_and_the_tokenizers(declared):
    tokenizer = word_tokenizer()
    models = {declared} if isinstance(declared, int) else set(declared or ())
    assert find_eos_token_ids(declared, tokenizer) == models | {tokenizer.eos_token_id}
    tokenizer.eos_token = None
    assert find_eos_token_ids(declared, tokenizer) == models
