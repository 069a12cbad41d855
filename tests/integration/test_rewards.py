"""Rewards that keep their promise and rewards that break it, in the library and the command line.

What each value means is tests/unit/rewards/test_checked.py's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from softgrpo.cli.main import main
from softgrpo.rewards import RewardError
from tests.helpers import letter_reward, make_trainer, parameters, train_config


# The library --------------------------------------------------------------------------------------
def in_numpy(completions, **_):
    return np.array(letter_reward(completions))


def in_tensors(completions, **_):
    return [torch.tensor(value) for value in letter_reward(completions)]


async def in_the_background(completions, **_):
    return letter_reward(completions)


def that_clears_its_input(completions, **columns):
    values = letter_reward(completions)
    completions.clear()
    for column in columns.values():
        if isinstance(column, list):
            column.clear()
    return values


@pytest.mark.parametrize(
    "reward",
    [in_numpy, in_tensors, in_the_background, that_clears_its_input],
    ids=lambda reward: reward.__name__,
)
def test_it_trains_as_by_plain_numbers(reward, tmp_path):
    losses = []
    for rewards in ([letter_reward, letter_reward], [reward, letter_reward]):
        trainer = make_trainer("tied", train_config(tmp_path), reward=rewards)
        trainer.train()
        losses.append(trainer.state.log_history[0])
    assert losses[0]["grad_norm"] == losses[1]["grad_norm"] > 0
    assert losses[0]["reward"] == losses[1]["reward"]
    assert f"rewards/{reward.__name__}/mean" in losses[1]


def _once(value):
    """A reward that is ``value`` for one completion of each call."""

    def odd(completions, **_):
        if isinstance(value, BaseException):
            raise value
        return [*letter_reward(completions[1:]), value]

    return odd


@pytest.mark.parametrize(
    "value",
    [float("inf"), 1e308, float("nan"), "1", ValueError("no number"), SystemExit(0)],
    ids=repr,
)
def test_one_that_is_no_finite_number_stops_before_the_weights_move(value, tmp_path):
    trainer = make_trainer("tied", train_config(tmp_path), reward=_once(value))
    before = parameters(trainer.model)
    with pytest.raises(RewardError, match="reward 'odd'"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in parameters(trainer.model).items())


@pytest.mark.parametrize("value", [1.0, ValueError("too many")], ids=repr)
def test_the_wrong_number_of_values_and_asynchronous_errors_stop_too(value, tmp_path):
    async def odd(completions, **_):
        if isinstance(value, Exception):
            raise value
        return [1.0]

    with pytest.raises(RewardError, match="reward 'odd': (returned 1 values for 8|ValueError)"):
        make_trainer("tied", train_config(tmp_path), reward=odd).train()


def test_completions_that_nobody_judges_teach_nothing(tmp_path):
    def silent(completions, **_):
        return [None for _ in completions]

    trainer = make_trainer("tied", train_config(tmp_path, max_steps=2), reward=silent)
    before = parameters(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["reward"] is None
    assert all(torch.equal(p, before[name]) for name, p in parameters(trainer.model).items())


# The command line ---------------------------------------------------------------------------------
REWARDS = """
import numpy as np
calls = []

def by_level(prompts, completions, level, **columns):
    calls.append((prompts, completions, level, sorted(columns)))
    return np.array([float(l) * len(c) for l, c in zip(level, completions)])

def breaks(completions, **columns):
    calls.append(None)
    if len(calls) > {after}:
        {breaks}
    return [len(c) / 10 for c in completions]

def for_text(completions, **columns):
    return [len(completion.split()) for completion in completions]

def wants_what_is_not_there(completions, difficulty, **columns):
    return [1.0 for _ in completions]

async def waits(completions, **columns):
    return [len(c) / 10 for c in completions]
