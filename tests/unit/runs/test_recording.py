"""What the other processes of a killed run had recorded is in the file before anything is made."""

from __future__ import annotations

import pytest

from softgrpo.evaluation import Record, RecordFile, Sampling, read_records
from softgrpo.files import entries
from softgrpo.runs.display import Silent
from softgrpo.runs.recording import part_of, record
from softgrpo.tasks import Problem
from softgrpo.thinking import ThinkingConfig

PROBLEMS = [Problem(name, "?", "7") for name in "abcd"]
SAMPLING = Sampling(PROBLEMS, [[7]] * 4, ThinkingConfig(), 2, 3, 5, None, 2)
SETTINGS = {"model": "m"}


def _record(sequence):
    problem, sample = PROBLEMS[sequence // 2].id, sequence % 2
    return Record(problem, sample, f"{sequence}", "7", True, 3, 2, "stop", "marker", 5, sequence)


def _leave(path, *sequences, **changed):
    """What a killed process leaves in its file."""
    with RecordFile(path, {**SETTINGS, **SAMPLING.settings, **changed}) as file:
        for sequence in sequences:
            file.append(_record(sequence))


class _NoEngine:
    """Says which parts would be generated."""

    def generate(self, prompts, *args, first_sequence, **kwargs):
        raise LookupError(first_sequence)


def test_parts_of_any_number_of_processes_are_taken_over(tmp_path):
    path = tmp_path / "before-soft.jsonl"
    _leave(path, 0, 1)
    _leave(part_of(path, 1), 2, 3, 0)  # killed between its records and their parts' end
    _leave(part_of(path, 12), 4, 5, 7, 6)
    results = record(_NoEngine(), SAMPLING, path, SETTINGS, "label", Silent())
    assert [made.sequence for made in results.records] == list(range(8))
    _, written, dropped = read_records(path)
    assert sorted(made.sequence for made in written) == list(range(8)) and not dropped
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_only_what_is_in_no_part_is_made(tmp_path):
    path = tmp_path / "before-soft.jsonl"
    _leave(part_of(path, 1), 0, 1, 4, 5, 6, 7)
    with pytest.raises(LookupError, match="2"):
        record(_NoEngine(), SAMPLING, path, SETTINGS, "label", Silent())


def test_half_a_line_of_a_part_is_no_record(tmp_path):
    path = tmp_path / "before-soft.jsonl"
    _leave(path, 0, 1, 2, 3, 4, 5)
    _leave(part_of(path, 1), 6, 7)
    part_of(path, 1).write_bytes(part_of(path, 1).read_bytes()[:-9])
    with pytest.raises(LookupError, match="6"):
        record(_NoEngine(), SAMPLING, path, SETTINGS, "label", Silent())
    assert len(read_records(path)[1]) == 7
    assert entries(tmp_path) == [path]  # what was cut off has a name that is nobody else's


def test_a_part_made_with_other_settings_is_refused_and_kept(tmp_path):
    path = tmp_path / "before-soft.jsonl"
    _leave(path, 0)
    _leave(part_of(path, 1), 6, seed=6)
    with pytest.raises(ValueError, match="made with other settings: seed was 6, is 5"):
        record(_NoEngine(), SAMPLING, path, SETTINGS, "label", Silent())
    assert part_of(path, 1).exists() and len(read_records(path)[1]) == 1
