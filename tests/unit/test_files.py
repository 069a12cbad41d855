"""Folders that one process writes to at a time, files that are whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys

import pytest

from softgrpo.files import (
    HALF_WRITTEN,
    entries,
    locked,
    read_json,
    require_regular,
    to_json,
    write_whole,
)
from tests.helpers import ROOT


def test_a_folder_is_one_process_s_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(ValueError, match="another process"), locked(folder):
            pass
        assert entries(folder) == []
    with locked(folder):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from softgrpo.files import locked
with locked(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert killed.returncode == -9
    with locked(tmp_path):
        pass


def test_a_disk_that_knows_no_locks_is_not_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="[Nn]o locks") as raised, locked(tmp_path):
        pass
    assert raised.value.filename == str(tmp_path / ".softgrpo.lock")


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.md"
    write_whole(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        with pytest.raises(OSError) as error:
            write_whole(path, "something new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("softgrpo.files.sync", full)
    with pytest.raises(OSError, match="table.md") as raised:
        write_whole(tmp_path / "table.md", "new")
    assert raised.value.filename == str(tmp_path / "table.md") and not list(tmp_path.iterdir())


def test_nobody_else_s_file_is_written_on_the_way(tmp_path):
    mine, elsewhere = tmp_path / "table.md.tmp", tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    mine.symlink_to(elsewhere)
    write_whole(tmp_path / "table.md", "new")
    assert mine.is_symlink() and elsewhere.read_text() == "mine"


def test_what_a_killed_process_left_half_written_is_nobody_s(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from softgrpo.files import write_whole
write_whole(Path({str(tmp_path / "versions.json")!r}), "new")
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    assert len(list(tmp_path.iterdir())) == len(list(tmp_path.glob(HALF_WRITTEN))) == 1
    assert entries(tmp_path) == []


def test_what_utf_8_cannot_hold_is_written_escaped(tmp_path):
    write_whole(tmp_path / "table.md", "a \ud800")
    assert (tmp_path / "table.md").read_text() == "a \\ud800"


def test_devices_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is a folder|not a regular file"):
            require_regular(path)
    require_regular(tmp_path / "new")


def test_no_number_is_null_in_json():
    text = to_json({"a": [math.nan, (1.5, {"b": math.nan})]})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, [1.5, {"b": None}]]}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 99_999, b"9" * 9999])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json: not (JSON|UTF-8 text): ."):
        read_json(tmp_path / "a.json")


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".softgrpo.lock")
    with pytest.raises(ValueError, match="lock: is not a regular file"), locked(tmp_path):
        pass
