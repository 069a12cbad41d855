"""What the package offers is there, and costs nothing until it is used."""

import subprocess
import sys

from softgrpo import runs


def test_the_import_loads_nothing_heavy():
    code = (
        "import sys\nfrom softgrpo import runs\nruns.Display, runs.compare\n"
        "assert not {'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_whatever_was_imported_before():
    """A module of a function's name would take its place."""
    import softgrpo.runs.comparing
    import softgrpo.runs.evaluating
    import softgrpo.runs.training  # noqa: F401

    for name in runs.__all__:
        assert callable(getattr(runs, name)), name
