"""A run of two processes that is resumed inside a later epoch is the run that was not stopped."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import assert_same, run_processes

pytestmark = pytest.mark.alone

# Two prompts a step, eight prompts: an epoch has four steps. Epoch 1 is left and entered midway.
TRAIN = """
import sys, torch
from pathlib import Path
from tests.helpers import make_trainer, parameters, train_config
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name, checkpoint in (("whole", None), ("resumed", folder / "whole" / "checkpoint-6")):
    args = train_config(
        folder / name, per_device_train_batch_size=4, ddp_timeout=30, max_steps=10,
        save_strategy="steps", save_steps=6, learning_rate=1e-3,
    )
    trainer = make_trainer("tied", args)
    prompts, original = [], trainer.engine.generate
    trainer.engine.generate = lambda ids, *a, **k: prompts.append(ids) or original(ids, *a, **k)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    found = {"prompts": prompts, "weights": parameters(trainer.model)}
    torch.save(found, folder / f"{name}_{trainer.accelerator.process_index}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    run_processes(TRAIN, str(folder), processes=2, timeout=120)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_in_a_later_epoch_meets_the_same_prompts_and_weights(rank, folder):
    whole = torch.load(folder / f"whole_{rank}.pt")
    resumed = torch.load(folder / f"resumed_{rank}.pt")
    epochs = [whole["prompts"][i : i + 4] for i in (0, 4)]
    assert epochs[0] != epochs[1]  # or any epoch's order would do
    assert resumed["prompts"] == whole["prompts"][6:]
    assert_same(resumed["weights"], whole["weights"], 1e-6)