"""


@pytest.fixture
def near(tmp_path, monkeypatch):
    """Writes near.py into the current directory: what `breaks` breaks by, and after what calls."""

    def write(breaks: str, after: int = 3) -> None:
        (tmp_path / "near.py").write_text(REWARDS.format(after=after, breaks=breaks or "pass"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "near", raising=False)

    write("pass")
    return write


@pytest.mark.usefixtures("near")
def test_a_function_beside_the_recipe_is_given_the_columns_of_the_data(recipe, tmp_path):
    path = recipe(rewards=["near:by_level"], max_steps=1, eval_decodings=["soft"])
    data = Path(yaml.safe_load(Path(path).read_text())["task"])
    rows = [json.loads(line) | {"prompts": "p"} for line in data.read_text().splitlines()]
    # A column may be of several types, and missing here and there.
    for index, row in enumerate(rows):
        row |= {"level": index % 3} | ({"note": [index, "a"]} if index % 2 else {"note": {"b": 1}})
        row |= {} if index % 5 else {"source": "a book"}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", path]) == 0

    calls = sys.modules["near"].calls
    ours = {"answer", "note", "problem_id", "source"}
    trls = {"completion_ids", "log_extra", "log_metric", "trainer_state"}
    assert {frozenset(columns) for *_, columns in calls} == {
        frozenset(ours),
        frozenset(ours | trls),
    }
    assert {level for _, _, levels, _ in calls for level in levels} <= {0, 1, 2}
    assert len(calls[0][1]) == 1  # the trial, before everything else


# A reward of REWARDS, what it breaks by at once, and what is said.
TRIALS = [
    ("wants_what_is_not_there", "", ["'difficulty'", "columns answer, problem_id"]),
    ("breaks", "raise ValueError('no number')", ["no number", "near.py, line"]),
    ("breaks", "raise SystemExit(0)", ["SystemExit"]),
    ("breaks", "return [float('nan')]", ["nan", "completion 1 of 1"]),
    ("breaks", "return []", ["0 values for 1"]),
    ("for_text", "", ["'list' object has no attribute 'split'", "[{'role': 'assistant'"]),
]


@pytest.mark.parametrize(("reward", "breaks", "said"), TRIALS, ids=str)
def test_what_is_wrong_with_a_reward_is_said_before_the_run(
    reward, breaks, said, recipe, near, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("softgrpo.runs.training.load_weights", _unwanted)
    near(breaks, after=0)
    fields = {"rewards": [f"near:{reward}"]}
    if reward == "for_text":
        fields |= {"chat": True, "model": _with_chat_template(model, tmp_path / "chatty")}
    assert main(["train", recipe(**fields)]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in [f"reward '{reward}'", *said]), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def _with_chat_template(model: Path, folder: Path) -> str:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


def _unwanted(*_):
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize("breaks", ["raise ValueError('no number')", "raise SystemExit(0)"])
def test_a_reward_that_breaks_on_its_way_ends_the_run_with_its_traceback(
    breaks, recipe, near, tmp_path, capsys, caplog
):
    near(breaks)
    path = recipe(rewards=["near:breaks"], eval_reward="exact", num_samples_kept=0, save_steps=1,
                  num_eval_problems=0)  # fmt: skip
    assert main(["train", path]) == 1
    error = capsys.readouterr().err
    for words in ("reward 'breaks'", breaks[6:16], "near.py, line", "checkpoint-2", "--resume"):
        assert words in error
    assert f"in breaks\n    {breaks}" in caplog.text


def test_a_reward_that_breaks_in_the_evaluation(recipe, near, tmp_path, capsys):
    near("return [float('inf')]")
    assert main(["train", recipe(rewards=["near:breaks"])]) == 1
    error = capsys.readouterr().err
    assert "reward 'breaks': returned inf" in error and "there is no checkpoint" in error


@pytest.mark.usefixtures("near")
def test_an_asynchronous_reward_trains_and_evaluates(recipe):
    path = recipe(rewards=["near:waits"], max_steps=1, eval_decodings=["soft"])
    assert main(["train", path]) == 0


def test_gold_answers_that_nobody_can_read(recipe, capsys):
    path = recipe(rewards=["numeric"], max_steps=2, eval_decodings=["soft"])
    data = Path(yaml.safe_load(Path(path).read_text())["task"])
    rows = [json.loads(line) | {"answer": "red"} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", path]) == 0
    assert "step 2/2  nothing judged" in capsys.readouterr().out


def _eval(tmp_path, model, reward):
    verifier = reward if reward == "mbpp" else f"near:{reward}"
    (tmp_path / "problems.jsonl").write_text('{"question": "a b", "answer": "1", "level": 2}\n')
    return main(["eval", str(model), "--task", "problems.jsonl", "--verifier", verifier,
                 "--plain", "--prompt", "{question}", "--think-end", "</t>", "--samples", "4",
                 "--max-new-tokens", "4", "--output", "results"])  # fmt: skip


def test_softgrpo_eval_tries_a_reward_too_and_gives_it_the_columns(near, tmp_path, model, capsys):
    assert _eval(tmp_path, model, "wants_what_is_not_there") == 2
    assert "'difficulty'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    assert _eval(tmp_path, model, "by_level") == 0


def test_gold_answers_that_are_not_the_verifiers_own_are_told_before_the_evaluation(
    near, tmp_path, model, capsys
):
    assert _eval(tmp_path, model, "mbpp") == 2
    assert "tried before the run on the completion '</t>1'" in capsys.readouterr().err


def test_a_reward_that_breaks_in_softgrpo_eval(near, tmp_path, model, capsys, caplog):
    near("raise SystemExit(0)")
    assert _eval(tmp_path, model, "breaks") == 1
    error = capsys.readouterr().err
    assert "reward 'breaks': SystemExit" in error and "what is finished is in results" in error
    assert "in breaks\n    raise SystemExit(0)" in caplog.text
