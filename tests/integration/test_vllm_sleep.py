"""A trainer whose vLLM sleeps: never while it loads or generates, always while the model learns.

vLLM is a stand-in here, which records what is asked of it; a TransformersEngine makes the rollouts.
"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from softgrpo.rollout import TransformersEngine
from softgrpo.rollout.vllm_engine import VLLMEngine
from tests.helpers import (
    TRAIN_PROMPTS,
    SleepingLLM,
    make_trainer,
    parameters,
    thinking,
    train_config,
    word_tokenizer,
)

SETTINGS = {
    "max_steps": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 1,
    "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
    "per_device_eval_batch_size": 4,
}  # fmt: skip
EVERYTHING = {"weights", "kv_cache"}


class PretendedVLLM(VLLMEngine):
    """VLLMEngine over a stand-in; the model itself makes the rollouts."""

    def __init__(self, model):
        self.llm, self._sleeps, self._source = SleepingLLM(), True, model
        self.tokenizer = word_tokenizer()
        self.max_model_len, self.vocab_size = None, len(self.tokenizer)
        self._inner = TransformersEngine(model, self.tokenizer)

    def _parameters(self, request):
        return None

    def _run(self, requests, parameters, on_finished):
        self.llm.require("generate", *EVERYTHING)
        self._inner.run(requests, on_finished)


def _trainer(folder, is_pretended=True):
    """A trainer, and what its engine and it did, in order."""
    questions = Dataset.from_dict({"prompt": TRAIN_PROMPTS[:2]})
    trainer = make_trainer("tied", train_config(folder, **SETTINGS), eval_dataset=questions)
    if not is_pretended:
        return trainer, []
    trainer.engine = PretendedVLLM(trainer.model)
    llm, backward = trainer.engine.llm, trainer.accelerator.backward

    def watched(*args, **kwargs):
        assert llm.asleep == EVERYTHING
        llm.calls.append("backward")
        return backward(*args, **kwargs)

    trainer.accelerator.backward = watched
    return trainer, llm.calls


def _generate(trainer):
    prompts = [[3, 4], [5]]
    return trainer.engine.generate(prompts, thinking(), max_new_tokens=4)


def test_it_sleeps_while_the_model_learns_and_wakes_for_every_rollout(tmp_path):
    trainer, calls = _trainer(tmp_path / "vllm")
    before = _generate(trainer)
    trainer.train()
    trainer.engine.sync()
    after = _generate(trainer) + _generate(trainer)
    assert trainer.engine.llm.asleep == EVERYTHING
    assert len(before) + len(after) == 6
    assert calls.count("backward") == 4
    # two rollouts of two steps each; after steps 2 and 4 an evaluation in two batches
    assert calls.count("generate") == 1 + 2 + 2 * 2 + 2
    assert calls.count("wake kv_cache") == calls.count("generate")

    plain, _ = _trainer(tmp_path / "plain", is_pretended=False)
    plain.train()
    wanted = parameters(plain.model)
    assert all(torch.equal(p, wanted[name]) for name, p in trainer.model.named_parameters())


def test_a_run_resumed_with_rollouts_left_is_asleep_from_its_first_update_on(tmp_path):
    whole, _ = _trainer(tmp_path / "vllm")
    whole.train()
    resumed, calls = _trainer(tmp_path / "vllm")
    resumed.train(resume_from_checkpoint=str(tmp_path / "vllm" / "checkpoint-1"))
    assert calls[0] == "backward"
    assert calls.count("backward") == 3
    wanted = parameters(whole.model)
    assert all(torch.equal(p, wanted[name]) for name, p in resumed.model.named_parameters())


@pytest.mark.parametrize("fails", ["take_weights", "generate"])
def test_it_sleeps_after_a_rollout_that_failed(tmp_path, fails):
    trainer, _ = _trainer(tmp_path / "vllm")
    trainer.engine.llm.fails = fails
    with pytest.raises(MemoryError, match=fails):
        trainer.train()
    assert trainer.engine.llm.asleep == EVERYTHING
    trainer.train()
