"""`softgrpo eval` and `compare` on the laboratory's model: killed, badly asked, and well."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softgrpo.cli.main import main
from softgrpo.evaluation import read_records
from softgrpo.files import locked
from softgrpo.lab.chains import make_problems
from softgrpo.runs.outcome import table
from tests.helpers import ROOT, save_tiny_model

pytestmark = pytest.mark.slow

_KILLS = 20


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chains.jsonl"
    made = make_problems(30, 0, "heldout")
    rows = ({"id": f"c/{i}", "question": p.prompt, "answer": p.answer} for i, p in enumerate(made))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _command(problems: Path, output: Path, *more: str) -> list[str]:
    options = ["--plain", "--prompt", "{question}", "--think-end", "</t>", "--verifier", "exact"]
    sizes = ["--samples", "4", "--max-new-tokens", "16", "--batch-size", "16"]
    return [
        "eval",
        "lab",
        "--task",
        str(problems),
        *options,
        *sizes,
        "--output",
        str(output),
        *more,
    ]


def _only_file(output: Path) -> Path:
    (path,) = output.glob("*.jsonl")
    return path


def test_several_processes_of_a_launcher_are_refused(problems, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(_command(problems, tmp_path / "out")) == 2
    assert "WORLD_SIZE=2: an evaluation is made by one process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluation_and_its_comparison(problems, tmp_path, capsys):
    soft, discrete = tmp_path / "soft", tmp_path / "discrete"
    assert main(_command(problems, soft)) == 0
    printed = capsys.readouterr().out
    for said in ("pass@1", "pass@4", "maj@4", "30 x 4", "CPU-seconds", str(soft)):
        assert said in printed
    assert main(_command(problems, discrete, "--policy", "discrete", "--top-p", ".95")) == 0
    settings, records, _ = read_records(_only_file(soft))
    assert len(records) == 120 and settings["thinking"]["policy"] == "gumbel"
    assert 0.2 < sum(r.correct for r in records) / 120 < 0.6  # the base is made for .37
    assert all(r.num_soft_tokens > 0 for r in records if r.thinking_ended_by == "marker")
    assert not any(r.num_soft_tokens for r in read_records(_only_file(discrete))[1])

    for style in ("text", "markdown", "latex", "csv", "json"):
        capsys.readouterr()
        assert main(["compare", str(soft), f"plain={discrete}", "--format", style]) == 0
        table = capsys.readouterr().out
        assert "soft" in table and "plain" in table
    values = json.loads(table)
    (first, second), pairs = values["scores"], values["paired_tests"]
    difference = second["pass_at"]["1"]["mean"] - first["pass_at"]["1"]["mean"]
    if (pairs[0]["first"], pairs[0]["second"]) != (first["run"], second["run"]):
        difference = -difference
    assert pairs[0]["comparison"]["difference"]["mean"] == pytest.approx(difference)
    assert 0 < pairs[0]["comparison"]["p_value"] <= 1


def test_again_is_nothing_and_more_problems_are_added(problems, tmp_path, capsys):
    output = tmp_path / "r"
    assert main(_command(problems, output, "--limit", "8")) == 0
    before = _only_file(output).read_bytes()
    assert main(_command(problems, output, "--limit", "8")) == 0
    assert _only_file(output).read_bytes() == before
    capsys.readouterr()
    assert main(_command(problems, output, "--limit", "10")) == 0
    assert "going on after 32 samples" in capsys.readouterr().out
    assert _only_file(output).read_bytes().startswith(before)
    assert len(read_records(_only_file(output))[1]) == 40


def test_a_changed_setting_is_refused_unless_told_otherwise(problems, tmp_path, capsys):
    output = tmp_path / "r"
    assert main(_command(problems, output, "--limit", "2")) == 0
    before = _only_file(output).read_bytes()
    assert main(_command(problems, output, "--limit", "2", "--tau", "0.5")) == 2
    error = capsys.readouterr().err
    assert "thinking.tau was 0.1, is 0.5" in error and "--overwrite" in error
    assert _only_file(output).read_bytes() == before
    assert main(_command(problems, output, "--limit", "2", "--tau", "0.5", "--overwrite")) == 0
    assert read_records(_only_file(output))[0]["thinking"]["tau"] == 0.5


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("link", [False, True], ids=["itself", "by a link"])
def test_problems_are_never_written_over(problems, tmp_path, capsys, overwrite, link):
    folder = tmp_path / "problems"
    folder.mkdir()
    task, output = folder / "chains.jsonl", folder
    task.write_bytes(problems.read_bytes())
    (folder / "gsm8k.jsonl").write_bytes(problems.read_bytes())
    if link:
        output = tmp_path / "link"
        output.symlink_to(folder)
    data = ["eval", "lab", "--benchmarks", "gsm8k", "--data", str(folder), "--output", str(output)]
    for command in (_command(task, output, *overwrite), [*data, *overwrite]):
        assert main(command) == 2
        assert "not written by an evaluation" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"chains.jsonl", "gsm8k.jsonl"}
    assert task.read_bytes() == (folder / "gsm8k.jsonl").read_bytes() == problems.read_bytes()


@pytest.mark.parametrize("beside", [None, "empty.jsonl", "records.jsonl"])
@pytest.mark.parametrize("name", ["summary.md", "cost.json", "problems.jsonl"])
def test_files_of_somebody_else_s_are_left_alone(problems, tmp_path, capsys, name, beside):
    (tmp_path / name).write_text('{"mine": 1}\n')
    if beside:
        header = {"format": "softgrpo-records/1", "settings": {}}
        (tmp_path / beside).write_text("" if "empty" in beside else json.dumps(header) + "\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(_command(problems, tmp_path, "--limit", "2", "--overwrite")) == 2
    assert f"{name} there was not written by an evaluation" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_s_folder_is_no_place_for_other_tables(problems, tmp_path, capsys):
    """Its samples and its summary of before and after stay; the table is of what was evaluated."""
    inside = tmp_path / "evaluation"
    inside.mkdir()
    (inside / "summary.md").write_text(table({}, {}, "markdown"))
    assert main(_command(problems, inside, "--limit", "2")) == 2
    assert "summary.md there was not written by an evaluation" in capsys.readouterr().err
    assert [path.name for path in inside.iterdir()] == ["summary.md"]
    assert main(_command(problems, tmp_path, "--limit", "2")) == 0
    assert "2 x 4" in (tmp_path / "summary.md").read_text()


def test_a_folder_is_one_evaluation_s_at_a_time(problems, tmp_path, capsys):
    assert main(_command(problems, tmp_path, "--limit", "2")) == 0
    before = _only_file(tmp_path).read_bytes()
    with locked(tmp_path):
        for more in ([], ["--overwrite"], ["--overwrite", "--tau", "0.5"]):
            assert main(_command(problems, tmp_path, "--limit", "4", *more)) == 2
            assert "another process is writing" in capsys.readouterr().err
    assert _only_file(tmp_path).read_bytes() == before


def test_a_table_is_not_written_over_samples(problems, tmp_path, capsys):
    assert main(_command(problems, tmp_path, "--limit", "2")) == 0
    records = _only_file(tmp_path)
    before = records.read_bytes()
    assert main(["compare", str(tmp_path), "--output", str(records)]) == 2
    assert "is a file of records" in capsys.readouterr().err
    assert records.read_bytes() == before


def test_killed_at_twenty_moments_the_records_are_the_uninterrupted_runs(problems, tmp_path):
    """SIGKILL, as in the issue. Each start is a fork of one process, which spares its imports."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    report = tmp_path / "report.json"
    program = f"""
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from softgrpo.cli.main import main
import softgrpo.runs.evaluating
from softgrpo.rewards.reward import VERIFIERS

def start(argv):
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(os.devnull, "w")
        os._exit(main(argv))
    return pid

def count(folder):
    files = list(Path(folder).glob("*.jsonl"))
    return files[0].read_bytes().count(b"\\n") if files else 0

assert os.waitpid(start({_command(problems, whole, "--samples", "8")!r}), 0)[1] == 0
rng, counts = random.Random(0), []
for kill in range({_KILLS}):
    pid = start({_command(problems, killed, "--samples", "8")!r})
    until = min((counts or [0])[-1] + rng.randint(0, 16), 200)
    while count({str(killed)!r}) < until:  # as far as that, and then at any moment
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it has ended by itself"
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    counts.append(count({str(killed)!r}))
assert os.waitpid(start({_command(problems, killed, "--samples", "8")!r}), 0)[1] == 0
Path({str(report)!r}).write_text(json.dumps(counts))
"""
    subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, check=True, timeout=120
    )
    counts = json.loads(report.read_text())
    assert len(counts) == _KILLS and counts == sorted(counts)  # nothing that was there is lost
    assert len({c for c in counts if 1 < c < 241}) >= 10  # kills that met a file half done
    lines = [sorted(_only_file(folder).read_bytes().splitlines()) for folder in (whole, killed)]
    assert len(lines[0]) == 241 and lines[0] == lines[1]


