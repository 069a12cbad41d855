"""Settings of the trainer that are promised to work, and those refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, ProcessorMixin

from softgrpo.training.memory import moment_bytes
from tests.helpers import (
    TRAIN_PROMPTS,
    VOCAB_SIZE,
    assert_same,
    make_trainer,
    parameters,
    tiny_model,
    train_config,
)

OURS = ["soft/share_of_steps", "soft/thinking_closed", "soft/effective_support", "soft/max_weight",
        "soft/logp_gap_max"]  # fmt: skip
TRLS = ["reward", "entropy", "grad_norm", "completions/mean_length"]

WORKS = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sequence_ratio": {"importance_sampling_level": "sequence", "num_iterations": 2},
    "kl": {"beta": 0.05, "num_iterations": 2},
    "two_iterations": {"num_iterations": 2, "density": "concrete"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing_reentrant": {"gradient_checkpointing": True,
                                "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "truncated": {"mask_truncated_completions": True, "max_completion_length": 40},
    "budget": {"max_think_tokens": 3, "loss_type": "grpo"},
    "dirichlet": {"policy": "dirichlet", "beta": 0.05},
    "gaussian": {"policy": "gaussian"},
    "embedding": {"policy": "embedding_gaussian"},
    "discrete": {"policy": "discrete", "top_k": None},
    "rollouts_in_parts": {"rollout_batch_size": 3},
}  # fmt: skip


def _logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("setting", WORKS)
def test_it_trains_and_measures_itself(setting, tmp_path):
    trainer = make_trainer("tied", train_config(tmp_path, max_steps=2, **WORKS[setting]))
    before = parameters(trainer.model)
    trainer.train()
    moved = [n for n, p in parameters(trainer.model).items() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)
    logs = _logs(trainer)
    assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)
    for log in logs[:: WORKS[setting].get("num_iterations", 1)]:  # those with a new rollout
        assert log["soft/logp_gap_max"] < 1e-4
        ours = OURS[:2] + OURS[-1:] if setting == "discrete" else OURS
        assert all(math.isfinite(log[key]) for key in ours + TRLS)


def test_kl_to_the_reference_starts_at_zero_and_grows(tmp_path):
    trainer = make_trainer("tied", train_config(tmp_path, max_steps=3, beta=0.05))
    trainer.train()
    kl = [log["kl"] for log in _logs(trainer)]
    assert abs(kl[0]) < 1e-6 and kl[-1] > 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_lora_trains_the_adapter_alone_against_the_base_model(beta, tmp_path):
    from peft import LoraConfig

    model = tiny_model("untied")
    trainer = make_trainer(
        model, train_config(tmp_path, max_steps=3, beta=beta, learning_rate=0.05),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0),
    )  # fmt: skip
    before = parameters(trainer.model)
    trainer.train()
    moved = {n for n, p in parameters(trainer.model).items() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in name for name in moved)
    assert max(log["soft/logp_gap_max"] for log in _logs(trainer)) < 1e-4
    if beta:
        kl = [log["kl"] for log in _logs(trainer)]
        assert abs(kl[0]) < 1e-6 and kl[-1] > 1e-6


@pytest.mark.parametrize("policy", ["gumbel", "discrete"])
def test_an_embedding_without_a_gradient_is_frozen_and_that_is_said_once(policy, tmp_path, caplog):
    trainer = make_trainer("untied", train_config(tmp_path, policy=policy, weight_decay=0.1))
    before = parameters(trainer.model)["model.embed_tokens.weight"]
    trainer.train()
    trainer.train()
    weight = trainer.model.model.embed_tokens.weight
    is_frozen = policy != "discrete"
    assert weight.requires_grad is not is_frozen
    assert torch.equal(weight, before) is is_frozen
    assert (weight in trainer.optimizer.state) is not is_frozen
    said = f"{weight.numel():,} parameters of the input embedding are frozen"
    assert caplog.text.count(said) == int(is_frozen)


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("limit", ["the machine's", "little"])
def test_a_run_that_will_outgrow_its_memory_says_so_once(
    limit, budget, tmp_path, caplog, monkeypatch
):
    args = train_config(tmp_path, max_steps=2, train_batch_tokens=budget)
    trainer = make_trainer("tied", args)
    moments = 2 * sum(p.nbytes for p in trainer.model.parameters())
    seen = []

    def allowed(device, now):
        assert moment_bytes(trainer.optimizer.optimizer) == moments  # none is there yet
        seen.append(now)
        return now

    if limit == "little":
        monkeypatch.setattr("softgrpo.training.memory.allowed", allowed)
    trainer.train()
    assert len(seen) == (limit == "little")
    assert caplog.text.count("memory may not suffice") == len(seen)


@pytest.mark.parametrize("rollout_dtype", ["auto", "model", "bfloat16"])
def test_bf16_trains_float32_weights(rollout_dtype, tmp_path):
    args = train_config(tmp_path, max_steps=2, bf16=True, rollout_dtype=rollout_dtype)
    trainer = make_trainer("untied", args)
    assert (trainer.engine.model is trainer.model) == (rollout_dtype != "bfloat16")
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert after["lm_head.weight"].dtype == torch.float32
    assert all(math.isfinite(log["loss"]) for log in _logs(trainer))


def test_evaluation_uses_the_same_noise_each_time(tmp_path):
    """With a learning rate of 0 two evaluations are equal, whatever was trained between."""
    args = train_config(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, learning_rate=0.0,
        per_device_eval_batch_size=8, num_generations_eval=4,
    )  # fmt: skip
    trainer = make_trainer(
        "tied", args, eval_dataset=Dataset.from_dict({"prompt": TRAIN_PROMPTS[:4]})
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_reward" in log]
    assert len(logs) == 2
    for key in ("eval_reward", "eval_soft/effective_support", "eval_loss"):
        assert logs[0][key] == pytest.approx(logs[1][key], abs=1e-6)


def test_completions_are_a_table_and_curves_go_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    args = train_config(tmp_path, log_completions=True, report_to=["tensorboard"])
    make_trainer("tied", args).train()
    (table,) = Path(tmp_path).glob("**/completions_*.parquet")
    assert len(pd.read_parquet(table)) == 8
    assert list(Path(tmp_path).glob("**/events.out.tfevents*"))


@pytest.mark.parametrize(("model", "num_iterations"), [("tied", 1), ("tied", 2), ("untied", 1)])
def test_resuming_in_the_middle_of_a_generation_is_the_uninterrupted_run(
    model, num_iterations, tmp_path
):
    """Four batches a generation, stopped after two: the other two come back with their traces."""
    common = {
        "per_device_train_batch_size": 4, "steps_per_generation": 4, "save_strategy": "steps",
        "save_steps": 2, "max_steps": 10, "num_iterations": num_iterations, "max_think_tokens": 5,
    }  # fmt: skip
    whole = make_trainer(model, train_config(tmp_path / "whole", **common))
    whole.train()
    resumed = make_trainer(tiny_model(model, seed=5), train_config(tmp_path / "resumed", **common))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(parameters(resumed.model), parameters(whole.model), 0)


def test_resuming_past_the_first_epoch_is_the_uninterrupted_run(tmp_path):
    """Two prompts a step of eight: an epoch is four steps, each in an order of its own."""
    common = {"save_strategy": "steps", "save_steps": 6, "max_steps": 9}
    whole = make_trainer("tied", train_config(tmp_path / "whole", **common))
    whole.train()
    resumed = make_trainer(tiny_model(seed=5), train_config(tmp_path / "resumed", **common))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed.state.epoch > 2
    assert_same(parameters(resumed.model), parameters(whole.model), 0)


def test_a_run_resumed_for_longer_takes_up_the_longer_schedule_and_says_so(tmp_path, caplog):
    common = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "linear"}
    make_trainer("tied", train_config(tmp_path, max_steps=4, **common)).train()
    whole = make_trainer("tied", train_config(tmp_path / "whole", max_steps=8, **common))
    whole.train()
    resumed = make_trainer("tied", train_config(tmp_path, max_steps=8, **common))
    caplog.clear()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    rates = [
        [log["learning_rate"] for log in _logs(trainer) if log["step"] > 4]
        for trainer in (whole, resumed)
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 4 and rates[0][0] == 0.005
    assert "the learning rate of step 5 is 0.005 and not 0 " in caplog.text
    assert "the linear schedule is that of 8 steps" in caplog.text


def test_other_intervals_hold_in_a_resumed_run(tmp_path):
    def trainer(**settings):
        common = {
            "save_strategy": "steps",
            "eval_strategy": "steps",
            "save_steps": 4,
            "max_steps": 8,
        }
        args = train_config(tmp_path, per_device_eval_batch_size=4, **common, **settings)
        return make_trainer("tied", args, eval_dataset=Dataset.from_dict({"prompt": ["a"]}))

    trainer(eval_steps=8).train()
    resumed = trainer(eval_steps=1, logging_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    history = [log for log in resumed.state.log_history if log["step"] > 4]
    assert [log["step"] for log in history if "eval_reward" in log] == [5, 6, 7, 8]
    assert [log["step"] for log in history if "loss" in log] == [6, 8]


def test_old_log_densities_can_be_the_rollouts(tmp_path):
    trainer = make_trainer("tied", train_config(tmp_path, old_logps="rollout"))
    trainer.model.train()
    rows = [{"prompt": p} for p in TRAIN_PROMPTS[:2] for _ in range(4)]
    inputs = trainer._generate_and_score_completions(rows)
    assert torch.equal(inputs["old_per_token_logps"], inputs["sampling_per_token_logps"])


def test_a_marker_nobody_drew_is_not_in_the_loss(tmp_path):
    """Its log-density moves no gradient: a budget's forced token has weight zero."""
    trainer = make_trainer("tied", train_config(tmp_path, max_think_tokens=3))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": p} for p in TRAIN_PROMPTS[:2] for _ in range(4)]
    inputs = trainer._generate_and_score_completions(rows)
    forced = inputs["completion_mask"].bool() & ~inputs["trace_support"][..., 0]
    assert forced.any() and (inputs["tool_mask"][forced] == 0).all()
    counted = inputs["completion_mask"].bool() & ~forced
    assert inputs["num_items_in_batch"] == counted.sum()


