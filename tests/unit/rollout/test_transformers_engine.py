"""The engine: a sequence depends on the seed and its index, and on nothing else in the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from softgrpo.rollout import NonFiniteLogitsError, Request, TransformersEngine
from softgrpo.thinking import Objective, ThinkingConfig
from tests.helpers import (
    PROMPTS,
    VOCAB_SIZE,
    WORDS,
    roll_out,
    thinking,
    tiny_model,
    word_tokenizer,
)

POLICY_NAMES = ["discrete", "soft", "gumbel", "dirichlet", "gaussian", "embedding_gaussian"]
MARKER = WORDS.index("</t>")


def _facts(rollouts):
    return [(r.token_ids, r.finish_reason, r.thinking_ended_by, r.text) for r in rollouts]


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("max_batch_size", [1, 5])
def test_the_batch_size_changes_no_rollout(policy, max_batch_size):
    model, config = tiny_model(), thinking(policy)
    together = roll_out(model, config, num_generations=8)
    apart = roll_out(model, config, num_generations=8, max_batch_size=max_batch_size)
    assert _facts(together) == _facts(apart)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a.trace.scores, b.trace.scores, rtol=1e-3, atol=1e-4)
        assert torch.equal(a.trace.is_soft, b.trace.is_soft)


def test_a_negative_end_of_sequence_is_none():
    """As transformers' configs say it; it had become the end of every sequence."""
    engine = TransformersEngine(tiny_model(), word_tokenizer(), eos_token_ids=[-1])
    rollouts = engine.generate(PROMPTS, thinking(), max_new_tokens=6)
    assert [(len(r.token_ids), r.finish_reason) for r in rollouts] == [(6, "length")] * 3


@pytest.mark.parametrize("end", [{"max_think_tokens": 4}, {"cold_stop_entropy": 99.0,
                                                         "cold_stop_steps": 4}])  # fmt: skip
def test_how_a_thought_ended_does_not_depend_on_the_batch(end):
    """A sequence that has ended goes on being decoded until its row is dropped; unseen."""
    model, config = tiny_model(), thinking(**end)
    together = roll_out(model, config, num_generations=16)
    apart = roll_out(model, config, num_generations=16, max_batch_size=1)
    ended_early = [r for r in apart if r.finish_reason == "stop" and len(r.token_ids) < 4]
    assert any(r.thinking_ended_by is None for r in ended_early)
    assert _facts(together) == _facts(apart)


def test_a_seed_reproduces_and_another_does_not():
    model, config = tiny_model(), thinking()
    first, again, other = (roll_out(model, config, seed=s) for s in (1, 1, 2))
    assert _facts(first) == _facts(again) != _facts(other)


def test_a_rollout_made_in_parts_is_the_rollout():
    model, config = tiny_model(), thinking()
    whole = roll_out(model, config, prompts=PROMPTS, num_generations=2)
    parts = [
        roll_out(model, config, prompts=[p], num_generations=2, first_sequence=2 * i)
        for i, p in enumerate(PROMPTS)
    ]
    assert _facts(whole) == _facts([r for part in parts for r in part])


def test_samples_of_a_prompt_are_side_by_side_and_differ():
    rollouts = roll_out(tiny_model(), thinking(), num_generations=3)
    assert [r.prompt_ids for r in rollouts] == [p for p in PROMPTS for _ in range(3)]
    assert rollouts[0].token_ids != rollouts[1].token_ids


@pytest.mark.parametrize("policy", [p for p in POLICY_NAMES if p != "soft"])
def test_a_marker_ends_the_thought_in_one_hot_and_the_answer_is_tokens(policy):
    rollouts = roll_out(tiny_model(), thinking(policy), num_generations=16)
    closed = [r for r in rollouts if MARKER in r.token_ids]
    assert closed and all(r.thinking_ended_by == "marker" for r in closed)
    for r in closed:
        end = r.token_ids.index(MARKER)
        soft = r.trace.is_soft[0]
        assert soft[:end].all() == (policy != "discrete" or end == 0)
        assert not soft[end:].any()
        assert (r.trace.ids[0, end, 1:] == 0).all() and not r.trace.is_forced.any()


def test_at_the_budget_the_whole_marker_is_forced_and_the_answer_follows():
    config = thinking(think_end=("s t",), max_think_tokens=3)
    wanted = word_tokenizer().encode("s t")
    rollouts = roll_out(tiny_model(), config, num_generations=16)
    forced = [r for r in rollouts if r.thinking_ended_by == "budget" and len(r.token_ids) > 5]
    assert forced
    for r in forced:
        assert r.token_ids[3:5] == wanted
        assert r.trace.is_forced[0, :6].tolist() == [False] * 3 + [True] * 2 + [False]
        assert r.trace.is_soft[0, :6].tolist() == [True] * 3 + [False] * 3


def test_sequences_end_at_eos_or_the_limit():
    for r in roll_out(tiny_model(), thinking(), num_generations=16):
        assert (r.token_ids[-1] == 1) == (r.finish_reason == "stop")
        assert 1 not in r.token_ids[:-1]
        assert r.finish_reason == "stop" or len(r.token_ids) == 12


def test_discrete_tokens_have_the_models_frequencies():
    from scipy import stats

    model, count = tiny_model(), 4000
    rollouts = roll_out(
        model, ThinkingConfig(policy="discrete", think_end=()), prompts=[[5, 6]],
        num_generations=count, max_new_tokens=1, max_batch_size=count,
    )  # fmt: skip
    tokens = torch.tensor([r.token_ids[0] for r in rollouts])
    with torch.no_grad():
        probs = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1].double(), -1)
    counts = torch.bincount(tokens, minlength=len(probs)).numpy()
    assert stats.chisquare(counts, probs.numpy() * count).pvalue > 1e-3


