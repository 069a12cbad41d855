"""The samples of one task in their file, with what is there already left alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softgrpo.evaluation import Record, RecordFile, Results, Sampling, sample
from softgrpo.runs.display import Counter, Display


def record(
    engine: Any,
    sampling: Sampling,
    path: Path,
    settings: Mapping[str, Any],
    label: str,
    display: Display,
) -> Results:
    """Sample what the file of records does not hold yet, and show how it goes.

    Args:
        engine: A RolloutEngine.
        sampling: What to sample.
        path: The file of records.
        settings: What else the records depend on, as plain data: model, task, prompt, verifier.
        label: What the progress calls it.
        display: Where it is shown.

    Returns:
        The results of these problems, those included that were there already.

    Raises:
        ValueError: The file was made with other settings; names them.
    """
    settings = {**settings, **sampling.settings}
    with RecordFile(path, settings) as file:
        wanted = set(sampling.keys)
        if file.dropped:
            display.say(f"{path}: {file.dropped} damaged bytes at its end put aside")
        done = [record for key, record in file.records.items() if key in wanted]
        if len(done) < len(wanted):
            if done:
                display.say(f"{path}: going on after {len(done)} samples")
            counter = Counter(display, label, len(wanted), len(done))
            num_correct, num_judged = sum(record.correct for record in done), len(done)

            def keep(made: Record) -> None:
                nonlocal num_correct, num_judged
                file.append(made)
                num_correct, num_judged = num_correct + made.correct, num_judged + 1
                counter(f"correct {num_correct / num_judged:.1%}")

            sample(engine, sampling, file.records, keep)
            counter.close()
        return Results(settings, [r for key, r in file.records.items() if key in wanted])