def test_not_a_number_stops_before_the_weights_are_touched(tmp_path):
    from softgrpo.training import NonFiniteLossError

    trainer = make_trainer("tied", train_config(tmp_path))
    before = parameters(trainer.model)
    trainer.model.model.norm.weight.register_hook(lambda g: g * torch.nan)
    with pytest.raises(NonFiniteLossError, match="gradient norm is nan at step 1"):
        trainer.train()
    assert_same(parameters(trainer.model), before, 0)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_vllm": True}, "use_vllm"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs"),
        ({"policy": "soft"}, "policy='soft'"),
        ({"policy": "dirichlet", "density": "concrete"}, "density='concrete'"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"rollout_batch_size": 0}, "rollout_batch_size=0"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        train_config(tmp_path, **settings)


def _tool(x: int) -> int:
    """Add one.

    Args:
        x: A number.
    """
    return x + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("tools", [_tool]), ("rollout_func", lambda *a: {}), ("environment_factory", object)],
)
def test_an_argument_that_cannot_work_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        make_trainer("tied", train_config(tmp_path), **{name: value})


def test_a_vision_processor_is_refused(tmp_path):
    from softgrpo.training import SofTGRPOTrainer

    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="vision models"):
        SofTGRPOTrainer(
            model=tiny_model(), reward_funcs=len, args=train_config(tmp_path),
            processing_class=Processor(),
        )  # fmt: skip


