"""Where problems come from: one function for generated problems, files and the hub.

Not a registry of benchmarks, and not a prompt. The split of train and eval is kept here: no
question of the eval split occurs in the train split, whatever the seeds.
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from softgrpo.tasks.generated import generate_problems
from softgrpo.tasks.problems import EVAL_SHARE, Problem, Split, question_digest, split_of
from softgrpo.tasks.tables import SUFFIXES, read_file, read_hub, to_problems
from softgrpo.values import check

_FILE_OPTIONS = {"question_column", "answer_column", "eval_source", "eval_share"}
_HUB_OPTIONS = {
    "question_column", "answer_column", "name", "split", "eval_split", "eval_share", "revision",
}  # fmt: skip


def load_problems(
    source: str,
    *,
    split: Split,
    num_problems: int | None,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Loads one side of a source.

    A fifth of all questions is held out for eval by a hash of their text, of a table as many as its
    option `eval_share` says, unless the options name held-out data; then eval is that data, and
    train is the source without its questions.

    Args:
        source: One of
            `reasoning_gym:NAME`, whose options are fields of that data set's configuration;
            a path ending in .jsonl or .parquet, with the options `question_column` (by default
            `question`, else `prompt`), `answer_column` (`answer`, or in verl's rows
            `reward_model.ground_truth`) and `eval_source` (a second file, all of it held out);
            `hub:ORG/NAME`, with the columns' options, `name` (the configuration), `split` (by
            default `train`), `eval_split` (a split, all of it held out) and `revision`.
        split: `train` or `eval`.
        num_problems: How many; None is all of a file or hub data set, in its order.
        seed: Chooses which problems, where `num_problems` is given.
        options: See `source`.

    Returns:
        The problems. Asking for fewer with the same seed gives the first of them.

    Raises:
        ValueError: Names the field, file or line at fault, and what would do.
    """
    options = dict(options or {})
    check("task_options", options, dict[str, Any])
    if num_problems is not None and num_problems < 1:
        raise ValueError(f"num_problems={num_problems}: must be at least 1")
    if source.startswith("reasoning_gym:"):
        if num_problems is None:
            raise ValueError(f"num_problems: must be set for {source}, which has no end")
        return generate_problems(
            source.removeprefix("reasoning_gym:"),
            split=split,
            num_problems=num_problems,
            seed=seed,
            options=options,
        )
    if source.startswith("hub:"):
        _check_options(source, options, _HUB_OPTIONS)
        load = partial(_load_hub, source.removeprefix("hub:"), options)
        table, held_out = options.get("split") or "train", options.get("eval_split")
    elif source.endswith(SUFFIXES):
        _check_options(source, options, _FILE_OPTIONS)
        load = partial(_load_file, options)
        table, held_out = source, options.get("eval_source")
    else:
        raise ValueError(
            f"unknown source {source!r}; expected reasoning_gym:NAME, a path ending in "
            f"{' or '.join(SUFFIXES)}, or hub:ORG/NAME"
        )
    share = options.get("eval_share", EVAL_SHARE)
    problems = _side(load, table, held_out, split, share)
    if len(problems) < (num_problems or 1):
        raise ValueError(
            f"num_problems={num_problems}: {source} has {len(problems)} for split {split!r}, with "
            + (f"{held_out!r} held out" if held_out else f"{share:.0%} held out by hash")
            + "; ask for fewer, give more, or name held-out data by the option "
            + ("eval_split" if source.startswith("hub:") else "eval_source")
        )
    if num_problems is None:
        return problems
    random.Random(seed).shuffle(problems)
    return problems[:num_problems]


def _side(
    load: Callable[[str], list[Problem]],
    table: str,
    held_out: str | None,
    split: Split,
    share: float,
) -> list[Problem]:
    if held_out is None:
        return [problem for problem in load(table) if split_of(problem.question, share) == split]
    if split == "eval":
        return load(held_out)
    digests = {question_digest(problem.question) for problem in load(held_out)}
    return [p for p in load(table) if question_digest(p.question) not in digests]


def _load_file(options: Mapping[str, Any], path: str) -> list[Problem]:
    return to_problems(read_file(path), Path(path).stem, options)


def _load_hub(repo: str, options: Mapping[str, Any], hub_split: str) -> list[Problem]:
    rows = read_hub(
        repo, name=options.get("name"), split=hub_split, revision=options.get("revision")
    )
    return to_problems(rows, f"{repo}/{hub_split}", options)


def _check_options(source: str, options: Mapping[str, Any], known: set[str]) -> None:
    """Options of a table: all of them are names, but for a share."""
    if unknown := options.keys() - known:
        raise ValueError(f"{source}: unknown options {sorted(unknown)}; there are {sorted(known)}")
    for name, value in options.items():
        check(f"task_options.{name}", value, float if name == "eval_share" else str | None)
    share = options.get("eval_share", 0)
    if not 0 <= share < 1:
        raise ValueError(f"task_options.eval_share={share}: must be in [0, 1); 0 holds none out")
