import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from softgrpo.tasks import Problem, load_problems
from softgrpo.tasks.problems import EVAL_SHARE, split_of

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 questions


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(source: str, split: Any = "train", n: int | None = None, **options: Any) -> list[Problem]:
    return load_problems(source, split=split, num_problems=n, seed=0, options=options)


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"{i} + 1?", "answer": i + 1, "level": i % 3} for i in range(count)]


def test_split_is_of_the_text_alone_and_of_the_stated_share() -> None:
    assert split_of("1 + 1?") == split_of(" 1  +\n1? ")
    held_out = sum(split_of(str(i)) == "eval" for i in range(10_000))
    assert abs(held_out / 10_000 - EVAL_SHARE) < 0.02


def test_generated_train_and_eval_are_disjoint_whatever_the_seeds() -> None:
    def questions(split: Any, seed: int, n: int) -> set[str]:
        problems = load_problems(
            "reasoning_gym:chain_sum", split=split, num_problems=n, seed=seed, options=ONE_DIGIT
        )
        assert len({problem.id for problem in problems}) == n
        assert len({problem.question for problem in problems}) == n
        return {problem.question for problem in problems}

    train = questions("train", 0, 130) | questions("train", 7, 130)
    held_out = questions("eval", 0, 30) | questions("eval", 7, 30)
    assert not train & held_out


def test_generated_problems_are_right_reproducible_and_a_prefix_of_more() -> None:
    def generate(n: int, seed: int) -> list[Problem]:
        return load_problems(
            "reasoning_gym:chain_sum", split="train", num_problems=n, seed=seed, options=ONE_DIGIT
        )

    problems = generate(20, 3)
    assert problems == generate(40, 3)[:20]
    assert problems != generate(20, 4)
    for problem in problems:
        assert int(problem.answer) == eval(problem.metadata["expression"])


@pytest.mark.parametrize(
    ("source", "n", "options", "message"),
    [
        ("reasoning_gym:chain_sums", 5, {}, "no such reasoning-gym data set; nearest: chain_sum"),
        ("reasoning_gym:chain_sum", None, {}, "num_problems: must be set"),
        ("reasoning_gym:chain_sum", 0, {}, "num_problems=0: must be at least 1"),
        ("reasoning_gym:chain_sum", 5, {"terms": 2}, r"unknown options \['terms'\]; there are"),
        ("reasoning_gym:chain_sum", 5, {"seed": 2}, r"unknown options \['seed'\]"),
        ("reasoning_gym:chain_sum", 5, {"min_terms": 0}, "refused: min_terms must be positive"),
        ("reasoning_gym:chain_sum", 300, ONE_DIGIT, r"gave only 1\d\d distinct questions"),
        ("reasoning_gym:graph_color", 5, {}, "no single gold answer"),
        ("data.csv", 5, {}, "unknown source 'data.csv'; expected reasoning_gym:NAME"),
        ("no/such.jsonl", 5, {}, "no/such.jsonl: no such file"),
        ("no/such.jsonl", 5, {"colour": 1}, r"unknown options \['colour'\]"),
        (
            "no/such.jsonl",
            5,
            {"question_column": 5},
            "task_options.question_column=5: must be text",
        ),
        ("no/such.jsonl", 5, {"eval_source": ["a"]}, r"task_options.eval_source=\['a'\]: must be"),
        ("hub:org/name", 5, {"eval_split": {}}, r"task_options.eval_split=\{\}: must be text"),
        (
            "a.jsonl",
            5,
            {"eval_share": "0"},
            r"task_options.eval_share='0': must be a finite number",
        ),
        ("a.jsonl", 5, {"eval_share": 1}, r"task_options.eval_share=1: must be in \[0, 1\)"),
        ("hub:org/name", 5, {"eval_source": "a"}, r"unknown options \['eval_source'\]"),
    ],
)
def test_source_errors(source: str, n: int | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(source, n=n, **options)


def test_jsonl_is_split_whole_and_in_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(100))
    train, held_out = load(path), load(path, "eval")
    assert len(train) + len(held_out) == 100
    assert all(split_of(problem.question) == "eval" for problem in held_out)
    assert [problem.id for problem in train] == sorted(
        (problem.id for problem in train), key=lambda problem_id: int(problem_id.split("/")[1])
    )
    index = int(train[0].id.removeprefix("sums/"))
    assert train[0].question == f"{index} + 1?"
    assert train[0].answer == str(index + 1)
    assert train[0].metadata == {"level": index % 3}


def test_as_many_are_held_out_as_the_share_says(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(1000))
    assert len(load(path, eval_share=0)) == 1000
    with pytest.raises(ValueError, match="has 0 for split 'eval', with 0% held out"):
        load(path, "eval", eval_share=0)
    half = load(path, "eval", eval_share=0.5)
    assert abs(len(half) - 500) < 60
    fifth = {problem.id for problem in load(path, "eval")}
    assert fifth == {problem.id for problem in load(path, "eval", eval_share=0.2)}
    assert fifth < {problem.id for problem in half}


def test_num_problems_draws_by_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(100))
    assert load(path, n=5) == load(path, n=10)[:5]
    assert load(path, n=5) != load_problems(path, split="train", num_problems=5, seed=1)
    with pytest.raises(ValueError, match="num_problems=99: .*sums.jsonl has .* for split 'train'"):
        load(path, n=99)


