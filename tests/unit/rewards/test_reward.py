import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from softgrpo.rewards import judge, load_reward
from softgrpo.rewards.reward import VERIFIERS

MARKERS = ["</think>"]


@pytest.mark.parametrize("name", VERIFIERS)
def test_name_as_trl_logs_it(name: str) -> None:
    reward = load_reward(name, think_end=MARKERS)
    # What trl.trainer.utils.get_callable_name does, which would import torch.
    assert getattr(reward, "__name__", None) == name
    assert pickle.loads(pickle.dumps(reward)) == reward


_MBPP = json.dumps(
    {"code": "def f(): return 5", "test_list": ["assert f() == 5"], "test_import": []}
)
_HUMANEVAL = json.dumps(
    {
        "prompt": 'def f():\n    """Five."""\n',
        "test": "def check(f):\n    assert f() == 5\n",
        "entry_point": "f",
    }
)
# (a right answer, a wrong one, gold)
ANSWERS = {
    "exact": ("5", "6", "5"),
    "numeric": ("5", "6", "5"),
    "math_verify": ("5", "6", "5"),
    "letter": (r"\boxed{C}", r"\boxed{D}", "C"),
    "format": ("5", "five", "5"),
    "humaneval": ("def f(): return 5", "def f(): return 6", _HUMANEVAL),
    "mbpp": ("def f(): return 5", "def f(): return 6", _MBPP),
}


@pytest.mark.parametrize("name", VERIFIERS)
def test_nothing_inside_the_thinking_counts(name: str) -> None:
    reward = load_reward(name, think_end=MARKERS)
    right, wrong, gold = ANSWERS[name]
    thoughts = [right, f"{right}</think>", f"{wrong}</think>{right}", f"{right}</think>{wrong}"]
    completions = [*thoughts, f"{wrong}</think>{right}</think>{right}"]
    assert reward(prompts=[""] * 5, completions=completions, answer=[gold] * 5) == [0, 0, 1, 0, 1]


def test_messages_and_the_columns_trl_adds() -> None:
    reward = load_reward("numeric", think_end=[])
    completions = [[{"role": "assistant", "content": "so 5"}]]
    assert reward(
        prompts=[[]], completions=completions, answer=["5"], problem_id=["a"], trainer_state=None
    ) == [1.0]


def test_gold_of_another_kind_gives_none() -> None:
    reward = load_reward("numeric", think_end=[])
    assert reward(prompts=["", ""], completions=["5", "5"], answer=["5", "red"]) == [1.0, None]


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
def test_what_the_machine_cannot_judge_is_neither_right_nor_wrong() -> None:
    reward = load_reward("mbpp", think_end=[])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.warns(UserWarning, match="not judged: .*Too many open files"):
            assert reward(prompts=[""], completions=[ANSWERS["mbpp"][0]], answer=[_MBPP]) == [None]
        with pytest.raises(OSError, match="Too many open files"):
            judge("mbpp", ANSWERS["mbpp"][0], _MBPP, [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "LIMIT = 3\n"
        "def short(prompts, completions, **columns):\n"
        "    return [float(len(completion) < LIMIT) for completion in completions]\n"
        "def marked(prompts, completions, think_end, **columns):\n"
        "    return [completion.endswith(think_end) for completion in completions]\n"
    )
    (tmp_path / "torn.py").write_text("def score(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("user_module")
def test_a_function_of_the_users() -> None:
    short = load_reward("my_rewards:short", think_end=MARKERS)
    assert short.__name__ == "short"
    assert short(prompts=["", ""], completions=["ab", "abc"], answer=["", ""]) == [1.0, 0.0]
    marked = load_reward("my_rewards:marked", think_end=MARKERS)
    assert marked.__name__ == "marked"
    assert marked(prompts=[""], completions=["a</think>"], answer=[""]) == [1.0]


def test_a_module_of_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text("def score(completions, **columns):\n    return [1.0]\n")
    # One that lies there by chance is not taken for an installed module.
    (tmp_path / "yaml.py").write_text("")
    program = (
        "from softgrpo.rewards import load_reward\n"
        "print(load_reward('near:score', think_end=[]).now(prompts=[''], completions=['']))\n"
        "import yaml; print(hasattr(yaml, 'safe_load'))\n"
    )
    path = tmp_path / "elsewhere" / "program.py"
    path.parent.mkdir()
    path.write_text(program)
    loaded = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert loaded.stdout == "[1.0]\nTrue\n"


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "nummeric",
            "unknown; there are exact, numeric, math_verify, .* and module:function",
        ),
        ("no_such_module:f", "cannot import 'no_such_module' .* and in the current directory"),
        ("torn:score", "cannot import 'torn' .SyntaxError"),
        ("leaving:score", "cannot import 'leaving' .SystemExit"),
        (":f", "cannot import ''"),
        ("my_rewards:long", r"'long' in .*my_rewards.py does not exist"),
        ("my_rewards:", "does not exist"),
        ("my_rewards:LIMIT", "is a int"),
    ],
)
def test_errors_name_the_reward_and_what_would_do(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(spec, think_end=MARKERS)


@pytest.mark.parametrize("think_end", ["</think>", [""]])
def test_malformed_markers(think_end: str | list[str]) -> None:
    with pytest.raises(ValueError, match="think_end"):
        load_reward("exact", think_end=think_end)


def test_leaf_rooms_load_nothing_heavy() -> None:
    program = (
        "import sys, softgrpo.rewards, softgrpo.tasks\n"
        "heavy = {'torch', 'trl', 'datasets', 'reasoning_gym', 'math_verify'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert loaded.stdout == "[]\n"
