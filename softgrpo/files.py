"""Files that are written to, so that nothing of anybody else's is lost by it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OURS = ".softgrpo."  # how the names begin of what is nobody's but ours
_LOCK = f"{_OURS}lock"
HALF_WRITTEN = f"{_OURS}*.tmp"
"""What a process leaves that is killed while it writes, as a pattern."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made where it is missing.

    The system takes the lock back from a process that has ended, however it ended.

    Raises:
        ValueError: Another process has it, or something else is in its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_regular(folder / _LOCK)
    with open(folder / _LOCK, "a") as file:
        try:
            with naming(folder / _LOCK):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is writing to it") from error
        yield


def cache_folder() -> Path:
    """Where what is made once for all runs is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softgrpo"


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, but for its lock and what is half written; nothing where is none."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(_OURS)]


def is_model_card(path: Path) -> bool:
    """Whether a README is TRL's, which writes it anew with every checkpoint, and not the user's."""
    return path.is_file() and b"\n- generated_from_trainer\n" in path.read_bytes()


def require_regular(path: Path) -> None:
    """Refuse what can be opened and is no file: a device has no end, a pipe has no beginning.

    Raises:
        ValueError: The path is there and is something else than a regular file.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path}: is {what}")


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Have the system's errors name the file that matters; that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def delete(path: Path) -> None:
    """A file, a folder, or a link, which is not followed; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: It is missing or cannot be read; says which.
        ValueError: It is no regular file, or no UTF-8.
    """
    require_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file; raises as read_text, and ValueError where it is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; neither a kill nor a power loss leaves half of it.

    Half of a surrogate pair is written as its escape.

    Raises:
        OSError: It cannot be written; says which, and nothing is left of the new one.
    """
    temporary = path.with_name(f"{_OURS}{os.getpid()}.{path.name}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, to_json(value))


def to_json(value: Any) -> str:
    """JSON as text; it has no NaN, so null stands for it."""
    return json.dumps(_without_nan(value), indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def put_in_place(made: Path, folder: Path) -> None:
    """Let a folder take the place of another, or of a link, when the disk holds all of it."""
    sync_all(made)
    delete(folder)
    made.rename(folder)
    sync(folder.parent)


def sync_all(folder: Path) -> None:
    """Have the disk hold a folder and all that is below it."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have the disk hold a file or the names in a folder: from here on a power loss spares it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
