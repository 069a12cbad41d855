"""An evaluation on disk: a line a sample, appended as it is finished, safe against being killed.

The first line holds the format's version and the settings that all samples share; every other line
is a Record. A file ends in a whole line or is cut back to its last one when it is read, so a killed
evaluation goes on where it was.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, get_args, get_type_hints

from softgrpo.files import naming, require_regular
from softgrpo.thinking.fields import ThinkingFields

FORMAT = "softgrpo-records/1"
_START = b'{"format": "softgrpo-records/'
_LONGEST_LINE = 2**26  # bytes


@dataclass(frozen=True)
class Record:
    """One sample."""

    problem_id: str
    sample: int  # which of the problem, from 0
    text: str  # the completion, thought and answer
    answer: str | None  # what the verifier took for the answer; None where there was none
    correct: bool
    num_tokens: int  # generated tokens, thought and answer
    num_soft_tokens: int  # those of them that were soft
    finish_reason: str  # ``stop`` or ``length``
    thinking_ended_by: str | None  # ``marker``, ``budget``, ``cold_stop`` or None: never
    seed: int
    sequence: int  # with the seed it decides the sample's noise

    @property
    def key(self) -> tuple[str, int]:
        """Problem and sample."""
        return self.problem_id, self.sample


_TYPES = {name: get_args(kind) or (kind,) for name, kind in get_type_hints(Record).items()}


class RecordFile:
    """A file of records, open for more.

    Args:
        path: Made where it is missing; else its settings must be these.
        settings: What every sample of the file shares, as plain data.

    Attributes:
        records: Those that are there, by problem and sample.
        dropped: Bytes after the last whole line, kept beside the file with the suffix `.damaged`.

    Raises:
        ValueError: Another process writes the file, it is no file of records, or it was made with
            other settings (names each).
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = Lock()
        require_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by close)
        try:
            try:
                with naming(path):
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{path}: another process is writing to it") from error
            self.records, self.dropped = self._recover(_plain(settings))
        except BaseException:
            with suppress(OSError):
                self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Write a record; once this returns, a killed process does not lose it."""
        with self._lock:
            if record.key in self.records:
                raise ValueError(f"{self.path}: {record.key} is there already")
            self._write(asdict(record))
            self.records[record.key] = record

    def sync(self) -> None:
        """Have the disk hold all records: from here on a power loss spares them."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Have the disk hold all records, and let others have the file."""
        with naming(self.path), self._file:  # closed, and the lock given back, on a full disk too
            self.sync()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # What has ended the evaluation is told, not that the same write fails once more.
        with suppress(OSError) if kind else nullcontext():
            self.close()

    def _recover(self, settings: dict[str, Any]) -> tuple[dict[tuple[str, int], Record], int]:
        self._file.seek(0)
        first = self._file.readline(_LONGEST_LINE)
        if not first.endswith(b"\n") and _START.startswith(first[: len(_START)]):
            self._file.truncate(0)  # nothing, or killed within the first line
            self._write({"format": FORMAT, "settings": settings})
            return {}, 0
        there, records, whole = _parse(self._file, self.path)
        before, now = (dict(_flat(_complete(given))) for given in (there, settings))
        changes = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changes:
            raise ValueError(
                f"{self.path}: made with other settings: {'; '.join(changes)}; write elsewhere "
                "(--output), or begin anew (--overwrite)"
            )
        if dropped := self._file.seek(0, os.SEEK_END) - whole:
            self._put_aside(whole)
        return {record.key: record for record in records}, dropped

    def _put_aside(self, whole: int) -> None:
        """Move what is behind the last whole line into a file of its own."""
        names = itertools.chain([""], (f".{i}" for i in itertools.count(2)))
        paths = (Path(f"{self.path}.damaged{name}") for name in names)
        self._file.seek(whole)
        path = next(path for path in paths if not path.exists())
        with naming(path), open(path, "xb") as aside:
            shutil.copyfileobj(self._file, aside)
        self._file.truncate(whole)

    def _write(self, value: Mapping[str, Any]) -> None:
        # surrogatepass would not be UTF-8; the escapes of ASCII JSON hold whatever a model wrote.
        with naming(self.path):
            self._file.write(json.dumps(value).encode("ascii") + b"\n")
            self._file.flush()


def read_records(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """The settings, the records, and the bytes of a damaged end that were left out.

    Raises:
        ValueError: No such file, or no file of records.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            settings, records, whole = _parse(file, path)
            return settings, records, file.seek(0, os.SEEK_END) - whole
    except OSError as error:
        raise ValueError(f"{path}: {os.strerror(error.errno or 0)}") from error


def is_records(path: Path) -> bool:
    """Whether a file begins as a file of records, of this version or another, or is empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return _START.startswith(file.read(len(_START)))


def _parse(file: BinaryIO, path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """Settings, records, and the length of what is whole."""
    file.seek(0)
    first = file.readline(_LONGEST_LINE)
    try:
        header = json.loads(first)
        version, settings = header["format"], dict(header["settings"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a file of records; its first line must be {{'format': '{FORMAT}', ...}}"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{path}: format {version!r}; this version of softgrpo reads {FORMAT!r}")
    records: dict[tuple[str, int], Record] = {}
    whole = len(first)
    while (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):
        record = _to_record(line)
        if record is None:
            break
        records[record.key] = record
        whole += len(line)
    return settings, list(records.values()), whole


def _to_record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
        found = {field.name: value[field.name] for field in fields(Record)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    # Exactly: a bool is an int to isinstance, and JSON's NaN a float.
    is_right = all(
        type(x) in _TYPES[name] and (not isinstance(x, int) or abs(x) < 2**64)
        for name, x in found.items()
    )
    return Record(**found) if is_right else None


def _complete(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of what is younger than the file that the settings are from."""
    thinking = settings.get("thinking")
    if not isinstance(thinking, dict):
        return settings
    defaults = {field.name: field.default for field in fields(ThinkingFields)}
    return {**settings, "thinking": _plain(defaults) | thinking}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those inside a mapping with its name and a dot before theirs."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(settings))
