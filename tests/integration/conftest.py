"""A recipe of the command line's on a tiny random Llama made here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.helpers import save_tiny_model, write_recipe


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def recipe(tmp_path, model):
    """Writes a recipe of a run that takes a second; its fields can be overridden."""
    return partial(write_recipe, tmp_path, model)
