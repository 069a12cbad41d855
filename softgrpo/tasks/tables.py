"""Problems from tables: JSONL and Parquet files, and data sets of the Hugging Face hub.

Not their split into train and eval, which is `sources.py`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from softgrpo.tasks.problems import Problem
from softgrpo.values import check, fits, shown

Row = tuple[str, Mapping[str, Any]]
"""A row and where it is, for messages: `data.jsonl:7` or `data.parquet, row 7`."""

SUFFIXES = (".jsonl", ".parquet")


def read_file(path: str) -> Iterator[Row]:
    """The rows of a JSONL or Parquet file.

    Raises:
        ValueError: The file is missing, unreadable, or has a line that is not a JSON object.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (relative paths start at {Path.cwd()})")
    yield from _read_jsonl(path) if path.endswith(".jsonl") else _read_parquet(path)


def read_hub(repo: str, *, name: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """The rows of one split of a hub data set.

    Raises:
        ValueError: There is no such data set, configuration, split or revision, or no hub.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(repo, name=name, split=split, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"hub:{repo} split {split!r}: {error}; a .jsonl or .parquet file needs no hub"
        ) from error
    for index, row in enumerate(rows):
        yield f"hub:{repo} split {split!r}, row {index}", row


def to_problems(rows: Iterable[Row], table: str, options: Mapping[str, Any]) -> list[Problem]:
    """Turns rows into problems; the columns that are not used become metadata, None where missing.

    Args:
        rows: The rows with their places.
        table: Names the table in ids (`table/0`, `table/1`, ...) where there is no `id` column.
        options: `question_column` holds the question, as text or as chat messages ending with the
            user's (None: `question` where there is one, else `prompt`), `answer_column` the gold
            answer, as text or a number (None: `answer`, or verl's `reward_model.ground_truth`).

    Raises:
        ValueError: No rows, a missing column, two rows with one id, or a value of no use.
    """

    def to_problem(index: int, row: Mapping[str, Any]) -> Problem:
        rest = dict(row)
        column = options.get("question_column") or ("question" if "question" in rest else "prompt")
        question, context = _question(_pop(rest, column), column)
        answer = _answer(rest, options.get("answer_column"))
        problem_id = to_id(rest.pop("id", None), f"{table}/{index}")
        return Problem(problem_id, question, answer, rest, context)

    problems = collect(rows, to_problem, table)
    names = dict.fromkeys(name for problem in problems for name in problem.metadata)
    return [
        replace(problem, metadata={name: problem.metadata.get(name) for name in names})
        for problem in problems
    ]


def collect(
    rows: Iterable[Row], to_problem: Callable[[int, Mapping[str, Any]], Problem], table: str
) -> list[Problem]:
    """The problem of each row.

    Args:
        rows: The rows with their places.
        to_problem: Index and row to a problem; raises ValueError where it is none.
        table: What messages call it where there are no rows.

    Raises:
        ValueError: No rows, a row that is no problem, or two rows with one id; names the place.
    """
    problems: dict[str, Problem] = {}
    for index, (where, row) in enumerate(rows):
        try:
            problem = to_problem(index, row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if problem.id in problems:
            raise ValueError(f"{where}: id {problem.id!r} stands twice; ids must be distinct")
        problems[problem.id] = problem
    if not problems:
        raise ValueError(f"{table}: no data; at least one row is needed")
    return list(problems.values())


def to_id(value: Any, default: str) -> str:
    """The id of a row, a number or text; the default where it has none."""
    check("id", value, float | str | None)
    return default if value in (None, "") else str(value)


def to_answer(value: Any, column: str) -> str:
    """A gold answer as text."""
    is_number = isinstance(value, int) or fits(value, float)
    if is_number or (isinstance(value, str) and value.strip()):
        return str(value)
    raise ValueError(f"column {column!r} is {shown(value)}; it must be text or a finite number")


def _read_jsonl(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _json_object(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: {error}") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\u" in line:  # an escape can stand for half of a surrogate pair, which is no text
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); each line must be one object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}; each line must be one object")
    return row


def _read_parquet(path: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    # Arrow says OSError of what is damaged, and Python's dates do not hold all of Arrow's.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from error
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", row


def _pop(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(
            f"no column {column!r}; there are {sorted(row)}. Needed are 'question' or "
            "'prompt', and 'answer', or the options question_column and answer_column"
        )
    return row.pop(column)


def _answer(row: dict[str, Any], column: str | None) -> str:
    """The gold answer, taken out of the row; verl's row keeps it with the kind of its reward."""
    match row:
        case {"reward_model": {"ground_truth": answer}} if column is None and "answer" not in row:
            return to_answer(answer, "reward_model.ground_truth")
    column = column or "answer"
    return to_answer(_pop(row, column), column)


def _question(value: Any, column: str) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """The question and the messages before it."""
    match value:
        case str() if value.strip():
            return value, ()
        case [*context, {"role": "user", "content": str(question)}] if question.strip() and all(
            map(_is_message, context)
        ):
            return question, tuple(context)
    raise ValueError(
        f"column {column!r} is {shown(value)}; it must be text, or chat messages "
        "(role, content) of which the last is the user's"
    )


def _is_message(value: Any) -> bool:
    match value:
        case {"role": str(), "content": str()}:
            return True
    return False
