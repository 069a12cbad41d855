"""Help is fast and teaches."""

import subprocess
import sys

import pytest

from softgrpo.cli.main import main


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["lab"]])
def test_help_teaches_by_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert f"softgrpo {' '.join(command)}".strip() + " " in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom softgrpo.cli.main import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_unknown_options_outside_of_train(capsys):
    with pytest.raises(SystemExit) as end:
        main(["generate", "m", "p", "--loud"])
    assert end.value.code == 2
    assert "--loud" in capsys.readouterr().err


def test_a_message_is_one_line_whatever_is_in_it(monkeypatch, capsys):
    def fail(options):
        raise ValueError("a \udc80\nname")

    monkeypatch.setattr("softgrpo.cli.lab.run", fail)
    assert main(["lab", "info"]) == 2
    assert capsys.readouterr().err == "softgrpo: a \\udc80 name\n"


def test_lab_info(capsys):
    assert main(["lab", "info"]) == 0
    assert "lab:chains" in capsys.readouterr().out
