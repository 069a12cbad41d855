"""Which density learns fastest: the laboratory, every density option, several seeds.

    python benchmarks/lab_densities.py --seeds 0 1 2 --jobs 2

Runs ``softgrpo train lab`` once a density and seed (one thread each, as many at a time
as --jobs), keeps the runs under --output, skips those that are finished, and prints a Markdown
table; the same numbers go to results.json there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {
    "gumbel, masked_mean (authors)": ["--density", "gumbel", "--reduction", "masked_mean"],
    "gumbel, sum (Eq. 12)": ["--density", "gumbel", "--reduction", "sum"],
    "concrete": ["--density", "concrete"],
    "argmax": ["--density", "argmax"],
    "discrete GRPO": ["--policy", "discrete"],
}
THRESHOLD = 0.6


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "lab-densities")
    parser.add_argument("--recipe", default="lab")
    parser.add_argument("--options", type=int, nargs="+", help="rows to run, from 0; all")
    arguments = parser.parse_args()
    names = [name for i, name in enumerate(OPTIONS) if i in (arguments.options or range(9))]
    todo = [(name, seed) for seed in arguments.seeds for name in names]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = list(pool.map(lambda job: train(*job, arguments.recipe, arguments.output), todo))
    results = [
        {"option": name, "seed": seed, **read(folder)}
        for (name, seed), folder in zip(todo, folders, strict=True)
    ]
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2))
    print(table(results))


def train(name: str, seed: int, recipe: str, output: Path) -> Path:
    """One run; does nothing where it is finished."""
    folder = output / f"{name.split(' (')[0].replace(', ', '-').replace(' ', '-')}-{seed}"
    if (folder / "evaluation" / "summary.json").exists():
        return folder
    command = [sys.executable, "-m", "softgrpo.cli.main", "train", recipe]
    command += ["--output_dir", str(folder), "--seed", str(seed), "--overwrite", *OPTIONS[name]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    return folder


def read(folder: Path) -> dict[str, float | None]:
    """The numbers of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [(line["step"], line["reward"]) for line in lines if "reward" in line]
    passed = [step for step, reward in rewards if reward > THRESHOLD]
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    decoding = "soft" if "soft" in summary["after"] else "discrete"
    return {
        "updates_to_threshold": passed[0] if passed else None,
        "updates": lines[-1]["step"],
        "before": summary["before"][decoding]["pass_at_1"],
        "after": summary["after"][decoding]["pass_at_1"],
        "standard_error": summary["after"][decoding]["standard_error"],
        "cpu_seconds": summary["cost"]["CPU-seconds"],
    }


def table(results: list[dict]) -> str:
    """Markdown: one row an option, seeds side by side."""
    rows = [
        f"| option | updates until the reward passed {THRESHOLD} (by seed) | pass@1 before | "
        "pass@1 after (by seed) | median after | CPU-seconds (median) |",
        "|---|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        of_one = [result for result in results if result["option"] == option]
        if not of_one:
            continue
        updates = ", ".join(
            f"> {r['updates']}"
            if r["updates_to_threshold"] is None
            else str(r["updates_to_threshold"])
            for r in of_one
        )
        after = ", ".join(f"{r['after']:.3f} ± {r['standard_error']:.3f}" for r in of_one)
        rows.append(
            f"| {option} | {updates} | {of_one[0]['before']:.3f} | {after} | "
            f"{statistics.median(r['after'] for r in of_one):.3f} | "
            f"{statistics.median(r['cpu_seconds'] for r in of_one):.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
