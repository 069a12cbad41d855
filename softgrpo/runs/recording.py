"""The samples of one task in their file, with what is there already left alone.

Every process of a run samples a share. Process 0 appends to the file, each of the others to a part
of its own beside it, so that a kill loses nothing; what the parts hold comes into the file at the
end, or at the next start.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from softgrpo.evaluation import Record, RecordFile, Results, Sampling, deal, sample
from softgrpo.files import HALF_WRITTEN
from softgrpo.runs.display import Counter, Display
from softgrpo.together import gathered, num_processes, process_number, together

Records = dict[tuple[str, int], Record]  # by problem and sample


def record(
    engine: Any,
    sampling: Sampling,
    path: Path,
    settings: Mapping[str, Any],
    label: str,
    display: Display,
) -> Results:
    """Sample what the file of records does not hold yet, and show how it goes.

    Every process calls it. They share the samples and wait for each other at the end alone; the
    records are sent to process 0, so the file is whole where the others have no part in its folder.

    Args:
        engine: A RolloutEngine.
        sampling: What to sample.
        path: The file of records.
        settings: What else the records depend on, as plain data: model, task, prompt, verifier.
        label: What the progress calls it.
        display: Where it is shown.

    Returns:
        The results of these problems, those included that were there already; the same in every
        process.

    Raises:
        ValueError: The file was made with other settings; names them.
        Exception: What has stopped the sampling in one process, in all of them.
    """
    settings, process = {**settings, **sampling.settings}, process_number()
    own = path if process == 0 else part_of(path, process)
    with ExitStack() as files:
        with together():
            if process == 0:
                file = files.enter_context(_opened(path, settings, display))
                _take_over_parts(file, settings, display)
        with together():  # not before the parts of an earlier start have been taken over
            if process != 0:
                file = files.enter_context(_opened(own, settings, display))
        there = _of_all(file.records)
        with together():
            _sample_share(engine, sampling, there, file, label, display)
        made = {key: made for key, made in file.records.items() if key not in there}
        everything = there | _of_all(made)
        with together():
            if process == 0:
                _append(file, everything)
            files.close()
    if process != 0:
        own.unlink()
    return Results(settings, [everything[key] for key in sampling.keys])


def part_of(path: Path, process: int) -> Path:
    """Where another process than the first records what belongs into a file."""
    return path.with_name(HALF_WRITTEN.replace("*", f"{path.name}.{process}"))


def _parts_of(path: Path) -> list[Path]:
    """The parts of a file of records that are there, by whichever process."""
    pattern = HALF_WRITTEN.replace("*", f"{glob.escape(path.name)}.*")
    return sorted(path.parent.glob(pattern))


def _opened(path: Path, settings: Mapping[str, Any], display: Display) -> RecordFile:
    file = RecordFile(path, settings)
    if file.dropped:
        display.say(f"{path}: {file.dropped} damaged bytes at its end put aside")
    return file


def _take_over_parts(file: RecordFile, settings: Mapping[str, Any], display: Display) -> None:
    """Bring into a file what the other processes of a killed run had recorded."""
    for path in _parts_of(file.path):
        with _opened(path, settings, display) as part:
            _append(file, part.records)
        file.sync()
        path.unlink()


def _append(file: RecordFile, records: Records) -> None:
    """Append what is not there yet."""
    for key, made in records.items():
        if key not in file.records:
            file.append(made)


def _of_all(records: Records) -> Records:
    """The records of all processes."""
    return {made.key: made for part in gathered(list(records.values())) for made in part}


def _sample_share(
    engine: Any,
    sampling: Sampling,
    there: Records,
    file: RecordFile,
    label: str,
    display: Display,
) -> None:
    """Sample this process's share of what is missing; what is shown is this share's progress."""
    process, processes = process_number(), num_processes()
    parts = deal(sampling, there, processes)[process]
    if not parts:
        return
    done = [there[key] for key in sampling.keys if key in there]
    if done:
        display.say(f"{file.path}: going on after {len(done)} samples")
    num_missing = sum(key not in there for part in parts for key in sampling.keys_of(part))
    whose = "" if processes == 1 else f", process {process} of {processes}"
    counter = Counter(display, f"{label}{whose}", len(done) + num_missing, len(done))
    num_correct, num_judged = sum(made.correct for made in done), len(done)

    def keep(made: Record) -> None:
        nonlocal num_correct, num_judged
        file.append(made)
        num_correct, num_judged = num_correct + made.correct, num_judged + 1
        counter(f"correct {num_correct / num_judged:.1%}")

    sample(engine, sampling, parts, there, keep)
    counter.close()