def test_a_load_balancing_loss_is_refused(tmp_path):
    config = MixtralConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, router_aux_loss_coef=0.1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="router_aux_loss_coef"):
        make_trainer(MixtralForCausalLM(config), train_config(tmp_path))


def test_a_marker_the_tokenizer_cannot_produce_is_refused(tmp_path):
    with pytest.raises(ValueError, match="think_end='</think>'"):
        make_trainer("tied", train_config(tmp_path, think_end=["</think>"]))


def test_a_marker_that_rewards_would_not_see_is_refused(tmp_path):
    with pytest.raises(ValueError, match="think_end='<eos>'.*special token"):
        make_trainer("tied", train_config(tmp_path, think_end=["<eos>"]))


def test_a_top_k_over_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"the vocabulary has {VOCAB_SIZE}"):
        make_trainer("tied", train_config(tmp_path, top_k=VOCAB_SIZE + 1))


def test_attention_is_never_cudnns(tmp_path):
    """Not in rollouts, not in training, not where a checkpointed layer attends again."""
    args = train_config(tmp_path, gradient_checkpointing=True, beta=0.05)
    trainer, seen = make_trainer(tiny_model("untied", attention="sdpa"), args), []
    trainer.model.model.layers[0].register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    trainer.train()
    assert len(seen) > 4 and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()
