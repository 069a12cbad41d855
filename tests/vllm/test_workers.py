"""Workers that are processes of their own, as with tensor parallelism: same draws, same weights."""

from __future__ import annotations

import os

import pytest
import torch

from softgrpo.thinking import Objective
from tests.helpers import thinking
from tests.vllm.engines import BOUND, PROMPTS, gaps, make_model, running_engine

_TWO = {"tensor_parallel_size": 2}
_NEEDS_TWO = pytest.mark.skipif(
    (torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))) < 2,
    reason="a worker needs a device of its own; there is one here",
)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"distributed_executor_backend": "mp"}, id="one"),
        pytest.param(_TWO, id="two", marks=_NEEDS_TWO),
    ],
)
def test_every_worker_draws_the_same_and_takes_weights_over(tmp_path, monkeypatch, options):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if options is _TWO else "auto")
    model = make_model(tmp_path, tied=True)
    config = thinking(max_think_tokens=5)
    objective = Objective(config, "gumbel", "sum")
    with running_engine(tmp_path, source=model, **options) as engine:

        def gap():
            rollouts = engine.generate(
                PROMPTS, config, max_new_tokens=8, seed=1, objective=objective
            )
            return max(gaps(model, rollouts, [config] * 4, [objective] * 4))

        assert gap() < BOUND
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
        assert gap() > 100 * BOUND  # the workers still have the old ones
        engine.sync()
        assert gap() < BOUND
        assert set(engine.llm.collective_rpc("num_thoughts")) == {0}
