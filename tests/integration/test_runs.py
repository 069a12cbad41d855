"""Python does what the command line does, and gives objects where that prints."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from softgrpo import runs
from softgrpo.cli.main import main
from softgrpo.evaluation import read_records
from softgrpo.lab.chains import make_problems
from softgrpo.rollout import TransformersEngine
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

LAB = ROOT / "recipes" / "lab.yaml"
SMALL = {
    "max_steps": 2, "num_train_problems": 16, "num_eval_problems": 3, "eval_samples": 2,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
    "steps_per_generation": 1, "save_steps": 1, "num_samples_kept": 1, "sample_steps": 2,
}  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Heard(runs.Display):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def bar(self, *_):
        return None


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def _same(first: Path, second: Path) -> bool:
    a, b = _weights(first), _weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_laboratory_s_recipe(tmp_path):
    run = runs.train(LAB, output_dir=tmp_path / "run", **SMALL)
    assert not run.interrupted and run.step == 2
    assert set(run.before) == set(run.after) == {"soft", "discrete"}
    summary = json.loads((run.records / "summary.json").read_text())
    for name, results in run.after.items():
        assert results.pass_at_1 == summary["after"][name]["pass_at_1"]
        verdicts = [r.correct for r in read_records(run.records / f"after-{name}.jsonl")[1]]
        assert results.pass_at_1 == pytest.approx(sum(verdicts) / 6)
    assert summary["cost"] == run.cost and run.cost["training tokens"] > 0
    assert run.curves.stat().st_size > 10_000 and (run.model / "model.safetensors").exists()
    assert json.loads(run.metrics.open().readline())["step"] == 2


def test_a_path_a_mapping_and_the_command_line_are_one_run(recipe, tmp_path, capsys):
    path = recipe(num_samples_kept=0, max_steps=2)
    fields = {"tau": 0.5, "think_end": ("</t>", "#"), "eval_decodings": ["soft"]}
    options = ["--tau", "0.5", "--think_end", "</t>", "#", "--eval_decodings", "soft"]
    folders = [tmp_path / name for name in ("path", "mapping", "command")]
    runs.train(path, output_dir=folders[0], **fields)
    said = capsys.readouterr().out
    values = yaml.safe_load(Path(path).read_text()) | fields | {"output_dir": folders[1]}
    runs.train(values, display=runs.Silent())
    assert capsys.readouterr().out == ""
    assert main(["train", path, "--output_dir", str(folders[2]), *options]) == 0
    printed = capsys.readouterr().out
    memory, time, evaluated = said.splitlines()[:3]
    assert memory.startswith("estimate: ") and time.startswith("estimate: ")
    assert evaluated.startswith("evaluating before training, soft: 6 samples in")
    assert [line.partition(" ")[0] for line in said.splitlines()] == [
        line.partition(" ")[0] for line in printed.splitlines()
    ]
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    for config in configs:
        config.pop("output_dir")
    assert configs[0] == configs[1] == configs[2] and configs[0]["think_end"] == ["</t>", "#"]
    assert _same(folders[0], folders[1]) and _same(folders[0], folders[2])
    command = json.loads((folders[0] / "versions.json").read_text())["command"]
    assert command.startswith(f"softgrpo.runs.train('{path}', output_dir=") and "tau=0.5" in command


def test_an_interrupted_run_says_so_and_goes_on(recipe, tmp_path):
    class Stops(Heard):
        def say(self, line):
            super().say(line)
            if line.startswith("step 2/"):
                os.kill(os.getpid(), signal.SIGINT)

    path, display = recipe(max_steps=6), Stops()
    whole = runs.train(path, output_dir=str(tmp_path / "whole"), display=runs.Silent())
    handlers = [signal.getsignal(number) for number in SIGNALS]
    run = runs.train(path, display=display)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert run.interrupted and 2 <= run.step < 6 and run.before and not run.after
    assert not run.model.exists()
    go_on = f"go on with: softgrpo.runs.train('{path}', resume=True)"
    assert f"saved after step {run.step}; {go_on}" in display.lines
    with pytest.raises(ValueError, match="holds a run already"):
        runs.train(path)
    heard = Heard()
    run = runs.train(path, resume=True, display=heard)
    assert any(line.startswith("resuming from") for line in heard.lines)
    assert run.step == 6 and not run.interrupted and _same(run.folder, whole.folder)
    assert run.after["soft"].by_problem == whole.after["soft"].by_problem


def test_ctrl_c_out_of_training_is_told_by_the_outcome(recipe):
    class Stops(Heard):
        def say(self, line):
            super().say(line)
            if line.startswith("evaluating before"):
                raise KeyboardInterrupt

    display = Stops()
    run = runs.train(recipe(), display=display)
    assert run.interrupted and run.step == 0
    assert display.lines[-1].startswith("stopped; there is no checkpoint; go on with: ")


def test_in_a_thread_that_is_not_the_main_one(recipe, tmp_path):
    """Signals are the main thread's: none is touched, and the run is the same."""
    path, seen, ended = recipe(max_steps=2), [], []
    handlers = [signal.getsignal(number) for number in SIGNALS]

    class Watches(Heard):
        def say(self, line):
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=lambda: ended.append(runs.train(path, display=Watches())))
    thread.start()
    thread.join()
    assert len(seen) > 3 and all(found == handlers for found in seen)
    runs.train(path, output_dir=tmp_path / "main", display=runs.Silent())
    assert _same(ended[0].folder, tmp_path / "main")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rat": 1}, "fields: unknown field 'learning_rat'; did you mean learning_rate?"),
        pytest.param({"tau": object()}, "fields: tau=<object object", id="an object"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be a finite number"),
        ({"num_generations": None}, "num_generations"),
        ({"max_steps": [3]}, "max_steps"),
        ({"rewards": [len]}, "fields: rewards="),
        ({"rewards": ["praise"]}, "reward 'praise': unknown"),
        ({"lora": {"rank": 2}}, "lora={'rank': 2}"),
        ({"policy": "loud"}, "policy"),
        ({"resume": True, "overwrite": True}, "resume=True, overwrite=True: choose one"),
    ],
    ids=str,
)
def test_bad_fields(recipe, tmp_path, monkeypatch, fields, said):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    with pytest.raises(ValueError) as error:
        runs.train(recipe(), **fields)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def _unwanted(*_):
    raise AssertionError("a model was loaded")


