"""What vLLM drew is what the trainer replays: log-densities to 1e-4 in float32."""

from __future__ import annotations

import pytest
import torch

from softgrpo.replay.logps import replay_logits
from softgrpo.rollout import NonFiniteLogitsError, Request
from softgrpo.rollout.vllm_engine import read_rollout
from softgrpo.rollout.vllm_plugin import wire
from softgrpo.thinking import Objective
from tests.helpers import replay_rollouts, thinking
from tests.vllm.engines import BOUND, PROMPTS, gaps, make_model, running_engine

# Policies, K, tau, sampling and ends of every kind, side by side in one batch.
MIXED = [
    ("gumbel", "gumbel", {}),
    ("gumbel", "concrete", {"top_k": 9, "tau": 0.1, "top_p": 0.8}),
    ("gumbel", "argmax", {"top_k": 32, "tau": 1.5, "noise_clamp": None, "prob_floor": 0.0}),
    ("gumbel", "gumbel", {"max_think_tokens": 5, "answer_temperature": 1.2}),
    ("gumbel", "gumbel", {"max_think_tokens": 2, "answer_top_k": 3, "answer_top_p": 0.9}),
    ("gumbel", "gumbel", {"think_end": ("s t", "</t>"), "max_think_tokens": 7}),
    ("gumbel", "gumbel", {"cold_stop_entropy": 1.2, "cold_stop_steps": 2}),
    ("dirichlet", "dirichlet", {}),
    ("dirichlet", "dirichlet", {"alpha": 3.0, "top_k": 2, "max_think_tokens": 6}),
    ("gaussian", "gaussian", {}),
    ("soft", "none", {"max_think_tokens": 8}),
    ("discrete", "token", {}),
    ("discrete", "token", {"top_k": 5, "min_p": 0.1}),
]
CONFIGS = [thinking(policy, **settings) for policy, _, settings in MIXED]
OBJECTIVES = [
    Objective(config, density, "sum")
    for config, (_, density, _) in zip(CONFIGS, MIXED, strict=True)
]


