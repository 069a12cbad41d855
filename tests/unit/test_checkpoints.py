"""A checkpoint is whole, or it is none."""

from __future__ import annotations

import json
import os

import pytest

from softgrpo.checkpoints import begin, complete_checkpoints, keep_newest, seal

FILES = {
    "model.safetensors": b"weights", "optimizer.pt": b"moments", "scheduler.pt": b"rate",
    "rng_state.pth": b"noise", "rollouts_0.safetensors": b"rollouts",
    "trainer_state.json": b'{"global_step": 4}',
}  # fmt: skip


def _checkpoint(run, step=4, **changed):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    for name, content in (FILES | changed).items():
        (folder / name).write_bytes(content)
    return folder


def _is_complete(folder) -> bool:
    complete, incomplete = complete_checkpoints(folder.parent)
    assert sorted(complete + incomplete) == [folder]
    return complete == [folder]


def test_a_sealed_checkpoint_is_whole_and_every_file_is_needed(tmp_path):
    folder = _checkpoint(tmp_path)
    (folder / "shards").mkdir()
    (folder / "shards" / "0.distcp").write_bytes(b"shard")
    seal(folder)
    assert _is_complete(folder)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        for damage in (content[: len(content) // 2], b"", None):
            path.unlink() if damage is None else path.write_bytes(damage)
            assert not _is_complete(folder)
        path.write_bytes(content)
    assert _is_complete(folder)


def test_one_without_a_list_is_none(tmp_path):
    """All its files are there, and a power loss may have left the inner half of one."""
    assert not _is_complete(_checkpoint(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": 3}', '{"files": {"a": "b"}}', "\0"])
def test_a_damaged_list_is_none(tmp_path, content):
    folder = _checkpoint(tmp_path)
    (folder / "complete.json").write_text(content)
    assert not _is_complete(folder)


def test_the_list_is_written_when_the_files_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    folder = _checkpoint(tmp_path)
    seal(folder)
    listed = json.loads((folder / "complete.json").read_text())["files"]
    assert listed == {name: len(content) for name, content in FILES.items()}
    names = [str(folder / name) for name in sorted(FILES)]
    assert synced[: len(names)] == names and synced[-1] == str(folder)
    (listing,) = [path for path in synced if path.endswith("complete.json.tmp")]
    assert synced.index(listing) > synced.index(str(tmp_path))


@pytest.mark.parametrize("left", ["complete.json", "complete.json.tmp", "rollouts_1.safetensors"])
def test_what_a_killed_start_left_is_no_part_of_the_next_one_s(tmp_path, left):
    folder = _checkpoint(tmp_path)
    (folder / left).write_text('{"files": {"model')
    begin(folder)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    seal(folder)
    assert _is_complete(folder)
    assert {path.name for path in folder.iterdir()} == {*FILES, "complete.json"}


def test_a_link_in_the_place_of_a_checkpoint_is_not_followed(tmp_path):
    elsewhere = _checkpoint(tmp_path, 9)
    (tmp_path / "checkpoint-4").symlink_to(elsewhere)
    begin(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-4").is_symlink()
    assert {path.name for path in elsewhere.iterdir()} == set(FILES)


def _left(run) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run.iterdir())


def _saved(run, step, modified):
    """A sealed checkpoint whose folder was modified at that second."""
    folder = _checkpoint(run, step)
    seal(folder)
    os.utime(folder, (modified, modified))
    return folder


def test_the_newest_is_kept_whatever_the_clock_says(tmp_path):
    _saved(tmp_path, 8, 5000)
    _saved(tmp_path, 10, 4000)  # copied before the one above
    newest = _saved(tmp_path, 12, 100)  # the clock was put back
    keep_newest(newest, 2)
    assert _left(tmp_path) == [10, 12]
    keep_newest(newest, 1)
    assert _left(tmp_path) == [12]


def test_what_cannot_be_resumed_goes_before_what_can(tmp_path):
    for step in (2, 4):
        _saved(tmp_path, step, 100)
    _checkpoint(tmp_path, 5)  # never sealed
    _saved(tmp_path, 90, 100)  # of a training before, in this folder
    newest = _saved(tmp_path, 6, 100)
    keep_newest(newest, 4)
    assert _left(tmp_path) == [2, 4, 6, 90]
    keep_newest(newest, 2)
    assert _left(tmp_path) == [4, 6]
    keep_newest(newest, 1, best=tmp_path / "checkpoint-4")
    assert _left(tmp_path) == [4, 6]


def test_a_name_that_only_looks_like_a_number_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-²").mkdir()
    assert complete_checkpoints(tmp_path) == ([], [])
