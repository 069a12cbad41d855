"""A run resumed by another recipe: what is refused by name, and what holds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from softgrpo.checkpoints import complete_checkpoints
from softgrpo.cli.main import main
from softgrpo.runs.directory import RunDirectory
from softgrpo.training import SofTGRPOTrainer
from tests.helpers import write_recipe

pytestmark = pytest.mark.slow

FIELDS = {"max_steps": 2, "save_steps": 1, "eval_decodings": ["soft"], "num_samples_kept": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model) -> Path:
    """The recipe of a finished run of two steps, which lies beside it."""
    path = write_recipe(tmp_path_factory.mktemp("finished"), model, **FIELDS)
    assert main(["train", path]) == 0
    return Path(path)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished.parent / "run", tmp_path / "run")


@pytest.fixture
def resume(finished, run):
    """Resumes the copy with other fields."""

    def go(**fields: object) -> int:
        values = yaml.safe_load(finished.read_text()) | {"output_dir": str(run)}
        path = run.parent / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | fields))
        return main(["train", str(path), "--resume"])

    return go


def _stop_after_a_step(run: Path) -> None:
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "model")
    (run / "evaluation" / "summary.json").unlink()


def _all_files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


STOPPED = [
    ({"tau": 0.3}, ["tau 0.7 -> 0.3", "checkpoint-1 was made with"]),
    ({"seed": 9, "beta": 0.5}, ["seed 3 -> 9", "beta 0.001 -> 0.5"]),
    ({"num_train_problems": 12}, ["num_train_problems 16 -> 12"]),
    ({"per_device_train_batch_size": 8}, ["per_device_train_batch_size 4 -> 8"]),
    ({"rewards": ["exact"]}, ["eval_reward format -> exact"]),
    ({"prompt_template": "q {question}"}, ["prompt_template"]),
    (
        {"lr_scheduler_type": "greedy", "eval_strategy": "steps", "per_device_eval_batch_size": 4},
        ["lr_scheduler_type linear -> greedy"],
    ),
]
ENDED = [
    ({"learning_rate": 0.02}, ["learning_rate 0.01 -> 0.02", "ended at step 2", "max_steps"]),
    ({"eval_steps": 1}, ["eval_steps", "ended at step 2"]),
    ({"max_steps": 1}, ["has made 2 steps, more than the 1"]),
    ({"eval_samples": 3}, ["eval_samples 2 -> 3"]),
]


@pytest.mark.parametrize(
    ("stopped", "fields", "said"),
    [(True, *case) for case in STOPPED] + [(False, *case) for case in ENDED],
    ids=str,
)
def test_what_cannot_change_is_refused_by_name(
    stopped, fields, said, resume, run, monkeypatch, capsys
):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    if stopped:
        _stop_after_a_step(run)
    before = _all_files(run)
    assert resume(**fields) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in said), error
    assert error.count("\n") == 1
    assert _all_files(run) == before


def _unwanted(*_):
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize("by_link", [False, True], ids=["itself", "by a link"])
@pytest.mark.parametrize(
    ("field", "place"),
    [("model", "."), ("model", "model"), ("model", "checkpoint-1"), ("task", "problems.jsonl"),
     ("eval_source", "problems.jsonl")],
)  # fmt: skip
def test_a_run_is_not_written_over_what_it_is_made_from(
    finished, run, monkeypatch, capsys, field, place, by_link
):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    values = yaml.safe_load(finished.read_text())
    (run / "problems.jsonl").write_bytes(Path(values["task"]).read_bytes())
    if by_link:
        (run.parent / "link").symlink_to(run)
    named = str((run.parent / "link" if by_link else run) / place)
    changed = {"task_options": {field: named}} if field == "eval_source" else {field: named}
    path = run.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | {"output_dir": str(run)} | changed))
    before = _all_files(run)
    assert main(["train", str(path), "--overwrite"]) == 2
    assert f"{field}={named} lies in it" in capsys.readouterr().err
    assert _all_files(run) == before


def test_another_number_of_processes_is_refused_where_there_is_something_to_train(
    resume, run, capsys
):
    checkpoint = run / "checkpoint-2"
    shutil.copy(checkpoint / "rollouts_0.safetensors", checkpoint / "rollouts_1.safetensors")
    assert resume() == 0
    assert resume(max_steps=3) == 2
    assert "made by 2 processes and there are 1" in capsys.readouterr().err


def test_a_finished_run_keeps_what_it_cost(resume, run, capsys):
    before = _all_files(run)
    assert resume() == 0
    after = _all_files(run)
    evaluation = run / "evaluation"
    for path in (evaluation / "summary.json", evaluation / "summary.md"):
        assert after[path] == before[path]
    cost = json.loads(before[evaluation / "summary.json"])["cost"]
    assert f"wall time: {cost['wall time']}" in capsys.readouterr().out


def test_killed_within_the_list_of_a_checkpoint_it_is_saved_again_and_kept(resume, run):
    listed = run / "checkpoint-2" / "complete.json"
    listed.rename(listed.with_name("complete.json.tmp"))
    assert resume(save_total_limit=1) == 0
    complete, incomplete = complete_checkpoints(run)
    assert (complete, incomplete) == ([run / "checkpoint-2"], [])


def test_stopped_while_it_saves_the_model_the_former_one_stands(resume, run, monkeypatch, capsys):
    save = SofTGRPOTrainer.save_model

    def half(trainer, folder, _internal_call=False):
        save(trainer, folder, _internal_call)
        if "checkpoint" not in folder:
            os.truncate(Path(folder) / "model.safetensors", 500)
            raise KeyboardInterrupt

    before = _all_files(run / "model")
    monkeypatch.setattr(SofTGRPOTrainer, "save_model", half)
    assert resume(max_steps=3) == 130
    assert _all_files(run / "model") == before
    shutil.rmtree(run / "model")
    assert main(["generate", str(run), "a", "--max-new-tokens", "2"]) == 0  # the last checkpoint's
    monkeypatch.setattr(SofTGRPOTrainer, "save_model", save)
    assert resume(max_steps=3) == 0
    assert set(_all_files(run / "model")) == set(before) and not list(run.glob(".softgrpo.*.tmp"))


def test_a_link_in_the_model_s_place_is_not_written_through(resume, run):
    (run / "model").rename(run.parent / "base")
    (run / "model").symlink_to(run.parent / "base")
    before = _all_files(run.parent / "base")
    assert resume(max_steps=3) == 0
    assert _all_files(run.parent / "base") == before and not (run / "model").is_symlink()


def test_a_readme_of_the_user_s_stays_and_the_trainer_s_own_goes(resume, run):
    directory, readme = RunDirectory(run), run / "README.md"
    assert "TRL" in readme.read_text()
    readme.write_text("# What I found\n")
    assert resume(max_steps=3) == 0
    directory.clear()
    assert readme.read_text() == "# What I found\n" and list(run.glob("[!.]*")) == [readme]


def test_a_finished_run_can_be_evaluated_on_more(resume, run):
    assert resume(num_eval_problems=4, eval_decodings=["soft", "discrete"]) == 0
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["after"]["discrete"]["num_problems"] == 4


def test_a_finished_run_goes_on_for_longer(resume, run, capsys, caplog):
    assert resume(max_steps=4, save_steps=3) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates == pytest.approx([0.01, 0.005, 0.005, 0.0025])
    assert "the learning rate of step 3 is 0.005 and not 0" in caplog.text
    assert "resumed with another max_steps 2 -> 4" in capsys.readouterr().out
    folders = {path.name for path in run.glob("checkpoint-*")}
    assert folders == {"checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"}


def test_before_there_is_a_checkpoint_training_may_change_but_not_what_was_evaluated(
    resume, run, capsys
):
    for step in (1, 2):
        shutil.rmtree(run / f"checkpoint-{step}")
    assert resume(tau=0.3) == 2
    assert "the evaluation before training was made with" in capsys.readouterr().err
    assert resume(per_device_train_batch_size=8, max_steps=1) == 0