@pytest.mark.parametrize(
    "more, said",
    [
        (["--benchmarks", "gsm9k"], "did you mean gsm8k"),
        (["--benchmarks", "gsm8k", "--data", "nowhere"], "gsm8k.jsonl: no such file"),
        (["--task", "nowhere.jsonl"], "no such file"),
        (["--task", "reasoning_gym:chain_summ"], "nearest: chain_sum"),
        ([], "nothing to evaluate on"),
        (["--task", "{problems}", "--samples", "0"], "--samples 0: must be at least 1"),
        (["--task", "{problems}", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--task", "{problems}", "--tau", "0"], "tau=0"),
        (["--task", "{problems}", "--subset", "random:99"], "N from 1 to 30"),
        (["--task", "{problems}", "--subset", "x/1"], "ids are like 'c/0'"),
        (["--task", "{problems}", "--verifier", "mathematics"], "there are exact, numeric"),
        (["--task", "{problems}", "--prompt", "no place"], "must contain {question}"),
        (["--task", "{problems}", "--think-end", "☃"], "cannot produce"),
        (
            ["--task", "{problems}", "--think-end", "</t>", "--plain", "--prompt", "{question}",
             "--max-new-tokens", "99999"],
            "is the most",
        ),
    ],
)  # fmt: skip
def test_bad_input(more, said, problems, tmp_path, capsys):
    more = [item.replace("{problems}", str(problems)) for item in more]
    assert main(["eval", "lab", "--output", str(tmp_path / "r"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_model_that_is_not_there(problems, tmp_path, capsys):
    assert main(["eval", str(tmp_path / "none"), "--task", str(problems)]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_model_without_a_chat_template(problems, tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    assert main(["eval", str(model), "--task", str(problems), "--think-end", "</t>"]) == 2
    assert "no chat template; --plain puts the prompts as plain text" in capsys.readouterr().err


def test_presets_are_the_published_settings(problems, tmp_path, capsys):
    wanted = {
        "paper-softgrpo": ("gumbel", 1.0, 0.95, 5, 0.1),
        "paper-discrete": ("discrete", 0.6, 0.95, 30, 0.1),
        "paper-soft": ("gumbel", 0.6, 0.95, 30, 0.5),
    }
    model = save_tiny_model(tmp_path / "model")
    for preset, (policy, temperature, top_p, top_k, tau) in wanted.items():
        output = tmp_path / preset
        arguments = [
            "eval",
            str(model),
            "--task",
            str(problems),
            "--plain",
            "--prompt",
            "{question}",
        ]
        arguments += ["--think-end", "</t>", "--preset", preset, "--output", str(output)]
        assert main([*arguments, "--limit", "1", "--max-new-tokens", "8"]) == 0
        settings = read_records(_only_file(output))[0]
        thinking = settings["thinking"]
        assert settings["num_samples"] == 32 and settings["max_new_tokens"] == 8
        found = [thinking[name] for name in ("policy", "temperature", "top_p", "top_k")]
        assert found == [policy, temperature, top_p, top_k]
        assert policy == "discrete" or thinking["tau"] == tau
        assert thinking["answer_temperature"] == temperature and thinking["answer_top_k"] == top_k


def test_ctrl_c_says_how_to_go_on(problems, tmp_path):
    command = [sys.executable, "-m", "softgrpo.cli.main", *_command(problems, tmp_path / "r")]
    command[command.index("4")] = "400"
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "r").glob("*.jsonl")):
        time.sleep(0.2)
    time.sleep(random.Random(0).random())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with: softgrpo eval lab" in output


def test_a_run_is_evaluated_on_its_own_problems(tmp_path, capsys):
    """Its task, prompt, verifier and way of thinking come from its config."""
    model = save_tiny_model(tmp_path / "m")
    rows = "".join(json.dumps({"question": f"a {x}", "answer": "1"}) + "\n" for x in "bcdefghijk")
    (tmp_path / "data.jsonl").write_text(rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""{{model: {model}, task: {tmp_path}/data.jsonl, chat: false, num_eval_problems: 1,
        eval_samples: 2, output_dir: {tmp_path}/run, use_cpu: true, bf16: false, max_steps: 1,
        think_end: [</t>], max_think_tokens: 5, max_completion_length: 8, num_generations: 4,
        per_device_train_batch_size: 4, tau: 0.7, num_train_problems: 4, save_steps: 1}}"""
    )
    assert main(["train", str(recipe)]) == 0
    output = tmp_path / "r"
    assert main(["eval", f"{tmp_path}/run", "--output", str(output), "--samples", "3"]) == 0
    settings, records, _ = read_records(_only_file(output))
    assert settings["verifier"] == "numeric" and settings["thinking"]["tau"] == 0.7
    assert settings["max_new_tokens"] == 8 and len(records) == 3
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run"), f"again={output}"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("before-soft", "after-discrete", "again"))
