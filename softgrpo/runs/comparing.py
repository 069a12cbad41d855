"""Evaluations side by side as a table: intervals, tests and the paper's rows. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from softgrpo.evaluation import (
    Pair,
    Results,
    Run,
    Score,
    default_ks,
    describe,
    paired_tests,
    read_records,
    score,
)
from softgrpo.files import to_json
from softgrpo.reports import cell, format_table, interval, paper_rows
from softgrpo.runs.display import Display
from softgrpo.runs.errors import OptionError
from softgrpo.values import check

_PAIRS_SHOWN = 60
# How `render` begins, in every format.
_BEGINNING = re.compile(
    rb"(\\begin\{tabular\}\{l+\}\s+\\hline\s+|\| )?task\W+run\W+problems x samples\W"
    rb'|\{\s+"scores": \['
)

Format = Literal["text", "markdown", "latex", "csv", "json"]


def compare(
    places: Sequence[str | Path],
    k: Sequence[int] | None = None,
    style: Format = "text",
    paper: str | None = None,
    display: Display | None = None,
) -> str:
    """The table of some evaluations, with the tests and the notes.

    Args:
        places: Files of records, folders of them, or runs of `train`; NAME=PLACE gives one a name.
        k: For pass@k, first-k and maj@k; None: what all of them have samples for.
        style: ``text``, ``markdown``, ``latex``, ``csv`` or ``json``.
        paper: The model whose rows of the paper stand beside; None: each run's own model's.
        display: Is told what is left out.

    Raises:
        ValueError: Nothing there, no records, two that go by one name, or a k of no use.
    """
    check("style", style, Format)
    runs = load_runs(places, display or Display())
    ks = sorted(set(k)) if k else default_ks(runs)
    if ks[0] < 1:
        raise OptionError("k", ks[0], "must be at least 1")
    return render(runs, ks, style, paper)


def is_table(path: Path) -> bool:
    """Whether a file begins as what `render` gives, or is empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        beginning = file.read(2**16)
    return not beginning or _BEGINNING.match(beginning) is not None


def load_runs(places: Sequence[str | Path], display: Display) -> list[Run]:
    """The evaluations in some places; see ``compare``."""
    runs: dict[tuple[str, str], Run] = {}
    for place in places:
        name, path = _name_and_path(str(place))
        for file in _files(Path(path)):
            settings, records, dropped = read_records(file)
            if dropped:
                display.warn(f"{file}: {dropped} damaged bytes at its end are left out")
            if not records:
                raise ValueError(f"{file}: holds no samples yet")
            task = str(settings.get("task", file.stem))
            found = _complete(Results(settings, records), file, display)
            named = Run(_name(name, Path(path), file, task, len(places) > 1), task, found)
            if (named.name, task) in runs:
                raise ValueError(
                    f"{place}: there are two runs {named.name!r} of {task}; name them: NAME={path}"
                )
            runs[named.name, task] = named
    return sorted(runs.values(), key=lambda r: r.task)