def test_eval_source_is_all_held_out_and_leaves_train(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", sums(10))
    held_out = write_jsonl(tmp_path / "test.jsonl", sums(4))
    assert len(load(path, "eval", eval_source=held_out)) == 4
    train = load(path, eval_source=held_out)
    assert [problem.question for problem in train] == [f"{i} + 1?" for i in range(4, 10)]
    with pytest.raises(ValueError, match="has 0 for split 'train'"):
        load(held_out, eval_source=path)


def test_parquet_equals_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    parquet = str(tmp_path / "sums.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(sums(10)), parquet)
    assert load(parquet) == load(write_jsonl(tmp_path / "sums.jsonl", sums(10)))
    Path(parquet).write_text("no")
    with pytest.raises(ValueError, match="sums.parquet: not a Parquet file"):
        load(parquet)


def test_hub_reads_the_splits_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(path: str, name: str, *, split: str, revision: str) -> datasets.Dataset:
        assert (path, name, revision) == ("org/name", "main", "abc")
        return datasets.Dataset.from_list(sums({"train": 10, "test": 4}[split]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options: dict[str, Any] = {"name": "main", "revision": "abc", "eval_split": "test"}
    assert [problem.id for problem in load("hub:org/name", "eval", **options)] == [
        f"org/name/test/{i}" for i in range(4)
    ]
    assert len(load("hub:org/name", **options)) == 6


def test_columns(tmp_path: Path) -> None:
    context = [{"role": "system", "content": "Be brief."}]
    turns = [*context, {"role": "user", "content": "2?"}]
    rows = [
        {"id": "x", "prompt": "1?", "answer": "1"},
        {"id": 7, "prompt": turns, "answer": 2.5},
        {"id": "z", "question": "3?", "prompt": "Q: 3?", "answer": "3"},
    ]
    held_out = write_jsonl(tmp_path / "rows.jsonl", rows)
    problems = load(held_out, "eval", eval_source=held_out)
    assert problems == [
        Problem("x", "1?", "1", {"prompt": None}),  # a column that one row has, all have
        Problem("7", "2?", "2.5", {"prompt": None}, context=tuple(context)),
        Problem("z", "3?", "3", {"prompt": "Q: 3?"}),
    ]


def test_numbers_of_any_size_are_answers(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "1?", "answer": 10**400}])
    assert load(path, "eval", eval_source=path)[0].answer == str(10**400)


def test_columns_by_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "1?", "gold": "1"}])
    names: dict[str, Any] = {"question_column": "query", "answer_column": "gold"}
    problems = load(path, "eval", eval_source=path, **names)
    assert problems == [Problem("rows/0", "1?", "1")]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_verl_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    turns = [{"role": "system", "content": "Box it."}, {"role": "user", "content": "1 + 1?"}]
    row = {
        "data_source": "deepscaler",
        "prompt": turns,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 3, "split": "train"},
    }
    path = str(tmp_path / f"train{suffix}")
    if suffix == ".jsonl":
        write_jsonl(Path(path), [row])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    [problem] = load(path, "eval", eval_source=path)
    assert (problem.question, problem.answer, problem.context) == ("1 + 1?", "2", (turns[0],))
    assert problem.metadata.keys() == {"data_source", "ability", "reward_model", "extra_info"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no data"),
        (
            '{"prompt": "1?", "reward_model": {"ground_truth": ["1", "2"]}}',
            r"column 'reward_model.ground_truth' is \['1', '2'\]",
        ),
        ('{"prompt": "1?", "reward_model": {"style": "rule"}}', "no column 'answer'"),
        ("\n\n", "no data"),
        ('{"question": "1?", "answer": "1"}\n{"question": ', r"rows.jsonl:2: not JSON"),
        ('\n["1?", "1"]\n', "rows.jsonl:2: a JSON list"),
        ('{"text": "1?", "answer": "1"}', r"no column 'prompt'; there are \['answer', 'text'\]"),
        ('{"question": "1?", "label": "1"}', r"no column 'answer'; there are \['label'\]"),
        ('{"question": "1?", "answer": NaN}', "rows.jsonl:1: column 'answer' is nan"),
        ('{"question": "1?", "answer": null}', "column 'answer' is None"),
        ('{"question": "1?", "answer": "  "}', "column 'answer' is '  '"),
        ('{"question": "1?", "answer": {"code": "x"}}', "column 'answer' is {'code': 'x'}"),
        ('{"question": null, "answer": "1"}', "column 'question' is None"),
        ('{"prompt": [], "answer": "1"}', r"column 'prompt' is \[\]"),
        ('{"prompt": [{"role": "system", "content": "a"}], "answer": "1"}', "the last is the user"),
        ('{"prompt": [5, {"role": "user", "content": "1?"}], "answer": "1"}', "'prompt' is"),
        (
            '{"prompt": [{"role": 1}, {"role": "user", "content": "1?"}], "answer": "1"}',
            "'prompt' is",
        ),
        ('{"id": [], "question": "1?", "answer": "1"}', r"rows.jsonl:1: id=\[\]: must be"),
        ('{"question": "\\ud800?", "answer": "1"}', "rows.jsonl:1: not JSON .*surrogate"),
        ('{"id": 1, "question": "1?", "answer": "1"}\n' * 2, "rows.jsonl:2: id '1' stands twice"),
    ],
)
def test_file_errors_name_the_place_and_what_would_do(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(str(path))


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="rows.jsonl: not UTF-8"):
        load(str(path))
