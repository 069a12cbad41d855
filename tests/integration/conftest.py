"""A recipe of the command line's on a tiny random Llama made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers import save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def recipe(tmp_path, model):
    """Writes a recipe of a run that takes a second; its fields can be overridden."""
    data = tmp_path / "data.jsonl"
    rows = ({"question": f"{x} {y}", "answer": str(i % 3)} for i, (x, y) in enumerate(_pairs()))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**fields: object) -> str:
        values = {
            "model": str(model), "task": str(data), "num_train_problems": 16, "chat": False,
            "rewards": ["format"], "num_eval_problems": 3, "eval_samples": 2, "sample_steps": 2,
            "num_samples_kept": 2, "output_dir": str(tmp_path / "run"), "use_cpu": True,
            "bf16": False, "think_end": ["</t>"], "max_think_tokens": 5,
            "max_completion_length": 8, "per_device_train_batch_size": 4, "num_generations": 4,
            "max_steps": 4, "logging_steps": 1, "save_steps": 2, "learning_rate": 0.01,
            "tau": 0.7, "seed": 3,
        }  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | fields))
        return str(path)

    return write


def _pairs():
    return [(x, y) for x in "abcdefghij" for y in "klmnopqrst"]
