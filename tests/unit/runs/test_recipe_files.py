"""Recipes by path and by name, over one another and over what they extend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from softgrpo.runs.recipe import read_recipe
from softgrpo.runs.recipe_files import find, listed, read_recipes, read_yaml, shipped
from tests.helpers import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: str, **fields) -> str:
    path = Path(place)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(fields))
    return place


def test_a_name_is_a_recipe_that_ships_and_a_file_of_that_path_wins(folder):
    assert read_yaml("lab") == yaml.safe_load((ROOT / "softgrpo/recipes/lab.yaml").read_text())
    assert read_recipe("lab")[0].task == "lab:chains"
    write("lab", seed=7)
    assert read_yaml("lab") == {"seed": 7}
    Path("quickstart").mkdir()  # such as a folder of runs
    assert find("quickstart") == shipped()["quickstart"]


def test_a_clone_has_them_under_recipes():
    for name, path in shipped().items():
        assert (ROOT / "recipes" / f"{name}.yaml").samefile(path)


def test_an_unknown_name_says_which_there_are(folder):
    with pytest.raises(
        ValueError, match="labb: no such recipe; a file, or one of .*lab, .*quickstart"
    ):
        read_recipes(["lab", "labb"])
    with pytest.raises(ValueError, match="pyproject: no such recipe"):
        read_yaml("../../pyproject")


def test_of_several_recipes_the_last_one_wins(folder):
    first, second = write("a.yaml", seed=1, tau=0.2), write("b/c.1-x.yaml", seed=2)
    assert read_recipes([first, second]) == {"seed": 2, "tau": 0.2}
    run, training, _ = read_recipe(["lab", Path(second)], ["--tau", "0.3"])
    assert (run.model, training.seed, training.tau) == ("lab", 2, 0.3)
    whole = write("d.yaml", model="m", task="t.jsonl", use_cpu=True, bf16=False)
    assert read_recipe([whole, second])[1].output_dir == "runs/d-c.1-x"


def test_fields_are_over_what_they_extend_and_later_names_over_earlier(folder):
    write("parts/base.yaml", seed=1, tau=0.1, beta=0.0)
    write("parts/soft.yaml", extends=["base.yaml"], tau=0.2, top_k=4)
    write("run.yaml", extends=["lab", "parts/base.yaml", "parts/soft.yaml"], top_k=3)
    found = read_yaml("run.yaml")
    assert (found["seed"], found["tau"], found["top_k"], found["beta"]) == (1, 0.2, 3, 0.0)
    assert found["model"] == "lab" and "extends" not in found
    mapping = {"extends": ["run.yaml"], "top_k": 2, "output_dir": "runs/x"}
    _, training, resolved = read_recipe(mapping)
    assert (training.tau, training.top_k) == (0.2, 2)
    write("config.yaml", **resolved)  # a run's own is whole
    assert read_recipe("config.yaml")[1].to_dict() == training.to_dict()


def test_one_recipe_may_be_extended_twice_but_not_by_itself(folder):
    write("base.yaml", seed=1)
    write("left.yaml", extends=["base.yaml"])
    write("both.yaml", extends=["left.yaml", "base.yaml"])
    assert read_yaml("both.yaml") == {"seed": 1}
    write("base.yaml", extends=["both.yaml"])
    with pytest.raises(ValueError, match="circle: .*both.yaml -> .*left.yaml -> .*base.yaml -> "):
        read_yaml("both.yaml")


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("base", "extends='base': must be a list"),
        ([1], "must be a list, each item text"),
        (["gone"], "gone: no such recipe"),
    ],
)
def test_what_cannot_be_extended_is_named(folder, extends, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(write("run.yaml", extends=extends))


def test_everything_that_ships_begins_with_what_it_is():
    assert {"lab", "quickstart"} <= set(listed())
    for name, path in shipped().items():
        first = path.read_text().partition("\n")[0]
        assert first.startswith("# ") and len(first) > 20, name
