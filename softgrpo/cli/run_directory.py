"""The folder of a run: what lies where, who may write into it, and what is resumed from it::

config.yaml            every field as resolved; it is a recipe itself
versions.json          software, command and seed
metrics.jsonl          one line a log
evaluation/            before and after: records, summary.json, summary.md
samples/               a few completions every so often, with their traces
checkpoint-N/, model/  Hugging Face format
curves.png             the learning curves
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from softgrpo.models import complete_checkpoints

_FILES = ("config.yaml", "versions.json", "metrics.jsonl", "curves.png", "README.md")
_FOLDERS = ("evaluation", "samples", "model", "runs")
_PACKAGES = ("softgrpo", "torch", "trl", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def summary(self) -> Path:
        return self.path / "evaluation" / "summary.json"

    def records(self, when: str, decoding: str) -> Path:
        """Evaluation records: when is ``before`` or ``after``."""
        return self.path / "evaluation" / f"{when}-{decoding}.jsonl"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse a folder in use; touches nothing.

        Raises:
            ValueError: It holds a run, or files that are no run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir={self.path}: is a file")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not self.config.exists():
            raise ValueError(
                f"output_dir={self.path}: holds files that are no run's; choose another folder"
            )
        if not (resume or overwrite):
            raise ValueError(
                f"output_dir={self.path}: holds a run already; --resume goes on with it, "
                "--overwrite deletes it, --output_dir NAME starts another"
            )

    def clear(self) -> None:
        """Delete what a run leaves, and nothing else."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for folder in (*(self.path / name for name in _FOLDERS), *self.path.glob("checkpoint-*")):
            if folder.is_dir():
                shutil.rmtree(folder)

    def last_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint that is complete, and newer ones that are not."""
        complete, incomplete = complete_checkpoints(self.path)
        if not complete:
            return None, incomplete
        newest = _step_of(complete[-1])
        return complete[-1], [folder for folder in incomplete if _step_of(folder) > newest]

    def write_config(self, values: dict[str, Any], command: str, seed: int) -> list[str]:
        """Save config and versions; returns how the config differs from the one that was there."""
        self.path.mkdir(parents=True, exist_ok=True)
        before = yaml.safe_load(self.config.read_text()) if self.config.exists() else values
        _write(self.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        versions = {name: _version(name) for name in _PACKAGES}
        _write(
            self.path / "versions.json",
            json.dumps(
                {
                    "python": platform.python_version(),
                    **versions,
                    "platform": platform.platform(),
                    "command": command,
                    "seed": seed,
                },
                indent=2,
            ),
        )
        return [
            f"{name} {before.get(name)} -> {value}"
            for name, value in values.items()
            if before.get(name) != value
        ]

    def require_space(self, needed: int) -> None:
        """Refuse to start where the checkpoints will not fit.

        Args:
            needed: Bytes.

        Raises:
            ValueError: Says what is needed, what there is and what would do.
        """
        folder = self.path.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"output_dir={self.path}: the checkpoints need about {needed / 1e9:.1f} GB and "
                f"there are {free / 1e9:.1f} GB free; lower save_total_limit or choose another disk"
            )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(value, indent=2))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # softgrpo itself, run from its source
        return "not installed"
