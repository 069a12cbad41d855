"""The folder of an evaluation: what it holds, and that nobody else's files are written over."""

from __future__ import annotations

from pathlib import Path

from softgrpo.evaluation import default_ks, is_records
from softgrpo.files import write_json, write_whole
from softgrpo.runs.comparing import file_stem, is_table, load_runs, render
from softgrpo.runs.display import Display, duration
from softgrpo.runs.errors import OptionError

# Beside the records.
_SUMMARY, _COST = "summary.md", "cost.json"
_CLOCK = "wall_seconds_of_the_last_start"


def records_path(output: Path, task: str) -> Path:
    """The file of a task's records."""
    return output / f"{file_stem(task)}.jsonl"


def check_output(output: Path) -> None:
    """Refuse to write over, or into a table with, what no evaluation has written; touches nothing.

    Raises:
        ValueError: The output is a file, or holds files of such names that are not ours.
    """
    if output.exists() and not output.is_dir():
        raise OptionError("output", str(output), "is a file")
    for pattern, is_ours in (("*.jsonl", is_records), (_SUMMARY, is_table), (_COST, _is_cost)):
        for path in sorted(output.glob(pattern)):
            if not is_ours(path):
                why = f"{path.name} there was not written by an evaluation; choose another folder"
                raise OptionError("output", str(output), why)


def _is_cost(path: Path) -> bool:
    """Whether a file begins as what `report` writes, or is empty."""
    begins = b'{\n  "' + _CLOCK.encode()
    return path.is_file() and path.read_bytes()[: len(begins)] in (b"", begins)


def report(output: Path, wall: float, cpu: float, display: Display) -> None:
    """Tell and save the table of what is in the folder, and what this start took, in seconds."""
    # The folder may be a run's, whose own samples lie below it.
    runs = load_runs(sorted(output.glob("*.jsonl")), display)
    ks = default_ks(runs)
    display.say("\n" + render(runs, ks, "text", None))
    write_whole(output / _SUMMARY, render(runs, ks, "markdown", None) + "\n")
    write_json(output / _COST, {_CLOCK: wall, "cpu_seconds_of_the_last_start": cpu})
    display.say(f"\n{duration(wall)}, {cpu:.0f} CPU-seconds; records and summary.md in {output}")