def test_streamed_steps_are_the_rollouts():
    model, config = tiny_model(), thinking()
    engine = TransformersEngine(model, word_tokenizer())
    steps = list(engine.stream(PROMPTS[1], config, max_new_tokens=12, seed=3))
    rollout = engine.generate([PROMPTS[1]], config, max_new_tokens=12, seed=3)[0]
    assert [s.token for s in steps] == rollout.token_ids
    assert [s.is_soft for s in steps] == rollout.trace.is_soft[0].tolist()
    for step, support in zip(steps, rollout.trace.support[0], strict=True):
        assert len(step.ids) == support.sum() and sum(step.weights) == pytest.approx(1, abs=1e-5)


def test_a_copy_in_bfloat16_follows_the_model_when_synced():
    model = tiny_model()
    engine = TransformersEngine(model, word_tokenizer(), dtype=torch.bfloat16)
    options = {"max_new_tokens": 8, "seed": 3}
    before = engine.generate(PROMPTS, thinking(), **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1.5)
    assert _facts(engine.generate(PROMPTS, thinking(), **options)) == _facts(before)
    engine.sync()
    after = engine.generate(PROMPTS, thinking(), **options)
    fresh = TransformersEngine(model, word_tokenizer(), dtype=torch.bfloat16)
    assert _facts(after) == _facts(fresh.generate(PROMPTS, thinking(), **options))
    assert _facts(after) != _facts(before) and model.dtype == torch.float32


def test_a_copy_in_bfloat16_is_the_model_loaded_in_bfloat16(tmp_path):
    """Far from the beginning too: RoPE's frequencies are not rounded with the weights."""
    far = dict(vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
               num_attention_heads=2, max_position_embeddings=16_384)  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**far, initializer_range=0.25)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    copied = TransformersEngine(model, word_tokenizer(), dtype=torch.bfloat16).model
    ids, positions = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[0, 1, 2, 8_000]])
    with torch.no_grad():
        wanted, found = (m(input_ids=ids, position_ids=positions).logits for m in (loaded, copied))
        rounded = copied.model.rotary_emb.inv_freq.bfloat16().float()
        copied.model.rotary_emb.inv_freq.copy_(rounded)
        control = copied(input_ids=ids, position_ids=positions).logits
    assert torch.equal(found, wanted) and found.dtype == torch.bfloat16
    assert (control - wanted).abs().max() > 0.1


def test_the_training_mode_comes_back():
    model = tiny_model().train()
    roll_out(model, thinking())
    assert model.training


def test_every_sequence_is_told_once_as_it_ends():
    seen = {}
    made = roll_out(tiny_model(), thinking(), on_finished=seen.setdefault, max_batch_size=5)
    assert sorted(seen) == list(range(12))
    assert all(seen[index] is rollout for index, rollout in enumerate(made))


def test_not_a_number_stops_and_names_the_step():
    model = tiny_model()
    engine = TransformersEngine(model, word_tokenizer())
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLogitsError, match="generated step 1"):
        engine.generate(PROMPTS, thinking(), max_new_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prompts": [[]]}, "no tokens"),
        ({"prompts": [list(range(3, 20))], "max_new_tokens": 112}, "context of 128"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, why):
    with pytest.raises(ValueError, match=why):
        roll_out(tiny_model(), thinking(), **arguments)


def test_log_densities_are_reported_only_when_asked_for():
    model, config = tiny_model(), thinking()
    assert roll_out(model, config)[0].logps is None
    reported = roll_out(model, config, Objective(config, "concrete"))[0]
    assert len(reported.logps) == len(reported.token_ids)


def test_requests_of_different_settings_side_by_side_are_what_they_are_apart():
    model, engine = tiny_model(), TransformersEngine(tiny_model(), word_tokenizer())
    configs = thinking(), thinking("dirichlet", top_k=2, max_think_tokens=4)
    wanted = [
        roll_out(model, configs[0], num_generations=1),
        roll_out(model, configs[0], Objective(configs[0], "concrete"), num_generations=1),
        roll_out(model, configs[1], Objective(configs[1]), num_generations=1),
    ]
    kinds = [(configs[0], None), (configs[0], Objective(configs[0], "concrete")),
             (configs[1], Objective(configs[1]))]  # fmt: skip
    found = {}
    engine.run(
        [
            Request(tuple(prompt), config, 12, objective, seed=7, index=index)
            for index, prompt in enumerate(PROMPTS)
            for config, objective in kinds
        ],
        found.setdefault,
    )
    assert sorted(found) == list(range(9))
    for kind, rollouts in enumerate(wanted):
        together = [found[place] for place in range(kind, 9, 3)]
        assert _facts(together) == _facts(rollouts)
        for a, b in zip(together, rollouts, strict=True):
            assert torch.equal(a.trace.scores, b.trace.scores) and a.logps == b.logps


def test_settings_that_cannot_be_are_refused_before_any_sequence_runs():
    engine, seen = TransformersEngine(tiny_model(), word_tokenizer()), []
    requests = [Request((3,), thinking(**more), 4) for more in ({}, {"top_k": VOCAB_SIZE + 1})]
    with pytest.raises(ValueError, match=f"top_k={VOCAB_SIZE + 1}"):
        engine.run(requests, lambda *finished: seen.append(finished))
    assert not seen
