"""Blocks that hold soft tokens serve nobody else; blocks that hold a prompt serve a whole group."""

from __future__ import annotations

import pytest
import torch

from softgrpo.rollout import Request
from softgrpo.rollout.vllm_engine import read_rollout
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.thinking import Objective
from tests.helpers import thinking
from tests.vllm.engines import BOUND, gaps, make_model, running_engine

PROMPT = [*range(3, 33), *range(3, 33), *range(5, 15)]  # two blocks of 32 and six tokens
CONFIG = thinking(think_end=(), top_p=1.0)
OBJECTIVE = Objective(CONFIG, "gumbel", "sum")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, make_model(folder, tied=False)


def _soft(seed=0, max_tokens=70):
    from vllm import SamplingParams

    request = Request(tuple(PROMPT), CONFIG, max_tokens, OBJECTIVE, seed=seed)
    sent, own = wire.encode_request(request, record="packed")
    parameters = SamplingParams(**own, extra_args=sent, ignore_eos=True, detokenize=False)
    return request, parameters


def _generate(engine, prompts, parameters):
    prompts = [{"prompt_token_ids": prompt} for prompt in prompts]
    return engine.llm.generate(prompts, parameters, use_tqdm=False)


def _plain_after_soft(engine):
    """A plain request that repeats a thought's reported tokens: what it hit, and its log p."""
    from vllm import SamplingParams

    (thought,) = _generate(engine, [PROMPT], _soft()[1])
    ids = [*PROMPT, *thought.outputs[0].token_ids]
    greedy = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)
    (plain,) = _generate(engine, [ids], greedy)
    ((token, logprob),) = list(plain.outputs[0].logprobs[0].items())[:1]
    return plain.num_cached_tokens, ids, token, logprob.logprob


def _replayed(model, ids, token):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()


def test_a_thought_is_never_served_to_another_request(served):
    folder, model = served
    with running_engine(folder) as engine:
        num_cached, ids, token, logp = _plain_after_soft(engine)
    assert num_cached == 64  # the prompt's two blocks, and no more
    assert logp == pytest.approx(_replayed(model, ids, token), abs=BOUND)


def test_without_the_salt_it_would_be(served, monkeypatch):
    """The hazard itself: four blocks are hit, two of which hold mixtures."""
    folder, model = served
    salt = "softgrpo.rollout.vllm_plugin.scheduler._salt_generated_blocks"
    monkeypatch.setattr(salt, lambda request: None)
    with running_engine(folder) as engine:
        num_cached, ids, token, logp = _plain_after_soft(engine)
    assert num_cached == 128
    assert abs(logp - _replayed(model, ids, token)) > 100 * BOUND


def test_a_group_shares_its_prompt_and_nothing_else(served):
    folder, model = served
    with running_engine(folder, max_num_seqs=2) as engine:  # the others come when two have gone
        asked = [_soft(seed) for seed in range(8)]
        outputs = _generate(engine, [PROMPT] * 8, [parameters for _, parameters in asked])
        again = _generate(engine, [PROMPT] * 8, [parameters for _, parameters in asked])
    hits = [output.num_cached_tokens for output in outputs]
    assert hits.count(64) >= 6 and set(hits) <= {0, 64}  # of 70 tokens
    assert [output.num_cached_tokens for output in again] == [64] * 8
    for batch in (outputs, again):
        rollouts = [
            read_rollout(output, request, engine.tokenizer)
            for output, (request, _) in zip(batch, asked, strict=True)
        ]
        assert max(gaps(model, rollouts, [CONFIG] * 8, [OBJECTIVE] * 8)) < BOUND
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in again]


def test_discrete_policies_keep_vllms_own_hashes(served):
    """Their blocks hold tokens only, so they may be shared."""
    folder, _ = served
    config = thinking("discrete", think_end=())
    with running_engine(folder, eos_token_ids=()) as engine:
        (rollout,) = engine.generate([PROMPT], config, max_new_tokens=70)
        longer = [*PROMPT, *rollout.token_ids]
        from vllm import SamplingParams

        sent, own = wire.encode_request(Request(tuple(longer), config, 1))
        (output,) = _generate(engine, [longer], SamplingParams(**own, extra_args=sent))
    assert output.num_cached_tokens == 128
