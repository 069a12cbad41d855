"""How long `softgrpo` takes to answer, and `softgrpo train` to begin its first rollout.

    python benchmarks/startup.py [--repeats 3]

Seconds by the clock and CPU-seconds of processes started anew; medians. Bars: help within .5 s, the
first rollout within 20 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Ends where the first rollout would begin.
_FIRST_ROLLOUT = """
import os, sys
from softgrpo.cli.main import main
from softgrpo.training import SofTGRPOTrainer
SofTGRPOTrainer._generate_single_turn = lambda *_, **__: os._exit(0)
sys.exit(main(sys.argv[1:]) or 1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="startup.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", "quickstart", "--num_eval_problems", "0"]
        train += ["--output_dir", str(Path(folder) / "run"), "--overwrite"]
        commands = {
            "softgrpo --help": [sys.executable, "-m", "softgrpo.cli.main", "--help"],
            "softgrpo eval --help": [sys.executable, "-m", "softgrpo.cli.main", "eval", "--help"],
            "softgrpo train, to the first rollout": [sys.executable, "-c", _FIRST_ROLLOUT, *train],
        }
        values = {name: _measure(command, options.repeats) for name, command in commands.items()}
    print("| command | seconds | CPU-seconds |\n|---|---|---|")
    for name, (wall, cpu) in values.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    Path(options.output).write_text(json.dumps(values, indent=2))


def _measure(command: list[str], repeats: int) -> tuple[float, float]:
    walls, cpus = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - start)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(walls), statistics.median(cpus)


if __name__ == "__main__":
    main()
