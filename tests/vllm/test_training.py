"""``engine: vllm``: the trainer's rollouts come from vLLM, with the weights of this very update."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.weights import walk
from softgrpo.training.support import causal_lm
from tests.helpers import make_trainer, train_config, word_tokenizer
from tests.vllm.engines import BOUND, make_model


@pytest.fixture
def checkpoint(tmp_path):
    make_model(tmp_path / "model", tied=True)
    return tmp_path / "model"


def _args(folder, **settings):
    small = {"vllm_gpu_memory_utilization": 0.15, "vllm_max_model_length": 128}
    return train_config(folder, engine="vllm", **small, **settings)


@pytest.mark.parametrize("lora", [None, ["q_proj", "down_proj"]])
def test_every_update_is_made_from_rollouts_of_the_weights_before_it(lora, tmp_path, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapters = lora and LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = _args(tmp_path / "run", max_steps=3, learning_rate=0.03)
    trainer = make_trainer(model, args, peft_config=adapters)
    try:
        trainer.train()
        gaps = [log["soft/logp_gap_max"] for log in trainer.state.log_history if "reward" in log]
        assert len(gaps) == 3 and max(gaps) <= BOUND  # stale weights part by far more
        after = dict(walk(causal_lm(trainer.model)))
        changed = {name for name, p in before.items() if not torch.equal(after[name], p)}
        # Of LoRA's modules alone; the base they stand on is what it was.
        assert changed == {n for n in before if lora is None or any(part in n for part in lora)}

        trainer.engine.sync()
        options = {"max_new_tokens": 12, "num_generations": 4, "seed": 1}
        thinking = trainer.args.thinking
        found = trainer.engine.generate([[3, 4], [5, 6, 7]], thinking, **options)
        other = TransformersEngine(model, word_tokenizer())
        wanted = other.generate([[3, 4], [5, 6, 7]], thinking, **options)
        assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
    finally:
        trainer.engine.close()


def test_an_adapter_that_cannot_be_folded_is_refused_by_name(tmp_path, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapters = LoraConfig(task_type="CAUSAL_LM", use_dora=True)
    with pytest.raises(ValueError, match="Dora.* cannot be folded into weights"):
        make_trainer(model, _args(tmp_path), peft_config=adapters)
