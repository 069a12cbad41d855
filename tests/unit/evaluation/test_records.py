"""A file of records survives whatever happens to it, and refuses what would mix runs."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from softgrpo.evaluation import Record, RecordFile, read_records

SETTINGS = {"task": "gsm8k", "seed": 0, "markers": ("</think>",)}
HOSTILE = 'line\u2028separator \x85 \ud800 \x1b[2J\n\x00 {"problem_id":'


def _record(problem="p/0", sample=0, **changes) -> Record:
    fields = dict(
        problem_id=problem,
        sample=sample,
        text="a thought####7",
        answer="7",
        correct=True,
        num_tokens=5,
        num_soft_tokens=4,
        finish_reason="stop",
        thinking_ended_by="marker",
        seed=0,
        sequence=sample,
    )
    return Record(**(fields | changes))


def test_what_was_appended_comes_back(tmp_path):
    path = tmp_path / "deep" / "gsm8k.jsonl"
    records = [_record(), _record(sample=1, text=HOSTILE, answer=None, correct=False)]
    with RecordFile(path, SETTINGS) as file:
        for record in records:
            file.append(record)
    settings, found, dropped = read_records(path)
    assert found == records and dropped == 0
    assert settings == {"task": "gsm8k", "seed": 0, "markers": ["</think>"]}
    with RecordFile(path, SETTINGS) as file:
        assert list(file.records.values()) == records


def test_each_record_is_there_as_soon_as_append_returns(tmp_path):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
        assert len(read_records(path)[1]) == 1


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_half_written_line_is_cut_off_kept_aside_and_said(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
        file.append(_record(sample=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(read_records(path)[1]) == 1 and read_records(path)[2] > 0
    with RecordFile(path, SETTINGS) as file:
        assert list(file.records) == [("p/0", 0)] and file.dropped > 0
        file.append(_record(sample=1))
    assert path.read_bytes() == whole
    lost = whole.split(b"\n")[2] + b"\n"
    assert (tmp_path / "a.jsonl.damaged").read_bytes() == lost[:-cut]


def test_what_was_put_aside_stays_when_more_is(tmp_path):
    path = tmp_path / "a.jsonl"
    for lost in (b"one", b"two", b"three"):
        with RecordFile(path, SETTINGS):
            pass
        path.write_bytes(path.read_bytes() + lost)
        RecordFile(path, SETTINGS).close()
    aside = [tmp_path / f"a.jsonl.damaged{number}" for number in ("", ".2", ".3")]
    assert [file.read_bytes() for file in aside] == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    "content",
    [b"notes without an end", b'{"question": "2+2"}', b"\x00" * 9, b"{", b'{"format": "softgrpo-n'],
)
def test_only_the_beginning_of_our_own_first_line_is_written_over(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    if b'{"format": "softgrpo-records/1"'.startswith(content):
        RecordFile(path, SETTINGS).close()
        return
    with pytest.raises(ValueError, match="not a file of records"):
        RecordFile(path, SETTINGS)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/full", "/dev/zero", "/dev/null", "/"])
def test_what_is_no_regular_file_is_refused_unread(path):
    for touch in (lambda: RecordFile(Path(path), SETTINGS), lambda: read_records(Path(path))):
        with pytest.raises(ValueError, match="not a regular file|a folder"):
            touch()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="not a regular file"):
        RecordFile(tmp_path / "a.jsonl", SETTINGS)


@pytest.mark.parametrize("garbage", [b"\x00\xff\n", b"{}\n", b"[1]\n", b'{"problem_id": "p/9"}\n'])
def test_a_damaged_line_in_the_middle_costs_what_follows(tmp_path, garbage):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
    before = path.read_bytes()
    path.write_bytes(before + garbage + before.split(b"\n")[1] + b"\n")
    assert len(read_records(path)[1]) == 1
    with RecordFile(path, SETTINGS) as file:
        assert len(file.records) == 1
    assert path.read_bytes() == before


def test_killed_within_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"format": "softgr')
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
    assert len(read_records(path)[1]) == 1


def test_other_settings_are_refused_by_name_and_nothing_is_touched(tmp_path):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"seed was 0, is 1; top_k was None, is 5"):
        RecordFile(path, {**SETTINGS, "seed": 1, "top_k": 5})
    assert path.read_bytes() == before
    RecordFile(path, SETTINGS).close()  # and it can still be opened


def test_a_sample_is_never_there_twice(tmp_path):
    with RecordFile(tmp_path / "a.jsonl", SETTINGS) as file:
        file.append(_record())
        with pytest.raises(ValueError, match="there already"):
            file.append(_record())


@pytest.mark.parametrize(
    "change",
    [{"num_tokens": "x"}, {"correct": "no"}, {"correct": 1}, {"problem_id": [1]}, {"sample": True},
     {"num_tokens": float("nan")}, {"sequence": "a"}, {"text": None}, {"sample": 0.0}],
    ids=str,
)  # fmt: skip
def test_a_record_with_a_value_of_another_type_is_a_damaged_line(tmp_path, change):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
    before = path.read_bytes()
    value = json.loads(before.splitlines()[1]) | {"sample": 1} | change
    path.write_bytes(before + json.dumps(value).encode() + b"\n")
    assert len(read_records(path)[1]) == 1 and read_records(path)[2] > 0


@pytest.mark.parametrize("settings", ["[]", "3", "null", "[" * 100_000])
def test_settings_that_are_no_object_are_refused(tmp_path, settings):
    path = tmp_path / "a.jsonl"
    path.write_text('{"format": "softgrpo-records/1", "settings": ' + settings + "}\n")
    with pytest.raises(ValueError, match="not a file of records"):
        read_records(path)


@pytest.mark.parametrize(
    "content", ["", "hello\n", '{"a": 1}\n', '{"format": "softgrpo-records/9", "settings": {}}\n']
)
def test_what_is_no_file_of_records_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="softgrpo-records/1"):
        read_records(path)
    with pytest.raises(ValueError, match="No such file"):
        read_records(tmp_path / "none.jsonl")


def test_a_file_of_another_kind_is_not_written_to(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"my": "notes"}) + "\n")
    with pytest.raises(ValueError, match="not a file of records"):
        RecordFile(path, SETTINGS)
    assert json.loads(path.read_text()) == {"my": "notes"}


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    program = (
        "import sys; from pathlib import Path; from softgrpo.evaluation import RecordFile\n"
        f"RecordFile(Path({str(path)!r}), {{}})"
    )
    with RecordFile(path, SETTINGS):
        other = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ
        )
    assert other.returncode == 1 and "another process is writing" in other.stderr


def test_a_full_disk_is_told_with_the_file_s_name_and_lets_go_of_it(tmp_path):
    """As a limit on the size of files says it."""
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as file:
        file.append(_record())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError) as raised, RecordFile(path, SETTINGS) as file:
            file.append(_record(sample=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(path)
    with RecordFile(path, SETTINGS) as file:
        assert list(file.records) == [("p/0", 0)] and file.dropped == 20
