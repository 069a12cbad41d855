"""Two processes, each on a pretend accelerator of its own, are one process on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers import assert_same, make_trainer, parameters, run_processes, train_config

pytestmark = pytest.mark.alone

CASES = {
    "kl": {"density": "concrete", "loss_type": "grpo", "beta": 0.1, "num_iterations": 2},
    "passes": {"loss_type": "grpo", "train_batch_tokens": 20, "max_think_tokens": 3},
}
# DDP marks unused parameters in pinned memory, which the device does not have; there are none.
_COMMON = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2,
           "lr_scheduler_type": "constant", "ddp_find_unused_parameters": False}  # fmt: skip
# accelerate knows no collectives of the device. Told that there is only a CPU it takes gloo, which
# is handed the CPU's tensors as every operation is; the device is named in the environment.
TRAIN = """
import json, os, sys, torch
from pathlib import Path
os.environ["ACCELERATE_TORCH_DEVICE"] = "pretend:0"
from tests.accelerator.pretend import DEVICE
from tests.helpers import make_trainer, parameters, train_config
torch.set_num_threads(1)
cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
for name, settings in cases.items():
    args = train_config(folder / name, per_device_train_batch_size=4, ddp_timeout=30, **settings)
    assert args.distributed_state.num_processes == 2 and args.device == DEVICE
    os.environ.pop("ACCELERATE_USE_CPU", None)
    trainer = make_trainer("tied", args)
    assert trainer.accelerator.device == DEVICE
    trainer.train()
    if trainer.accelerator.is_main_process:
        logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = {name: value.cpu() for name, value in parameters(model).items()}
        torch.save({"loss": torch.tensor(logs)} | weights, folder / f"{name}.pt")
"""


@pytest.mark.slow
def test_two_ddp_processes_are_one_process(tmp_path):
    """One launch for all cases: starting two processes costs more than training in them."""
    cases = {name: settings | _COMMON for name, settings in CASES.items()}
    run_processes(TRAIN, json.dumps(cases), str(tmp_path), processes=2, timeout=200)
    for name, settings in cases.items():
        trainer = make_trainer("tied", train_config(tmp_path / "one", **settings))
        trainer.train()
        logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        wanted = {"loss": torch.tensor(logs)} | parameters(trainer.model)
        assert_same(torch.load(tmp_path / f"{name}.pt"), wanted, 1e-4)
