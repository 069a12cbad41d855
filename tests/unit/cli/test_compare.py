"""The comparison of evaluations: names, tables, the paper's rows, and what is refused."""

import csv
import io
import json
import resource
from pathlib import Path

import pytest

from softgrpo.cli.main import main
from softgrpo.evaluation import RecordFile
from tests.unit.evaluation.test_records import _record

MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def _write(path: Path, rights: dict[str, list[bool]], *, task="math500", model=MODEL) -> Path:
    """A file of records with these verdicts by problem."""
    samples = max(map(len, rights.values()))
    with RecordFile(path, {"task": task, "model": model, "num_samples": samples}) as file:
        for number, (problem, verdicts) in enumerate(rights.items()):
            for sample, correct in enumerate(verdicts):
                sequence = number * samples + sample
                answer = "7" if correct else "8"
                file.append(
                    _record(problem, sample, correct=correct, answer=answer, sequence=sequence)
                )
    return path


BASE = {"a": [True, False], "b": [False, False], "c": [False, True]}
BETTER = {"a": [True, True], "b": [True, False], "c": [True, True]}


def _json(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_numbers_by_hand(tmp_path, capsys):
    base = _write(tmp_path / "base" / "math500.jsonl", BASE)
    better = _write(tmp_path / "better" / "math500.jsonl", BETTER)
    values = _json(capsys, base.parent, better.parent)
    by_run = {item["run"]: item for item in values["scores"]}
    assert by_run["base"]["pass_at"]["1"]["mean"] == pytest.approx(1 / 3)
    assert by_run["base"]["pass_at"]["2"]["mean"] == pytest.approx(2 / 3)
    assert by_run["base"]["first"]["2"] == pytest.approx(2 / 3)
    assert by_run["base"]["maj_at"]["2"]["mean"] == pytest.approx(1 / 3)  # ties split
    assert by_run["better"]["pass_at"]["1"]["mean"] == pytest.approx(5 / 6)
    pair = values["paired_tests"][0]
    assert (pair["first"], pair["second"], pair["metric"]) == ("base", "better", "pass@1")
    assert pair["comparison"]["difference"]["mean"] == pytest.approx(0.5)
    assert pair["comparison"]["p_value"] == pytest.approx(0.25)  # 2 of 2^3 signs


def test_the_papers_rows_stand_beside_where_model_and_benchmark_match(tmp_path, capsys):
    path = _write(tmp_path / "mine" / "math500.jsonl", BASE)
    rows = _json(capsys, path.parent)["paper"]
    found = {(row["method"], row["decoding"]): row["values"]["pass@1"] for row in rows}
    assert found["base", "discrete"] == pytest.approx(0.845, abs=0.02)
    assert ("soft-grpo", "soft") in found
    other = _write(tmp_path / "other" / "math500.jsonl", BASE, model="org/else")
    assert _json(capsys, other.parent)["paper"] == []
    assert _json(capsys, other.parent, "--paper", "Llama-3.2-3B-Instruct")["paper"]


def test_the_misprint_is_said(tmp_path, capsys):
    path = _write(
        tmp_path / "mine" / "aime2025.jsonl", BASE, task="aime2025", model="Llama-3.2-3B-Instruct"
    )
    assert main(["compare", str(path)]) == 0
    assert "misprint: the authors' log says 3.33/10.0" in capsys.readouterr().out


def test_an_average_over_the_benchmarks_of_a_run(tmp_path, capsys):
    for name in ("math500", "amc23"):
        _write(tmp_path / "run" / f"{name}.jsonl", BASE if name == "amc23" else BETTER, task=name)
    scores = _json(capsys, tmp_path / "run")["scores"]
    average = next(item for item in scores if item["task"] == "average")
    assert average["pass_at"]["1"]["mean"] == pytest.approx((1 / 3 + 5 / 6) / 2)
    assert average["num_problems"] == 6


def test_every_format_holds_the_same_rows(tmp_path, capsys):
    path = _write(tmp_path / "under_score & 50%" / "math500.jsonl", BASE)
    for style in ("text", "markdown", "latex", "csv"):
        capsys.readouterr()
        assert main(["compare", str(path.parent), "--format", style]) == 0
        text = capsys.readouterr().out
        assert "0.333" in text
        if style == "latex":
            assert r"under\_score \& 50\%" in text and r"\begin{tabular}" in text
        if style == "csv":
            header, *rows = csv.reader(io.StringIO(text))
            assert {len(row) for row in rows} == {len(header)}


def test_two_runs_by_their_folders(tmp_path, capsys):
    for name in ("first", "second"):
        for when, rights in (("before", BASE), ("after", BETTER)):
            folder = tmp_path / name / "evaluation"
            _write(folder / f"{when}-soft.jsonl", rights, task="gsm8k")
    scores = _json(capsys, tmp_path / "first", tmp_path / "second")["scores"]
    assert [item["run"] for item in scores] == [
        "first/before-soft", "first/after-soft", "second/before-soft", "second/after-soft"
    ]  # fmt: skip
    values = _json(capsys, tmp_path / "first")
    assert [item["run"] for item in values["scores"]] == ["before-soft", "after-soft"]
    assert values["paired_tests"][0]["comparison"]["difference"]["mean"] > 0  # what it gained


def test_the_table_says_how_samples_were_drawn_and_how_they_ended(tmp_path, capsys):
    thinking = {"policy": "gumbel", "tau": 0.1, "top_k": 5, "min_p": None}
    settings = {"task": "gsm8k", "num_samples": 1, "thinking": thinking, "max_new_tokens": 64}
    path = tmp_path / "run" / "gsm8k.jsonl"
    with RecordFile(path, settings) as file:
        for number, (reason, ended) in enumerate((("length", None), ("stop", "marker")) * 2):
            fields = {"finish_reason": reason, "thinking_ended_by": ended, "answer": None}
            file.append(_record(str(number), 0, correct=False, sequence=number, **fields))
    assert main(["compare", str(path), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["truncated"], row["unclosed"]) == ("50.0%", "50.0%")
    assert row["pass@1"] == "0.000 [0.00, 0.72]"
    assert main(["compare", str(path)]) == 0
    assert "run, gsm8k: gumbel, top_k 5, tau 0.1, max_new_tokens 64" in capsys.readouterr().out


def test_nothing_is_unclosed_where_no_marker_ends_the_thinking(tmp_path, capsys):
    path = tmp_path / "run" / "gsm8k.jsonl"
    settings = {"task": "gsm8k", "num_samples": 1, "thinking": {"policy": "soft", "think_end": []}}
    with RecordFile(path, settings) as file:
        file.append(_record("0", 0, thinking_ended_by=None, finish_reason="length"))
    assert main(["compare", str(path), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["truncated"], row["unclosed"]) == ("100.0%", "-")
    assert _json(capsys, path)["scores"][0]["share_closed"] is None


def test_two_problems_do_not_tell_a_difference(tmp_path, capsys):
    runs = [
        _write(tmp_path / name / "math500.jsonl", {"a": [right], "b": [right]})
        for name, right in (("first", False), ("second", True))
    ]
    [pair] = _json(capsys, *runs)["paired_tests"]
    assert pair["comparison"]["difference"] == {"mean": 1.0, "low": -1.0, "high": 1.0}


def test_to_a_file(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE)
    target = tmp_path / "table.tex"
    arguments = ["compare", str(path), "--format", "latex", "--output", str(target)]
    assert main(arguments) == 0 and "tabular" in target.read_text()


@pytest.mark.parametrize("style", ["text", "markdown", "latex", "csv", "json"])
def test_a_table_is_written_over_and_nothing_else(tmp_path, capsys, style):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE)
    target = tmp_path / "table"
    arguments = ["compare", str(path), "--format", style, "--output", str(target)]
    assert main(arguments) == 0
    table = target.read_text()
    assert main(arguments) == 0 and target.read_text() == table
    for mine in ("\\begin{tabular}{ll} mine", '{"question": "7 + 4"}\n', "task: data.jsonl\n"):
        target.write_text(mine)
        assert main(arguments) == 2
        assert "is there and holds no table" in capsys.readouterr().err
        assert target.read_text() == mine


def test_an_unfinished_problem_is_left_out_and_said(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE | {"d": [True]})
    assert main(["compare", str(path)]) == 0
    captured = capsys.readouterr()
    assert "1 problems are not finished" in captured.err and "3 x 2" in captured.out


def test_a_damaged_end_is_left_out_and_said(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE)
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["compare", str(path)]) == 0
    assert "damaged bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{run}", "--k", "3"], "choose a smaller k or evaluate with more samples"),
        (["{run}", "--k", "0"], "must be at least 1"),
        (["{run}", "{run}"], "name them: NAME="),
        (["nowhere"], "no file of records"),
        (["{notes}"], "not a file of records"),
    ],
)
def test_bad_input(arguments, said, tmp_path, capsys):
    run = _write(tmp_path / "run" / "math500.jsonl", BASE)
    notes = tmp_path / "notes.jsonl"
    notes.write_text("hello\n")
    arguments = [a.replace("{run}", str(run)).replace("{notes}", str(notes)) for a in arguments]
    assert main(["compare", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_equals_sign_in_a_path_is_the_path_s(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(Path("runs/lr=1e-5/math500.jsonl"), BASE)
    places = (
        ("runs/lr=1e-5", "lr=1e-5"),
        ("mine=runs/lr=1e-5", "mine"),
        ("=runs/lr=1e-5", "lr=1e-5"),
    )
    for place, name in places:
        assert [item["run"] for item in _json(capsys, place)["scores"]] == [name]


def test_an_output_on_a_full_disk_is_named_and_leaves_nothing(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE)
    before = list(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        code = main(["compare", str(path), "--output", str(tmp_path / "table.md")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and f"softgrpo: {tmp_path / 'table.md'}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == before


def test_a_header_that_counts_no_samples_is_refused(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE)
    path.write_text(path.read_text().replace('"num_samples": 2', '"num_samples": {"a": 2}'))
    assert main(["compare", str(path)]) == 2
    assert "math500.jsonl: num_samples={'a': 2}: must be a whole number" in capsys.readouterr().err


def test_a_task_that_utf_8_cannot_hold_is_shown_escaped(tmp_path, capsys):
    path = _write(tmp_path / "run" / "math500.jsonl", BASE, task="a\ud800")
    assert main(["compare", str(path)]) == 0
    assert "a\\ud800" in capsys.readouterr().out
