"""Help is fast and teaches; small formats."""

import subprocess
import sys

import pytest

from softgrpo.cli.main import main
from softgrpo.cli.progress import duration, status


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


def test_lab_info(capsys):
    assert main(["lab", "info"]) == 0
    assert "lab:chains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14159, "3.1s"), (90, "1m30s"), (3599.9, "1h00m"), (7380, "2h03m")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_status():
    assert status({"reward": 0.5, "kl": 0.001}, 12.3) == "reward 0.500  kl 0.0010  12 tokens/s"
    assert status({"reward": 0.5}, None) == "reward 0.500"
