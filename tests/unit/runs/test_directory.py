"""Who may write into a run's folder, and what is resumed from it."""

import json
import os

import pytest

from softgrpo.checkpoints import seal
from softgrpo.models import resolve_model
from softgrpo.runs.callbacks import keep_until
from softgrpo.runs.directory import RunDirectory


def _checkpoint(run, step):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "rollouts_0.safetensors", "config.json", "optimizer.pt"):
        (folder / name).write_bytes(b"x")
    (folder / "trainer_state.json").write_text("{}")
    seal(folder)
    return folder


def _run(folder, **config):
    directory = RunDirectory(folder)
    directory.write_config(config, "softgrpo train r.yaml", 3)
    return directory


def test_an_empty_or_new_folder_is_free(tmp_path):
    RunDirectory(tmp_path).check(resume=False, overwrite=False)
    RunDirectory(tmp_path / "new").check(resume=False, overwrite=False)


def test_another_run_is_refused_unless_told(tmp_path):
    directory = _run(tmp_path)
    with pytest.raises(ValueError, match="output_dir.*--resume.*--overwrite"):
        directory.check(resume=False, overwrite=False)
    directory.check(resume=True, overwrite=False)
    directory.check(resume=False, overwrite=True)


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "years of work"},
        {"config.yaml": "{}"},
        {"config.yaml": "model: x\noutput_dir: y\n", "model/weights.bin": "w"},
        {"versions.json": '{"python": "3.11"}', "config.yaml": "a: 1"},
        {"versions.json": "not JSON", "metrics.jsonl": "mine"},
    ],
    ids=lambda files: " ".join(files),
)
def test_what_is_no_run_is_refused_whatever_its_files_are_called(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    for options in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(ValueError, match="output_dir.*no run's"):
            RunDirectory(tmp_path).check(**options)


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    directory = _run(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: is not a regular file"):
        directory.check(resume=True, overwrite=False)
    os.mkfifo(_checkpoint(tmp_path, 3) / "pipe")
    (tmp_path / "checkpoint-3" / "complete.json").unlink()
    os.mkfifo(tmp_path / "checkpoint-3" / "complete.json")
    assert directory.last_checkpoint()[0] is None


def test_only_what_a_run_wrote_is_deleted(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    directory = _run(run)
    elsewhere.mkdir()
    (elsewhere / "weights.bin").write_text("w")
    ours = ["metrics.jsonl", "curves.png", "evaluation/before-soft.jsonl",
            "evaluation/after-discrete.jsonl.damaged", "evaluation/summary.json",
            "samples/step-10.jsonl", "model/config.json", ".softgrpo.7.versions.json.tmp",
            "evaluation/.softgrpo.before-soft.jsonl.1.tmp",
            "evaluation/.softgrpo.before-soft.jsonl.1.tmp.damaged",
            "evaluation/.softgrpo.7.summary.json.tmp", "completions/completions_00002.parquet",
            "runs/Nov26_host/events.out.tfevents.1"]  # fmt: skip
    theirs = [
        "thesis.tex",
        "README.md",
        "evaluation/notes.md",
        "checkpoint-best/model.safetensors",
        "a.jsonl",
        "runs/another/versions.json",
        "runs/another/model/model.safetensors",
    ]
    for name in ours + theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    _checkpoint(run, 3)
    (run / "checkpoint-7").symlink_to(elsewhere)
    (run / "runs" / "linked").symlink_to(elsewhere)
    directory.clear()
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) == sorted(theirs)
    assert not (run / "checkpoint-7").is_symlink() and not (run / "samples").exists()
    assert (elsewhere / "weights.bin").read_text() == "w"


@pytest.mark.parametrize(
    "name", ["evaluation", "samples", "model", "runs", "checkpoint-3", "metrics.jsonl"]
)
def test_what_a_link_leads_to_is_not_the_run_s(tmp_path, name):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    directory = _run(run)
    elsewhere.mkdir()
    files = ["before-soft.jsonl", "step-1.jsonl", "summary.json", "config.json"]
    for file in files:
        (elsewhere / file).write_text("x")
    (run / name).symlink_to(elsewhere / "config.json" if "." in name else elsewhere)
    directory.clear()
    assert list(run.iterdir()) == []
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted(files)


def test_the_last_complete_checkpoint(tmp_path):
    for step in (2, 10, 12, 14):
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-12" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-14" / "trainer_state.json").write_text('{"log_hist')
    _checkpoint(tmp_path, 16).joinpath("complete.json").unlink()
    _checkpoint(tmp_path, 18).joinpath("complete.json").write_text('{"files"')
    _checkpoint(tmp_path, 20).joinpath("optimizer.pt").unlink()
    _checkpoint(tmp_path, 22).joinpath("optimizer.pt").write_bytes(b"")
    good, incomplete = RunDirectory(tmp_path).last_checkpoint()
    assert good == tmp_path / "checkpoint-10"
    assert [folder.name for folder in incomplete] == [
        f"checkpoint-{step}" for step in (12, 14, 16, 18, 20, 22)
    ]
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
    with path.open("ab") as file:
        file.write(b'\n[1]\n3\n{"step": "2"}\n{}\n{"step": 2, "loss": "a"}\n\xff\n' + b"[" * 99_999)
    keep_until(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:2]
