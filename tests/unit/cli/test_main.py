"""Help is fast and teaches."""

import subprocess
import sys

import pytest

from softgrpo.cli.main import main


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["serve"], ["eval"], ["lab"]])
def test_help_teaches_by_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert f"softgrpo {' '.join(command)}".strip() + " " in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["serve"], ["eval"]], ids=str)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom softgrpo.cli.main import main\n"
        f"try:\n    main({[*command, '--help']})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'trl', 'matplotlib'}\n"
        f"assert not (heavy | {set() if command else {'dataclasses'}}) & set(sys.modules)\n"
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


_PRINTS = (  # ten megabytes, in one piece or in many
    "import sys\nfrom softgrpo.cli import lab\nfrom softgrpo.cli.main import main\n"
    "def run(options):\n    for _ in range({n}): print('x' * ({size} // {n}))\n    return 0\n"
    "lab.run = run\nsys.exit(main(['lab', 'info']))"
)


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def _buffering(request, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("n", [1, 1000])
def test_a_reader_that_has_enough_is_no_error(n):
    code = _PRINTS.format(n=n, size=10_000_000)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe) as writer:
        writer.stdout.read(1)
        writer.stdout.close()
        assert writer.stderr.read() == b"" and writer.wait() == 141


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_full_disk_behind_the_output_is_said(size):
    code = _PRINTS.format(n=1, size=size)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.stderr == "softgrpo: standard output: No space left on device\n"
    assert ended.returncode == 1


def test_lab_info(capsys):
    assert main(["lab", "info"]) == 0
    assert "lab:chains" in capsys.readouterr().out
