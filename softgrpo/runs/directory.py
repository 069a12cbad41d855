"""The folder of a run: what lies where, who may write into it, and what is resumed from it.

docs/architecture.md says what each of its files holds.
"""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from softgrpo.checkpoints import complete_checkpoints, step_of
from softgrpo.files import (
    HALF_WRITTEN,
    delete,
    entries,
    is_model_card,
    read_json,
    require_regular,
    write_json,
    write_whole,
)
from softgrpo.runs.recipe_files import read_yaml

# What a run writes beside models and checkpoints: files, and folders where each is known by name.
_FILES = ("metrics.jsonl", "curves.png", "config.yaml", "versions.json")
_KNOWN = {
    "evaluation": (
        "before-*.jsonl*",
        "after-*.jsonl*",
        "summary.json",
        "summary.md",
        HALF_WRITTEN,
        f"{HALF_WRITTEN}.damaged*",
    ),
    "samples": ("step-*.jsonl", "step-*.safetensors"),
    "completions": ("completions_*.parquet",),
    "runs": (),
}
_PACKAGES = ("softgrpo", "torch", "trl", "transformers", "accelerate", "peft", "numpy")


class RunDirectory:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.samples = path / "samples"
        self.summary = path / "evaluation" / "summary.json"
        self.model = path / "model"
        # Where the final model is until all of it is there.
        self.unfinished_model = path / HALF_WRITTEN.replace("*", "model")

    def records(self, when: str, decoding: str) -> Path:
        """Evaluation records: when is ``before`` or ``after``."""
        return self.path / "evaluation" / f"{when}-{decoding}.jsonl"

    def former_records(self, when: str) -> list[Path]:
        """The files of records of an evaluation that are there, and parts that a kill has left."""
        folder = self.path / "evaluation"
        patterns = f"{when}-*.jsonl", HALF_WRITTEN.replace("*", f"{when}-*")
        return [path for pattern in patterns for path in folder.glob(pattern)]

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse a folder in use; touches nothing.

        Raises:
            ValueError: It holds a run, files that are no run's, or a pipe in the place of a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir={self.path}: is a file")
        if not entries(self.path):
            return
        for name in _FILES:
            require_regular(self.path / name)
        if not self._is_run():
            raise ValueError(
                f"output_dir={self.path}: holds files that are no run's; choose another folder"
            )
        if not (resume or overwrite):
            raise ValueError(
                f"output_dir={self.path}: holds a run already; --resume goes on with it, "
                "--overwrite deletes it, --output_dir NAME starts another"
            )

    def check_inputs(self, **inputs: object) -> None:
        """Refuse to write where the run is made from, by whatever path or link; touches nothing.

        Inputs are what fields name: a file, a folder, or what is no path.
        """
        folder = self.path.resolve()
        for name, place in inputs.items():
            source = Path(str(place))
            if source.exists() and source.resolve().is_relative_to(folder):
                raise ValueError(
                    f"output_dir={self.path}: {name}={place} lies in it, and a run does not write "
                    "over what it is made from; choose another folder"
                )

    def _is_run(self) -> bool:
        """Whether a run has written what lies here: versions first, which name the program."""
        try:
            versions = read_json(self.path / "versions.json")
        except (OSError, ValueError):
            return False
        return isinstance(versions, dict) and {"softgrpo", "command"} <= versions.keys()

    def clear(self) -> None:
        """Delete what a run leaves, and nothing else; what tells it from others goes last."""
        for path in (self.model, *self._event_folders(), *chain(*complete_checkpoints(self.path))):
            delete(path)
        for name, patterns in _KNOWN.items():
            folder = self.path / name
            for pattern in () if folder.is_symlink() else patterns:
                for path in folder.glob(pattern):
                    delete(path)
            if folder.is_symlink() or folder.is_dir() and not any(folder.iterdir()):
                delete(folder)
        for path in self.path.glob(HALF_WRITTEN):
            delete(path)
        if is_model_card(self.path / "README.md"):
            delete(self.path / "README.md")
        for name in _FILES:
            delete(self.path / name)

    def _event_folders(self) -> list[Path]:
        """TensorBoard's; `runs` is also where other runs lie, if this one's folder is theirs."""
        folders = [] if (self.path / "runs").is_symlink() else (self.path / "runs").glob("*/")
        return [
            folder
            for folder in folders
            if all(path.name.startswith("events.out.tfevents.") for path in folder.iterdir())
        ]

    def last_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint that is complete, and newer ones that are not."""
        complete, incomplete = complete_checkpoints(self.path)
        if not complete:
            return None, incomplete
        newest = step_of(complete[-1])
        return complete[-1], [folder for folder in incomplete if step_of(folder) > newest]

    def write_config(self, values: dict[str, Any], command: str, seed: int) -> list[str]:
        """Save config and versions; returns how the config differs from the one that was there."""
        self.path.mkdir(parents=True, exist_ok=True)
        before = read_yaml(str(self.config)) if self.config.exists() else values
        versions = {name: _version(name) for name in _PACKAGES}
        write_json(
            self.path / "versions.json",
            {
                "python": platform.python_version(),
                **versions,
                "platform": platform.platform(),
                "command": command,
                "seed": seed,
            },
        )
        write_whole(self.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        return [
            f"{name} {before.get(name)} -> {value}"
            for name, value in values.items()
            if before.get(name) != value
        ]

    def require_space(self, needed: int) -> None:
        """Refuse to start where the checkpoints, of so many bytes, will not fit."""
        folder = self.path.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"output_dir={self.path}: the checkpoints need about {needed / 1e9:.1f} GB and "
                f"there are {free / 1e9:.1f} GB free; lower save_total_limit or choose another disk"
            )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # softgrpo itself, run from its source
        return "not installed"
