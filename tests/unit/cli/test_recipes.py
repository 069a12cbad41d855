"""`softgrpo recipes`: what ships, by name, and the text of one."""

from __future__ import annotations

from softgrpo.cli.main import main
from softgrpo.runs.recipe_files import shipped


def test_each_has_a_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"lab", "paper/r1-1.5b-soft", "on/1x24gb", "accelerate/fsdp2"} < set(names)
    assert set(names) == {name for name in shipped() if "/parts/" not in name}
    assert all(len(line.split()) > 4 and "#" not in line for line in lines)


def test_a_name_prints_the_file(capsys):
    assert main(["recipes", "lab"]) == 0
    assert capsys.readouterr().out == shipped()["lab"].read_text()


def test_what_does_not_ship_is_named(capsys):
    assert main(["recipes", "quickstar"]) == 2
    assert "no such recipe ships; did you mean quickstart?" in capsys.readouterr().err
    assert main(["train", "quickstar"]) == 2
    assert "quickstar: no such recipe; a file, or one of accelerate/" in capsys.readouterr().err
