"""The command line from a recipe to a table, on a tiny random Llama made here.

Few tests start a process, which takes ten seconds of imports: those that kill it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softgrpo.cli.main import main
from softgrpo.files import locked
from softgrpo.runs import directory as run_directory
from softgrpo.thinking import SoftTrace
from softgrpo.training import SofTGRPOTrainer
from tests.helpers import ROOT

pytestmark = pytest.mark.slow


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_whole_run(recipe, tmp_path, capsys):
    assert main(["train", recipe(report_to="tensorboard", lora=None)]) == 0
    run, output = tmp_path / "run", capsys.readouterr().out
    for said in ("pass@1 before", "discrete", "[a, b]: 95%", "wall time", "peak memory", str(run)):
        assert said in output
    (told,) = re.findall(r"estimate: ([\d.]+) of [\d.]+ GiB at most, in the (.+) \(", output)
    assert output.count("estimate: ") == 2 and output.index("estimate: ") < output.index("step 1")
    assert "{'" not in output  # the trainer's own dict prints are off

    assert yaml.safe_load((run / "config.yaml").read_text())["tau"] == 0.7
    assert json.loads((run / "versions.json").read_text())["command"].startswith("softgrpo train")
    logs = [row for row in _lines(run / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in logs] == [1, 2, 3, 4]
    assert all("kl" in row and "soft/effective_support" in row for row in logs)

    names = {path.name for path in (run / "evaluation").iterdir()}
    records = {f"{w}-{d}.jsonl" for w in ("before", "after") for d in ("soft", "discrete")}
    assert names == records | {"summary.json", "summary.md"}
    cost, *rows = _lines(run / "evaluation" / "after-discrete.jsonl")
    assert len(rows) == 6 and not any(row["num_soft_tokens"] for row in rows)
    assert any(row["num_soft_tokens"] for row in _lines(run / "evaluation/after-soft.jsonl")[1:])
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["before"]["soft"]["num_problems"] == 3
    assert summary["cost"]["estimated peak memory"] == "{} GiB, {}".format(*told)
    assert summary["cost"]["peak memory"].endswith(" GiB") and summary["cost"]["estimated time"]

    assert len(_lines(run / "samples" / "step-4.jsonl")) == 2
    assert len(SoftTrace.load(run / "samples" / "step-4.safetensors")) == 2
    assert (run / "curves.png").stat().st_size > 10_000
    assert list((run / "runs").rglob("events*"))  # TensorBoard
    for folder in ("model", "checkpoint-2", "checkpoint-4"):
        AutoModelForCausalLM.from_pretrained(run / folder)
        AutoTokenizer.from_pretrained(run / folder)

    # The run's own prompt and way of thinking serve to generate from it.
    assert main(["generate", str(run), "a b", "--max-new-tokens", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking"]["max_think_tokens"] == 5

    # A finished run is not trained again, and what it evaluated is read.
    before = (run / "model" / "model.safetensors").read_bytes()
    assert main(["train", recipe(report_to="tensorboard", lora=None), "--resume"]) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert [row["step"] for row in _lines(run / "metrics.jsonl") if "reward" in row] == [1, 2, 3, 4]
    assert "evaluating" not in capsys.readouterr().out


def test_another_run_is_refused_and_left_alone(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("tau: 0.5\n")
    assert main(["train", recipe()]) == 2
    assert "output_dir" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "tau: 0.5\n"


def test_lora(recipe, tmp_path):
    fields = {"lora": {"r": 2, "target_modules": ["q_proj"]}, "eval_decodings": ["soft"]}
    assert main(["train", recipe(**fields)]) == 0
    assert (tmp_path / "run" / "model" / "adapter_config.json").exists()
    assert main(["generate", str(tmp_path / "run"), "a", "--max-new-tokens", "4"]) == 0


BAD_FIELDS = [
    ({"tua": 0.1}, ["'tua'", "did you mean tau?"]),
    ({"tau": 0}, ["tau"]),
    ({"top_k": 0}, ["top_k"]),
    ({"top_k": 1000}, ["top_k", "vocabulary"]),
    ({"answer_top_k": 1000}, ["answer_top_k", "vocabulary"]),
    ({"top_p": 0}, ["top_p", "(0, 1]"]),
    ({"top_p": 1.5}, ["top_p", "(0, 1]"]),
    ({"task": "{tmp}/none.jsonl"}, ["none.jsonl", "no such file"]),
    ({"task": "{tmp}/empty.jsonl"}, ["empty", "no data"]),
    ({"task": "{tmp}/columns.jsonl"}, ["columns.jsonl:1", "no column 'answer'"]),
    ({"max_steps": 0}, ["max_steps=0"]),
    ({"num_train_problems": 1, "gradient_accumulation_steps": 2},
     ["1 training problems", "2 prompts", "gradient_accumulation_steps"]),
    ({"num_eval_problems": 9999}, ["num_eval_problems=9999: "]),
    ({"num_train_problems": 9999}, ["num_train_problems=9999: "]),
    ({"max_completion_length": 127}, ["max_completion_length", "context is 128"]),
    ({"chat": True}, ["chat", "template"]),
    ({"think_end": ["WORD"]}, ["think_end", "WORD"]),
    ({"model": "{tmp}/padless"}, ["padless", "pad"]),
    ({"model": "{tmp}/nowhere"}, ["nowhere", "no such folder"]),
    ({"rewards": ["praise"]}, ["praise"]),
    ({"lora": {"rank": 2}}, ["lora", "rank"]),
    ({"use_vllm": True}, ["use_vllm"]),
    ({"save_only_model": True}, ["save_only_model"]),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), BAD_FIELDS, ids=lambda x: str(x)[:40])
def test_bad_input(recipe, tmp_path, model, monkeypatch, capsys, fields, said):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "columns.jsonl").write_text('{"question": "a"}\n')
    padless = tmp_path / "padless"
    padless.mkdir()
    for path in model.iterdir():
        (padless / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((padless / "tokenizer_config.json").read_text())
    tokenizer = {k: v for k, v in tokenizer.items() if k not in ("pad_token", "eos_token")}
    (padless / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    fields = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    assert main(["train", recipe(**fields)]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in said), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def _unwanted(*_):
    raise AssertionError("a model was loaded")


def test_no_disk_space(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(run_directory, "shutil", full)
    assert main(["train", recipe()]) == 2
    assert "save_total_limit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, ""), OSError(errno.EDQUOT, ""), RuntimeError("unexpected pos 9 vs 5")],
    ids=str,
)
def test_the_disk_fills_up_while_saving(recipe, monkeypatch, capsys, error):
    """torch does not say that it is for the disk that it cannot write."""
    save = SofTGRPOTrainer._save_checkpoint

    def fail(trainer, *arguments):
        if trainer.state.global_step > 2:
            none = SimpleNamespace(free=0)
            monkeypatch.setattr("shutil.disk_usage", lambda path: none)
            raise error
        save(trainer, *arguments)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SofTGRPOTrainer, "_save_checkpoint", fail)
    monkeypatch.setattr("softgrpo.runs.training.draw_curves", full)
    assert main(["train", recipe(num_eval_problems=0)]) == 1
    said = capsys.readouterr().err
    assert "no space left" in said and "checkpoint-2" in said and "--resume" in said


def test_a_loss_that_is_not_finite(recipe, tmp_path, monkeypatch, capsys):
    compute = SofTGRPOTrainer._compute_loss

    def poison(trainer, *arguments):
        return compute(trainer, *arguments) * (float("nan") if trainer._step == 3 else 1.0)

    monkeypatch.setattr(SofTGRPOTrainer, "_compute_loss", poison)
    assert main(["train", recipe(num_eval_problems=0)]) == 1
    error = capsys.readouterr().err
    assert "step 4" in error and "checkpoint-2" in error
    assert not (tmp_path / "run" / "checkpoint-4").exists()


def test_logits_that_are_not_finite(recipe, tmp_path, model, monkeypatch, capsys):
    rollout = SofTGRPOTrainer._generate_single_turn

    def poison(trainer, *arguments, **options):
        if trainer.state.global_step == 3:
            with torch.no_grad():
                trainer.model.get_input_embeddings().weight.fill_(float("nan"))
        return rollout(trainer, *arguments, **options)

    monkeypatch.setattr(SofTGRPOTrainer, "_generate_single_turn", poison)
    assert main(["train", recipe(num_eval_problems=0)]) == 1
    error = capsys.readouterr().err
    assert "training step 4" in error and "checkpoint-2" in error


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_run_s_folder_is_one_process_s_at_a_time(recipe, tmp_path, capsys, option):
    path = recipe(max_steps=2, num_eval_problems=0)
    assert main(["train", path]) == 0
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with locked(run):
        assert main(["train", path, option]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


# Processes that are stopped -----------------------------------------------------------------------
def _start(recipe: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "softgrpo.cli.main", "train", recipe, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _wait_for_step(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"loss"') >= step:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


def test_interrupted_then_killed_then_resumed_is_the_uninterrupted_run(recipe, tmp_path):
    # Two optimizer steps a rollout: checkpoints fall between them too. 64 steps are an epoch.
    fields = {
        "max_steps": 60, "save_steps": 5, "save_total_limit": 3, "steps_per_generation": 2,
        "num_train_problems": 64, "num_eval_problems": 0, "sample_steps": 20,
    }  # fmt: skip
    whole = tmp_path / "whole"
    assert main(["train", recipe(**fields), "--output_dir", str(whole)]) == 0

    run, path = tmp_path / "run", recipe(**fields)
    process = _start(path)
    _wait_for_step(process, run / "metrics.jsonl", 7)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert f"softgrpo train {path} --resume" in output
    interrupted = json.loads(
        max(run.glob("checkpoint-*"), key=_number).joinpath("trainer_state.json").read_text()
    )["global_step"]
    assert 7 <= interrupted < 60
    assert not (run / "model").exists()

    process = _start(path, "--resume")
    _wait_for_step(process, run / "metrics.jsonl", interrupted + 8)
    process.kill()
    assert f"checkpoint-{interrupted}" in process.communicate()[0]
    assert not (run / "model").exists()

    assert main(["train", path, "--resume"]) == 0
    expected = load_file(whole / "model" / "model.safetensors")
    found = load_file(run / "model" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    steps = [row["step"] for row in _lines(run / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 61))


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