@pytest.fixture(scope="module", params=["tied", "untied"])
def served(request, tmp_path_factory):
    """A model's folder, and the model in transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make_model(folder, tied=request.param == "tied")


def _mixed(engine, repeats=2, on_finished=lambda *_: None):
    """Each kind of MIXED on each of PROMPTS, several times over, in one batch."""
    cases = [(p, i) for _ in range(repeats) for p in PROMPTS for i in range(len(MIXED))]
    requests = [
        Request(tuple(prompt), CONFIGS[i], 40, OBJECTIVES[i], seed=3, index=index)
        for index, (prompt, i) in enumerate(cases)
    ]
    rollouts = _run(engine, requests, on_finished)
    return rollouts, [r.config for r in requests], [r.objective for r in requests]


def _run(engine, requests, on_finished=lambda *_: None):
    """The rollouts of requests, in their order."""
    rollouts = {}

    def keep(place, rollout):
        rollouts[place] = rollout
        on_finished(place, rollout)

    engine.run(requests, keep)
    return [rollouts[place] for place in range(len(requests))]


def _facts(rollouts):
    return [(r.token_ids, r.finish_reason, r.thinking_ended_by) for r in rollouts]


@pytest.fixture(scope="module")
def roomy(served):
    """Rollouts with room for all, prompts computed in one piece."""
    folder, _ = served
    with running_engine(folder, max_num_seqs=128, enable_prefix_caching=False) as engine:
        yield _mixed(engine)


def test_a_batch_of_every_kind(served, roomy):
    _, model = served
    rollouts, configs, objectives = roomy
    ends = {r.thinking_ended_by for r in rollouts}
    assert ends == {None, "marker", "budget", "cold_stop"}
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert {r.trace.ids.shape[-1] for r in rollouts} == {1, 2, 4, 9, 32}
    assert any(r.trace.is_forced.any() for r in rollouts)
    assert max(gaps(model, *roomy)) < BOUND


def test_the_bound_tells_a_mixture_from_its_reported_token(served, roomy):
    """The control: with the reported tokens for inputs the same check is far off."""
    _, model = served
    rollouts, configs, objectives = roomy
    soft = [i for i, r in enumerate(rollouts) if r.trace.is_soft[0, :-1].sum() > 3]
    spoiled = []
    for i in soft:
        logps = torch.tensor(rollouts[i].logps)
        trace = rollouts[i].trace
        ids = torch.tensor([rollouts[i].prompt_ids + rollouts[i].token_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(rollouts[i].prompt_ids) - 1 : -1]
            steps = trace.steps(trace.mask)
            hard = replay_logits(logits, steps, objectives[i])
        spoiled.append((hard - logps).abs().max().item())
    assert min(spoiled) > 100 * BOUND


def test_a_rollout_can_be_trained_on(served, roomy):
    _, model = served
    rollouts, configs, objectives = roomy
    replayed, _, mask = replay_rollouts(model, rollouts[:1], configs[0], objectives[0])
    replayed.logps[mask].sum().backward()
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    model.zero_grad()
    assert gradient.isfinite().all() and (gradient != 0).any()


def test_preemption_and_chunked_prefill(served, roomy, monkeypatch):
    """Blocks for a tenth of the batch, sixteen positions a step: the same traces come out."""
    from softgrpo.rollout.vllm_plugin.scheduler import SoftScheduler

    folder, model = served
    preempted = []
    original = SoftScheduler._preempt_request
    monkeypatch.setattr(
        SoftScheduler,
        "_preempt_request",
        lambda self, request, *args, **kwargs: (
            preempted.append(request.num_output_tokens),
            original(self, request, *args, **kwargs),
        )[1],
    )
    with running_engine(
        folder, max_num_batched_tokens=48, max_num_seqs=48, kv_cache_memory_bytes=30 * 2**14
    ) as engine:
        cramped = _mixed(engine)
        assert engine.llm.collective_rpc("num_thoughts") == [0]
    assert sum(steps > 0 for steps in preempted) > 10
    assert max(gaps(model, *cramped)) < BOUND
    same = [a == b for a, b in zip(_facts(cramped[0]), _facts(roomy[0]), strict=True)]
    assert sum(same) > 0.95 * len(same)  # the others part where two candidates are nearly equal


def test_after_each_of_three_updates(served):
    folder, model = served
    old = {name: p.clone() for name, p in model.state_dict().items()}
    try:
        with running_engine(folder, source=model) as engine:
            before, configs, objectives = _mixed(engine, repeats=1)
            for update in range(3):
                torch.manual_seed(update)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
                engine.sync()
                after, _, _ = _mixed(engine, repeats=1)
                assert max(gaps(model, after, configs, objectives)) < BOUND
                assert max(gaps(model, before, configs, objectives)) > 100 * BOUND
                before = after
    finally:
        model.load_state_dict(old)


def test_a_sequence_depends_on_its_seed_and_index_alone(served, roomy):
    folder, _ = served
    rollouts, configs, _ = roomy
    with running_engine(folder) as engine:
        for index in (0, 17, 40):
            prompt = tuple(rollouts[index].prompt_ids)
            alone = _run(engine, [Request(prompt, configs[index], 40, seed=3, index=index)])
            assert _facts(alone) == _facts([rollouts[index]])
        other = engine.generate([PROMPTS[0]], configs[0], max_new_tokens=40, seed=4)
        assert _facts(other) != _facts(rollouts[:1])


def test_weights_that_are_not_finite_are_reported_and_the_engine_lives_on(served):
    folder, model = served
    norm = model.model.norm.weight.data
    with running_engine(folder, source=model) as engine:
        whole = norm.clone()
        norm.fill_(torch.nan)
        engine.sync()
        norm.copy_(whole)
        with pytest.raises(NonFiniteLogitsError, match="generated step 1"):
            _mixed(engine, repeats=1)
        engine.sync()
        assert max(gaps(model, *_mixed(engine, repeats=1))) < BOUND


def test_an_interrupted_rollout_leaves_nothing_behind(served):
    folder, model = served

    def interrupt(index, rollout):
        raise KeyboardInterrupt

    with running_engine(folder) as engine:
        with pytest.raises(KeyboardInterrupt):
            _mixed(engine, on_finished=interrupt)
        assert not engine.llm.llm_engine.has_unfinished_requests()
        assert not engine.llm.llm_engine.engine_core.engine_core.scheduler._records
        assert max(gaps(model, *_mixed(engine, repeats=1))) < BOUND
        assert engine.llm.collective_rpc("num_thoughts") == [0]


def test_soft_and_plain_requests_in_one_batch(served):
    """vLLM's own sampling is left alone, beside thinking and without it."""
    from vllm import SamplingParams

    folder, model = served
    config = CONFIGS[0]
    request = Request((), config, 30, OBJECTIVES[0], seed=3)
    sent, own = wire.encode_request(request, record="packed")
    soft = SamplingParams(**own, extra_args=sent, detokenize=False, stop_token_ids=[1])
    plain = SamplingParams(temperature=0.0, logprobs=2, max_tokens=30, ignore_eos=True)
    with running_engine(folder) as engine:
        prompts = [{"prompt_token_ids": p} for p in PROMPTS for _ in range(2)]
        outputs = engine.llm.generate(prompts, [soft, plain] * len(PROMPTS), use_tqdm=False)
    for output in outputs[1::2]:
        completion = output.outputs[0]
        ids = torch.tensor([[*output.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        logps = logps[len(output.prompt_token_ids) - 1 : -1]
        drawn = [
            p[t].logprob for t, p in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        best = logps.max(-1).values
        torch.testing.assert_close(torch.tensor(drawn), best, rtol=0, atol=BOUND)
    rollouts = [read_rollout(output, request, engine.tokenizer) for output in outputs[::2]]
    assert max(gaps(model, rollouts, [config] * 4, [OBJECTIVES[0]] * 4)) < BOUND


@pytest.mark.slow
def test_compiled(served):
    folder, model = served
    with running_engine(folder, enforce_eager=False) as engine:
        assert max(gaps(model, *_mixed(engine))) < BOUND
