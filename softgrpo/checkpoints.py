"""Which checkpoints of a run are whole, and which are kept.

A list of all files and their sizes is written last. The files are on the disk by then, not only on
their way to it: where the list is, everything is.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from softgrpo.files import delete, read_json, sync, sync_all, write_json

_LIST = "complete.json"


def begin(checkpoint: Path) -> None:
    """Make the folder of a checkpoint, without what a start that was killed has left of it.

    Its list, or a beginning of it, would tell of files that are written over now.
    """
    delete(checkpoint)
    checkpoint.mkdir(parents=True)


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, once every process has written its part."""
    sync_all(checkpoint)
    sync(checkpoint.parent)
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    write_json(checkpoint / _LIST, {"files": sizes})


def complete_checkpoints(run: Path) -> tuple[list[Path], list[Path]]:
    """The checkpoints of a run that can be resumed, oldest first, and those that are incomplete."""
    folders = [p for p in run.glob("checkpoint-*") if p.name[len("checkpoint-") :].isdecimal()]
    folders.sort(key=step_of)
    complete = [folder for folder in folders if _is_complete(folder)]
    return complete, [folder for folder in folders if folder not in complete]


def step_of(checkpoint: Path) -> int:
    """The optimizer steps made when it was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def keep_newest(newest: Path, limit: int, best: Path | None = None) -> None:
    """Delete all but so many checkpoints of a run: first what cannot be resumed, then by steps.

    Times of files tell nothing: clocks are put back, and a copied run has those of its copying.

    Args:
        newest: Saved just now, and kept. Any with more steps is of a run before, and goes early.
        limit: How many are kept, if ``newest`` and ``best`` are not more.
        best: Kept too.
    """
    complete, incomplete = complete_checkpoints(newest.parent)
    complete.sort(key=lambda folder: (step_of(folder) <= step_of(newest), step_of(folder)))
    folders = [*incomplete, *complete]
    others = [folder for folder in folders if folder not in (newest, best)]
    for folder in others[: max(len(folders) - limit, 0)]:
        shutil.rmtree(folder, ignore_errors=True)  # one too many is no reason to end a run


def most_kept(args: Any, steps: int) -> int:
    """How many checkpoints lie on the disk at a time, at most; one that Ctrl-C asks for too.

    Args:
        args: transformers' TrainingArguments.
        steps: Of the whole run.
    """
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * steps
    saves = 1 if args.save_strategy == "no" else math.ceil(steps / max(every, 1))
    limit = args.save_total_limit
    return min(saves, limit + 1) if limit else saves  # the oldest goes after the newest is there


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_json(checkpoint / _LIST)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
