"""A micro-batch with its shared prompts computed once is the padded micro-batch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, JetMoeConfig

from softgrpo.replay import check_packing, pack, replay
from softgrpo.replay.ancestors import AncestorMask
from softgrpo.replay.layouts import along_paths
from softgrpo.thinking import Objective, SoftTrace
from tests.helpers import (
    MODELS,
    ancestor_matrix,
    assert_same,
    batch_of,
    gradients,
    make_trainer,
    parameters,
    roll_out,
    thinking,
    tiny_model,
    train_config,
)

# One prompt begins another, two begin alike, one stands alone; each is sampled four times.
PROMPTS = [[3, 4, 5], [3, 4, 5, 6, 7], [3, 4, 8], [9]]
# One has a window, the other knows no sdpa.
FULL_ATTENTION = [name for name in MODELS if name not in ("softcap", "bias_gptj")]


def _batch(model, config):
    return batch_of(roll_out(model, config, prompts=PROMPTS))[:3]


@pytest.mark.parametrize("policy", ["gumbel", "discrete"])
@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_values_and_gradients_are_those_of_the_padded_batch(name, policy):
    config = thinking(policy)
    objective = Objective(config, "gumbel" if policy == "gumbel" else "token", "sum")
    results = []
    for share_prompts in (False, True):
        model = tiny_model(name, attention="sdpa")
        ids, mask, trace = _batch(model, config)
        replayed = replay(model, ids, mask, trace, objective, share_prompts)
        replayed.logps.sum().backward()
        results.append(
            gradients(model)
            | {"logps": replayed.logps.detach(), "entropies": replayed.entropies.detach()}
        )
    assert_same(results[1], results[0], 1e-4)


def test_every_distinct_token_is_laid_out_once():
    ids, mask, trace = _batch(tiny_model(), thinking())
    packed = pack(ids, mask, trace.num_steps)
    distinct_prompt_tokens = 3 + 2 + 1 + 1  # [3 4 5], [.. 6 7], [3 4 | 8], [9]
    assert len(packed.source) == distinct_prompt_tokens + int(trace.lengths.sum())
    assert len(packed.predictor) == int(trace.lengths.sum())
    # Each attends to its ancestors and itself.
    assert torch.equal(ancestor_matrix(packed).sum(-1), packed.positions + 1)


def test_training_is_the_same_run(tmp_path):
    """One update of the trainer, with and without."""
    found = {}
    for share_prompts in (False, True):
        args = train_config(tmp_path, share_prompts=share_prompts, reduction="sum", optim="sgd")
        trainer = make_trainer(tiny_model("untied", attention="sdpa"), args)
        trainer.train()
        found[share_prompts] = parameters(trainer.model)
    assert_same(found[True], found[False], 1e-5)


# Every loss that deals its sequences out by prompt, and one whose micro-batches must stay as drawn.
LOSSES = [
    {"loss_type": "dapo", "beta": 0.05},
    {"loss_type": "grpo", "num_iterations": 2},
    {"loss_type": "dr_grpo"},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "bnpo"},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5},
    {"loss_type": "dapo", "entropy_coef": 0.1},
    {"loss_type": "dapo", "gradient_checkpointing": True},
    {"loss_type": "dapo", "steps_per_generation": 8},
]


@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: "-".join(map(str, s.values())))
def test_accumulated_updates_are_the_same_run(settings, tmp_path):
    """Micro-batches of two out of sixteen sequences: samples of a prompt meet in one of them."""
    found = {}
    for share_prompts in (False, None):
        args = train_config(
            tmp_path, share_prompts=share_prompts, reduction="sum", optim="sgd", max_steps=2,
            per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings,
        )  # fmt: skip
        trainer = make_trainer(tiny_model("untied", attention="sdpa"), args)
        trainer.train()
        found[share_prompts] = parameters(trainer.model)
        assert trainer._shares_prompts is (share_prompts is None)
    assert_same(found[None], found[False], 1e-5)


def test_samples_of_a_prompt_meet_in_one_micro_batch(tmp_path):
    args = train_config(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4
    )
    trainer = make_trainer(tiny_model(attention="sdpa"), args)
    trainer.train()
    for batch in trainer._buffered_inputs:
        assert (batch["prompt_ids"] == batch["prompt_ids"][0]).all()


def test_under_lora_the_reference_is_the_model_without_its_adapter(tmp_path):
    from peft import LoraConfig

    args = train_config(tmp_path, max_steps=2, learning_rate=0.05, beta=0.05)
    trainer = make_trainer(
        tiny_model("untied", attention="sdpa"), args,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0),
    )  # fmt: skip
    trainer.train()
    assert trainer._shares_prompts and trainer.ref_model is None
    batch = trainer._buffered_inputs[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    tensors = {n.removeprefix("trace_"): x for n, x in batch.items() if n.startswith("trace_")}
    trace = SoftTrace(**tensors, settings=args.thinking.replay_settings())
    base = tiny_model("untied", attention="sdpa")
    wanted = replay(base, ids, mask, trace, args.objective).logps
    where = batch["completion_mask"].bool()
    torch.testing.assert_close(
        batch["ref_per_token_logps"][where], wanted[where], rtol=1e-5, atol=1e-5
    )


def test_completions_that_are_masked_out_leave_their_prompts(tmp_path):
    model, config = tiny_model(attention="sdpa"), thinking()
    ids, mask, trace = _batch(model, config)
    mask[:, -trace.num_steps :] = 0
    replayed = replay(model, ids, mask, trace, Objective(config, "gumbel"), True)
    assert torch.equal(replayed.logps, torch.zeros_like(replayed.logps))
    replayed.logps.sum().backward()


def test_a_mask_of_ancestors_is_nothing_but_a_layout():
    ids, mask, trace = _batch(tiny_model(), thinking())
    row = pack(ids, mask, trace.num_steps)
    packed = AncestorMask.of(row, along_paths(row))
    assert packed.shape == (1, 1, packed.shape[2], packed.shape[2])
    for use in (lambda x: x[..., :2], lambda x: x.float(), lambda x: ~x):
        with pytest.raises(NotImplementedError, match="mask of ancestors"):
            use(packed)


def test_a_model_that_shows_more_than_ancestors_is_refused():
    model = tiny_model(attention="sdpa")
    for layer in model.model.layers:  # tokens see their neighbours, whoever they are
        layer.register_forward_hook(lambda _m, _a, out: out + out.roll(1, dims=1))
    with pytest.raises(ValueError, match="share_prompts.*ancestors"):
        check_packing(model)


def test_a_model_that_repeats_its_keys_in_its_own_order_is_served():
    config = JetMoeConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8,
        intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.25,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    check_packing(model)


def test_other_attention_is_refused_by_name():
    with pytest.raises(ValueError, match="share_prompts.*Gemma2ForCausalLM"):
        check_packing(tiny_model("softcap", attention="sdpa"))
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="share_prompts.*flash_attention_2"):
        check_packing(model)