def test_a_mapping_has_no_name_to_make_a_folder_of():
    with pytest.raises(ValueError, match="output_dir: must be set"):
        runs.train({"model": "lab", "task": "lab:chains"})
    with pytest.raises(ValueError, match="recipe: unknown field 'modle'; did you mean model?"):
        runs.train({"modle": "lab", "output_dir": "x"})


# Evaluation ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chains.jsonl"
    made = make_problems(6, 0, "heldout")
    rows = ({"id": f"c/{i}", "question": p.prompt, "answer": p.answer} for i, p in enumerate(made))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OPTIONS = {
    "plain": True, "prompt": "{question}", "think_end": ["</t>"], "verifier": "exact",
    "samples": 2, "max_new_tokens": 16, "batch_size": 4,
}  # fmt: skip


def test_an_evaluation_is_the_command_line_s(problems, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    found = runs.evaluate("lab", task=problems, output=first, tau=0.3, **OPTIONS)
    said = capsys.readouterr().out
    command = ["eval", "lab", "--task", str(problems), "--plain", "--prompt", "{question}"]
    command += ["--think-end", "</t>", "--verifier", "exact", "--samples", "2", "--tau", "0.3"]
    command += ["--max-new-tokens", "16", "--batch-size", "4", "--output", str(second)]
    assert main(command) == 0
    a, b = ((folder / "chains.jsonl").read_bytes().splitlines() for folder in (first, second))
    assert sorted(a) == sorted(b)
    assert found.output == first and not found.interrupted
    records = read_records(first / "chains.jsonl")[1]
    assert found.results["chains"].pass_at_1 == sum(r.correct for r in records) / 12
    table = runs.compare([first])
    assert table in said and runs.compare([second]) in capsys.readouterr().out
    # Again is nothing, and says nothing where it is told so.
    again = runs.evaluate(
        "lab", task=problems, output=first, tau=0.3, display=runs.Silent(), **OPTIONS
    )
    assert again.results["chains"].by_problem == found.results["chains"].by_problem
    assert capsys.readouterr().out == ""


def test_an_interrupted_evaluation_says_so_and_goes_on(problems, tmp_path, monkeypatch):
    whole = runs.evaluate("lab", task=problems, output=tmp_path / "whole", **OPTIONS)
    generate, calls = TransformersEngine.generate, []

    def stop(engine, *arguments, **options):
        calls.append(engine)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(engine, *arguments, **options)

    monkeypatch.setattr(TransformersEngine, "generate", stop)
    options = OPTIONS | {"batch_size": 1, "output": tmp_path / "r"}
    stopped = runs.evaluate("lab", task=str(problems), **options)
    assert stopped.interrupted and not stopped.results
    assert 0 < len(read_records(tmp_path / "r" / "chains.jsonl")[1]) < 12
    monkeypatch.setattr(TransformersEngine, "generate", generate)
    found = runs.evaluate("lab", task=str(problems), **options)
    texts = [{r.key: r.text for r in result.results["chains"].records} for result in (whole, found)]
    assert texts[0] == texts[1]


def test_benchmarks_are_a_list_of_names(problems, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    row = {"question": "What is 1 + 1?", "answer": "#### 2"}
    (folder / "gsm8k.jsonl").write_text(json.dumps(row) + "\n")
    options = OPTIONS | {"max_new_tokens": 4, "prompt": "7 + {question}"}
    found = runs.evaluate(
        "lab", benchmarks=["gsm8k"], data=folder, output=tmp_path / "r", **options
    )
    assert list(found.results) == ["gsm8k"] and (tmp_path / "r" / "gsm8k.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample": 2}, "evaluate: unknown field 'sample'; did you mean samples?"),
        ({"taw": 2}, "did you mean tau?"),
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"samples": "8"}, "samples='8': must be a whole number"),
        ({"seed": -1}, "seed=-1: must be in"),
        ({"benchmarks": "gsm8k"}, "benchmarks='gsm8k': must be a list"),
        ({"benchmarks": ["gsm9k"]}, "did you mean gsm8k"),
        ({"preset": "paper"}, "preset='paper': must be one of paper-softgrpo"),
        ({"engine": "fast"}, "engine='fast': must be one of transformers, vllm"),
        ({"subset": "random:99"}, "subset='random:99': random:N takes N from 1 to 6"),
        ({"max_new_tokens": 9999}, "max_new_tokens=9999: a prompt of chains has"),
        ({"tau": 0}, "tau=0"),
        ({"task_options": [1]}, "task_options=[1]: must be"),
    ],
    ids=str,
)
def test_bad_options(problems, tmp_path, options, said):
    with pytest.raises(ValueError) as error:
        runs.evaluate("lab", **{"task": problems, "output": tmp_path / "r"} | OPTIONS | options)
    assert said in str(error.value)
    assert not (tmp_path / "r").exists()


def test_a_table_of_what_is_no_table_s(tmp_path):
    with pytest.raises(ValueError, match="k=0: must be at least 1|no file of records"):
        runs.compare([tmp_path], k=[0])
    with pytest.raises(ValueError, match="style='loud': must be one of text, markdown"):
        runs.compare([tmp_path], style="loud")
