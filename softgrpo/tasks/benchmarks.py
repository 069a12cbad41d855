r"""The benchmarks of the paper, and how each is put to a model and judged.

Problems come from local files (`gsm8k.jsonl`, ...: id, question, answer) or from the hub at a
pinned revision. Not their verifiers: those are in `softgrpo.rewards`, named here.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from softgrpo.tasks.problems import Problem
from softgrpo.tasks.tables import Row, collect, read_file, read_hub, to_answer, to_id
from softgrpo.values import check, shown

BOXED = "{question}\nLet's think step by step and output the final answer within \\boxed{}."
"""The prompt of the paper and its authors' code."""
_LETTER = BOXED.replace("final answer", "letter of the final answer")
_PROGRAM = (
    "{question}\nLet's think step by step and output the final program, the whole function with "
    "its imports, in one ```python block."
)


class Benchmark(NamedTuple):
    """Where a benchmark's problems come from, and how they are put and judged."""

    hub: str  # repository:configuration:split:revision on the Hugging Face hub
    template: str = BOXED  # the user's message, with {question} in it
    verifier: str = "math_verify"  # a key of softgrpo.rewards.VERIFIERS


# Revisions: the heads of these repositories when they were looked up, none of them loaded here.
_HUB = {
    "aime2024": "HuggingFaceH4/aime_2024:None:train:2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    "aime2025": "math-ai/aime25:None:test:563bb8404243c5f09de6ec262f2db674fe5bce9b",
    "amc23": "math-ai/amc23:None:test:80815d37005feb82cd7f8fbc6901d5d3eff43057",
    "math500": "HuggingFaceH4/MATH-500:None:test:6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    "gsm8k": "openai/gsm8k:main:test:740312add88f781978c0658806c59bc2815b9866",
    "gpqa_diamond": "Idavidrein/gpqa:gpqa_diamond:train:633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    "humaneval": "openai/openai_humaneval:None:test:7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    "mbpp": "google-research-datasets/mbpp:sanitized:test:4bb6404fdc6cacfda99d4ac4205087b89d32030c",
}
_PUT_AND_JUDGED = {
    "gpqa_diamond": (_LETTER, "letter"),
    "humaneval": (_PROGRAM, "humaneval"),
    "mbpp": (_PROGRAM, "mbpp"),
}
BENCHMARKS = {name: Benchmark(hub, *_PUT_AND_JUDGED.get(name, ())) for name, hub in _HUB.items()}
"""By their names on the command line; ``NAME.jsonl`` is a local file."""


def load_benchmark(name: str, *, data: str | None = None, seed: int = 0) -> list[Problem]:
    """All problems of a benchmark, in their order.

    Args:
        name: A key of `BENCHMARKS`.
        data: A folder with `name.jsonl`; None takes the hub.
        seed: Shuffles the choices of GPQA; the order of a problem depends on it and its text alone.

    Raises:
        ValueError: Unknown name, no such file, no hub, or rows that are not the benchmark's.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"benchmarks: no benchmark {name!r}{hint}; there are {', '.join(BENCHMARKS)}"
        )
    rows = _hub(name) if data is None else read_file(str(Path(data) / f"{name}.jsonl"))
    return _to_problems(rows, name, seed)


def _hub(benchmark: str) -> Iterable[Row]:
    repo, configuration, split, revision = BENCHMARKS[benchmark].hub.split(":")
    name = None if configuration == "None" else configuration
    try:
        return list(read_hub(repo, name=name, split=split, revision=revision))
    except Exception as error:
        # The hub's client has errors of many kinds, and what to do is the same for all.
        raise ValueError(
            f"{benchmark}: cannot be read from the hub ({type(error).__name__}: {error}); "
            f"--data DIR reads DIR/{benchmark}.jsonl, lines of id, question and answer"
        ) from error


def _to_problems(rows: Iterable[Row], name: str, seed: int) -> list[Problem]:
    def to_problem(index: int, row: Mapping[str, Any]) -> Problem:
        try:
            question, answer = _question_and_answer(row, name, seed)
            problem_id = to_id(row.get("id"), f"{name}/{index}")
        except ValueError as error:
            raise ValueError(f"no row of {name}: {error}") from error
        return Problem(problem_id, question, answer)

    return collect(rows, to_problem, name)


def _question_and_answer(row: Mapping[str, Any], name: str, seed: int) -> tuple[str, str]:
    """The question and the gold answer of a row of a local file or of the hub."""
    match name:
        case "gpqa_diamond":
            return _multiple_choice(row, seed)
        case "humaneval":
            prompt, gold = _either(row, "question", "prompt"), _gold(row)
            kept = {key: _take(gold, key) for key in ("canonical_solution", "test", "entry_point")}
            question = f"Complete this function:\n```python\n{prompt.strip()}\n```"
            return question, json.dumps({"prompt": prompt, **kept})
        case "mbpp":
            question, gold = _either(row, "question", "prompt"), _gold(row)
            tests = _take(gold, "test_list", list[str])
            imports = gold.get("test_import", gold.get("test_imports")) or []
            check("test_import", imports, list[str])
            kept = {"code": _take(gold, "code"), "test_list": tests, "test_import": imports}
            shown_tests = "\n".join(tests)
            return f"{question}\nIt must pass:\n```python\n{shown_tests}\n```", json.dumps(kept)
        case "gsm8k":
            answer = to_answer(row.get("answer"), "answer").rpartition("####")[2].strip()
            return _take(row, "question"), to_answer(answer, "answer")
        case _:
            return _either(row, "question", "problem"), to_answer(row.get("answer"), "answer")


def _multiple_choice(row: Mapping[str, Any], seed: int) -> tuple[str, str]:
    """Choices in an order of the seed's; a file has `choices` and the right one as `answer`."""
    if "choices" in row:
        question, right = _take(row, "question"), _take(row, "answer")
        choices = _take(row, "choices", list[str])
    else:
        question, right = _take(row, "Question"), _take(row, "Correct Answer")
        choices = [right, *(_take(row, f"Incorrect Answer {i}") for i in (1, 2, 3))]
    right, choices = right.strip(), [choice.strip() for choice in choices]
    if right not in choices:
        raise ValueError(f"answer={shown(right)}: must be one of the choices")
    random.Random(f"{seed}/{question}").shuffle(choices)
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    lines = [f"{name}) {choice}" for name, choice in zip(letters, choices, strict=True)]
    return "\n".join([question.strip(), "", *lines]), letters[choices.index(right)]


def _take(row: Mapping[str, Any], name: str, kind: Any = str) -> Any:
    """A value that a row must have; text unless said otherwise, and then not empty."""
    if name not in row:
        raise ValueError(f"{name!r} is missing")
    check(name, row[name], kind)
    if not row[name]:
        raise ValueError(f"{name!r} is empty")
    return row[name]


def _either(row: Mapping[str, Any], name: str, other: str) -> str:
    """A text that goes by one name in a local file and by another on the hub."""
    return _take(row, name if name in row else other)


def _gold(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a program is judged by: in a local file the answer, on the hub the row itself."""
    gold = row.get("answer", row)
    check("answer", gold, Mapping)
    return gold
