"""The paper's benchmarks, from files and the hub; gold answers pass their own verifiers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softgrpo.rewards import judge
from softgrpo.tasks import BENCHMARKS, load_benchmark
from softgrpo.tasks.benchmarks import _to_problems
from tests.helpers import SHARED

FILES = sorted((SHARED / "benchmarks").glob("*.jsonl"))
COUNTS = {
    "aime2024": 30,
    "aime2025": 30,
    "amc23": 40,
    "gsm8k": 1319,
    "humaneval": 164,
    "math500": 500,
    "mbpp": 257,
}
# A row as the hub has it, and the question and gold answer it comes to.
HUB = {
    "aime2024": ({"id": 60, "problem": "1+1?", "answer": "2"}, "1+1?", "2"),
    "math500": ({"problem": "1+1?", "solution": "two", "answer": "2"}, "1+1?", "2"),
    "gsm8k": ({"question": "1+1?", "answer": "1+1 = <<1+1=2>>2\n#### 2"}, "1+1?", "2"),
    "amc23": ({"id": 0, "question": "1+1?", "answer": 27.0}, "1+1?", "27.0"),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub(name):
    row, question, answer = HUB[name]
    (problem,) = _to_problems([("row 0", row)], name, seed=0)
    assert (problem.question, problem.answer) == (question, answer)


def test_code_keeps_what_its_verifier_needs():
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "f",
    }
    (problem,) = _to_problems([("row 0", row)], "humaneval", seed=0)
    gold = json.loads(problem.answer)
    assert "def f():" in problem.question and gold["prompt"] == "def f():\n"
    assert gold["entry_point"] == "f" and gold["test"] == row["test"]
    row = {"prompt": "Add.", "code": "def g(): pass", "test_list": ["assert g() is None"]}
    (problem,) = _to_problems([("row 0", row | {"test_imports": ["import math"]})], "mbpp", seed=0)
    assert "assert g() is None" in problem.question
    assert json.loads(problem.answer)["test_import"] == ["import math"]


CHOICES = {
    "Question": "Which?",
    "Correct Answer": "right",
    "Incorrect Answer 1": "wrong 1",
    "Incorrect Answer 2": "wrong 2",
    "Incorrect Answer 3": "wrong 3",
}


def test_choices_are_shuffled_by_the_seed_and_the_letter_follows():
    letters = set()
    for seed in range(40):
        (problem,) = _to_problems([("row 0", CHOICES)], "gpqa_diamond", seed)
        again = _to_problems([("row 0", CHOICES)], "gpqa_diamond", seed)[0]
        assert problem == again
        assert f"{problem.answer}) right" in problem.question
        letters.add(problem.answer)
    assert letters == set("ABCD")


def test_choices_from_a_file(tmp_path):
    row = {"id": "g/0", "question": "Which?", "answer": "right", "choices": ["wrong", "right"]}
    (tmp_path / "gpqa_diamond.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = load_benchmark("gpqa_diamond", data=str(tmp_path))
    assert problem.id == "g/0" and f"{problem.answer}) right" in problem.question


def test_every_benchmark_is_pinned_and_put():
    assert set(BENCHMARKS) == {*COUNTS, "gpqa_diamond"}
    for benchmark in BENCHMARKS.values():
        assert len(benchmark.hub.split(":")[3]) == 40 and "{question}" in benchmark.template


def test_an_unknown_benchmark_names_the_known():
    with pytest.raises(ValueError, match="did you mean gsm8k.*aime2024, aime2025, amc23"):
        load_benchmark("gsm8")


def test_no_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"amc23\.jsonl: no such file"):
        load_benchmark("amc23", data=str(tmp_path))


def test_without_a_hub_files_are_the_way(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"--data DIR reads DIR/amc23\.jsonl"):
        load_benchmark("amc23")


def test_a_row_of_something_else_is_refused(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl:1: no row of gsm8k"):
        load_benchmark("gsm8k", data=str(tmp_path))


_CODE = {"prompt": "def f():", "canonical_solution": "1", "test": "t", "entry_point": "f"}
_MBPP = {"prompt": "f", "code": "x", "test_list": ["assert f"]}
_CHOICE = {"question": "q", "answer": "a", "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("gsm8k", {"question": 1, "answer": "#### 5"}, "question=1: must be text"),
        ("gsm8k", {"question": "", "answer": "#### 5"}, "'question' is empty"),
        ("gsm8k", {"question": "1?", "answer": "####"}, "'answer' is ''"),
        ("math500", {"problem": "1?", "answer": None}, "'answer' is None"),
        ("math500", {"problem": "1?", "answer": "5", "id": {}}, "id={}: must be"),
        ("humaneval", {"question": None, "answer": {}}, "question=None: must be text"),
        ("humaneval", {"question": "def f():", "answer": "5"}, "answer='5': must be a mapping"),
        ("humaneval", _CODE | {"canonical_solution": 1}, "canonical_solution=1: must be text"),
        ("mbpp", _MBPP | {"test_list": "abc"}, "test_list='abc': must be a list"),
        ("mbpp", _MBPP | {"test_list": []}, "'test_list' is empty"),
        ("mbpp", _MBPP | {"test_imports": 5}, "test_import=5: must be a list"),
        ("gpqa_diamond", _CHOICE | {"choices": [None]}, "choices=[None]: must be a list"),
        ("gpqa_diamond", _CHOICE | {"answer": "c"}, "answer='c': must be one of the choices"),
    ],
)
def test_values_of_another_type_are_refused_by_the_line(tmp_path, name, row, said):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError) as error:
        load_benchmark(name, data=str(tmp_path))
    assert f"{name}.jsonl:1: no row of {name}: " in str(error.value) and said in str(error.value)


def test_one_id_stands_for_one_problem(tmp_path):
    row = json.dumps({"id": "a", "question": "1?", "answer": "#### 5"}) + "\n"
    (tmp_path / "gsm8k.jsonl").write_text(row * 2)
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl:2: id 'a' stands twice"):
        load_benchmark("gsm8k", data=str(tmp_path))


@pytest.mark.skipif(not FILES, reason="the benchmark files are not here")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_gold_answer_passes_its_own_verifier(file: Path):
    name = file.stem
    problems = load_benchmark(name, data=str(file.parent))
    assert len(problems) == COUNTS[name]
    assert len({problem.id for problem in problems}) == len(problems)

    def passes(problem):
        return judge(BENCHMARKS[name].verifier, _gold(name, problem), problem.answer, []).correct

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(passes, problems))
    assert [p.id for p, ok in zip(problems, verdicts, strict=True) if not ok] == []


def _gold(name, problem):
    """The gold answer as a model would write it."""
    match name:
        case "humaneval":
            gold = json.loads(problem.answer)
            return f"```python\n{gold['prompt']}{gold['canonical_solution']}\n```"
        case "mbpp":
            return f"```python\n{json.loads(problem.answer)['code']}\n```"
        case _:
            return rf"So it is \boxed{{{problem.answer}}}."