def render(runs: Sequence[Run], ks: Sequence[int], style: Format, paper_model: str | None) -> str:
    """The whole comparison, of runs in the order of their rows and of ascending ks."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    by_name: dict[str, list[Run]] = {}
    for item in runs:
        by_name.setdefault(item.name, []).append(item)
    scores = [score([item], item.task, ks) for item in runs]
    several = [group for group in by_name.values() if len(tasks) > 1 and len(group) == len(tasks)]
    scores += [score(group, "average", ks) for group in several]
    pairs = paired_tests(runs, ks)
    models = {str(item.results.settings.get("model")) for item in runs}
    models = {paper_model} if paper_model else models
    paper = [row for model in sorted(models) for task in tasks for row in paper_rows(model, task)]
    if style == "json":
        values = {
            "scores": [asdict(item) for item in scores],
            "paired_tests": [asdict(pair) for pair in pairs],
            "paper": [asdict(row) for row in paper],
        }
        return to_json(values)
    header, rows = _score_table(scores, paper, ks)
    if style == "csv":
        return format_table(header, rows, "csv")
    parts = [format_table(header, rows, style)]
    if pairs:
        parts.append(
            format_table(_PAIR_HEADER, [_pair_row(p) for p in pairs[:_PAIRS_SHOWN]], style)
        )
    return "\n\n".join(parts + ["\n".join(_notes(runs, pairs, paper, ks, style))])


def _score_table(
    scores: Sequence[Score], paper: Sequence[Any], ks: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
    more = [k for k in ks if k > 1]
    header = ["task", "run", "problems x samples", *(f"pass@{k}" for k in ks)]
    header += [f"first-{k}" for k in more] + [f"maj@{k}" for k in more]
    header += ["tokens", "of correct", "truncated", "unclosed"]
    rows = []
    for task in dict.fromkeys(item.task for item in scores):
        for item in (item for item in scores if item.task == task):
            cells = [task, item.run, f"{item.num_problems} x {item.num_samples}"]
            cells += [_estimate(item.pass_at[k]) for k in ks]
            cells += [f"{item.first[k]:.3f}" for k in more]
            cells += [_estimate(item.maj_at[k]) if item.maj_at else "-" for k in more]
            tokens = [item.mean_tokens, item.mean_tokens_of_correct]
            cells += [cell(count, ",.0f") for count in tokens]
            ended = [item.share_truncated, 1 - item.share_closed]
            rows.append(cells + [cell(part, ".1%") for part in ended])
        for row in (row for row in paper if row.benchmark == task):
            name = f"paper: {row.method}, {row.decoding}" + (" *" if row.note else "")
            # The paper's Pass@k above 1 counts the first k.
            cells = [task, name, "- x 32"]
            rates = [f"pass@{k}" if k == 1 else "" for k in ks]
            rates += [f"pass@{k}" for k in more] + [f"maj@{k}" for k in more]
            cells += [cell(row.values.get(key, math.nan), ".3f") for key in rates]
            tokens = [row.values.get(key, math.nan) for key in ("tokens", "tokens_of_correct")]
            rows.append([*cells, *(cell(count, ",.0f") for count in tokens), "-", "-"])
    return header, rows


_PAIR_HEADER = ["task", "second - first", "metric", "difference", "p", "problems"]


def _pair_row(pair: Pair) -> list[str]:
    difference = pair.comparison.difference
    return [
        pair.task,
        f"{pair.second} - {pair.first}",
        pair.metric,
        interval(difference.mean, difference.low, difference.high, signed=True),
        f"{pair.comparison.p_value:.2g}",
        str(pair.comparison.num_problems),
    ]


def _notes(
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    paper: Sequence[Any],
    ks: Sequence[int],
    style: str,
) -> list[str]:
    notes = [f"{run.name}, {run.task}: {describe(run.results.settings)}" for run in runs]
    notes.append(
        "[a, b]: 95% interval over problems (of a share Wilson's, for as many tosses as their "
        "spread allows; of a difference Agresti and Min's). truncated: samples cut off at their "
        "limit of tokens. unclosed: samples whose thinking never ended; - where no marker ends it."
    )
    if max(ks) > 1:
        notes.append(
            "pass@k: unbiased. first-k: any of the first k samples, as the paper counts. maj@k: "
            "majority of k, expectation over draws, ties split; - where the verifier tells no "
            "answers to vote on (programs, rewards of one's own)."
        )
    if pairs:
        notes.append(
            "p: two-sided sign-flip test by problem; not corrected for the number of rows."
        )
    if len(pairs) > _PAIRS_SHOWN:
        notes.append(f"{len(pairs) - _PAIRS_SHOWN} more tests: --format json has all.")
    notes += [
        f"* {row.method}, {row.decoding}, {row.benchmark}: {row.note}" for row in paper if row.note
    ]
    return [f"% {note}" for note in notes] if style == "latex" else notes


def _name_and_path(place: str) -> tuple[str | None, str]:
    """What is there is a path, whatever its name; else a name may stand before the first equals."""
    name, equals, path = place.partition("=")
    return (name, path) if equals and not Path(place).exists() else (None, place)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    inside = path / "evaluation" if (path / "evaluation").is_dir() else path
    # What was before training comes first, so that a difference is what training changed.
    files = sorted(inside.glob("*.jsonl"), key=lambda f: (not f.name.startswith("before-"), f.name))
    if not files:
        raise ValueError(f"{path}: no file of records, and no folder that holds one (*.jsonl)")
    return files


def _name(given: str | None, place: Path, file: Path, task: str, is_one_of_several: bool) -> str:
    """A folder of benchmarks is one run; files of one task are a run each, within their folder."""
    is_of_task = file.stem == file_stem(task)
    if not given and not is_of_task and place.is_dir() and is_one_of_several:
        given = place.resolve().name
    if given:
        return given if is_of_task or place.is_file() else f"{given}/{file.stem}"
    return file.resolve().parent.name if is_of_task else file.stem


def file_stem(task: str) -> str:
    """The name of a task's file of records."""
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in task)


def _complete(results: Results, file: Path, display: Display) -> Results:
    """Without the problems that are not sampled as often as the others; says so."""
    wanted = results.settings.get("num_samples", results.num_samples)
    check(f"{file}: num_samples", wanted, int)
    whole = {p for p, records in results.by_problem.items() if len(records) == wanted}
    if left_out := len(results.by_problem) - len(whole):
        display.warn(f"{file}: {left_out} problems are not finished and left out")
    if not whole:
        raise ValueError(f"{file}: no problem has all its {wanted} samples yet")
    return Results(results.settings, [r for r in results.records if r.problem_id in whole])


def _estimate(estimate: Any) -> str:
    return interval(estimate.mean, estimate.low, estimate.high)
