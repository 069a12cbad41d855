"""Programs judged in their sandboxes: the gold solutions of MBPP, CPU-seconds and seconds for each.

    python benchmarks/code_judging.py --data FOLDER [--limit N] [--rounds N]

FOLDER holds mbpp.jsonl (lines of id, question, answer). To compare two versions, run it in turn
with PYTHONPATH set to one and to the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from statistics import median

from softgrpo.rewards.code import verify_mbpp
from softgrpo.tasks import load_benchmark


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    problems = load_benchmark("mbpp", data=options.data)[: options.limit]
    golds = [json.loads(problem.answer) for problem in problems]
    cpu, wall = [], []
    for _ in range(options.rounds):
        started, used = time.perf_counter(), _cpu_seconds()
        passed = sum(verify_mbpp(gold["code"], gold).passed for gold in golds)
        wall.append((time.perf_counter() - started) / len(golds))
        cpu.append((_cpu_seconds() - used) / len(golds))
    print(f"{passed} of {len(golds)} passed")
    for name, values in (("CPU", cpu), ("wall", wall)):
        print(f"{name}: {1e3 * median(values):.1f} ms ({1e3 * min(values):.1f} to "
              f"{1e3 * max(values):.1f}, {len(values)} rounds)")  # fmt: skip


if __name__ == "__main__":
    main()
