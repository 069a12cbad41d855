"""Who may write into a run's folder, and what is resumed from it."""

import json

import pytest

from softgrpo.cli.callbacks import keep_until
from softgrpo.cli.run_directory import RunDirectory
from softgrpo.models import resolve_model


def _checkpoint(run, step):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "rollouts_0.safetensors", "config.json"):
        (folder / name).write_bytes(b"x")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_an_empty_or_new_folder_is_free(tmp_path):
    RunDirectory(tmp_path).check(resume=False, overwrite=False)
    RunDirectory(tmp_path / "new").check(resume=False, overwrite=False)


def test_another_run_is_refused_unless_told(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="output_dir.*--resume.*--overwrite"):
        RunDirectory(tmp_path).check(resume=False, overwrite=False)
    RunDirectory(tmp_path).check(resume=True, overwrite=False)
    RunDirectory(tmp_path).check(resume=False, overwrite=True)


def test_foreign_files_are_refused_even_with_overwrite_and_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="output_dir"):
        RunDirectory(tmp_path).check(resume=False, overwrite=True)
    _checkpoint(tmp_path, 3)
    RunDirectory(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_last_complete_checkpoint(tmp_path):
    for step in (2, 10, 12, 14):
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-12" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-14" / "trainer_state.json").write_text('{"log_hist')
    good, incomplete = RunDirectory(tmp_path).last_checkpoint()
    assert good == tmp_path / "checkpoint-10"
    assert [folder.name for folder in incomplete] == ["checkpoint-12", "checkpoint-14"]
    assert resolve_model(str(tmp_path)) == str(good)
    (tmp_path / "model").mkdir()
    assert resolve_model(str(tmp_path)) == str(tmp_path / "model")


def test_config_says_what_differs_from_the_one_before(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.write_config({"tau": 0.1}, "softgrpo train r.yaml", 3) == []
    assert directory.write_config({"tau": 0.2}, "softgrpo train r.yaml", 3) == ["tau 0.1 -> 0.2"]
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["seed"] == 3
    assert versions["trl"] == "1.16.0"


def test_too_little_space(tmp_path):
    RunDirectory(tmp_path / "new" / "run").require_space(1)
    with pytest.raises(ValueError, match="output_dir.*save_total_limit"):
        RunDirectory(tmp_path).require_space(10**18)


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1}, {"step": 2}, {"step": 2, "train_runtime": 1.0}, {"step": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "re')
    keep_until(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:2]
