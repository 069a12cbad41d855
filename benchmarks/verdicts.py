"""Verdicts on gold answers in two dozen forms: agreement with Math-Verify, and how many a second.

    python benchmarks/verdicts.py --data FOLDER [--limit N]

FOLDER holds math500.jsonl and gsm8k.jsonl (lines of id, question, answer). Every gold answer is
written in each form, two of them wrong, and judged by softgrpo's `math_verify` and by calling
Math-Verify directly, as its README does, on the same text. Prints a Markdown table of agreement
with an example of each kind of disagreement, and then the throughput of ordinary GSM8K answers.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from math_verify import parse, verify

from softgrpo.rewards import judge
from softgrpo.rewards.math_verifier import math_verify
from softgrpo.tasks import load_benchmark


def _fraction(gold: str) -> str:
    """A whole number as a fraction; other answers as they are."""
    return rf"\frac{{{2 * int(gold)}}}{{2}}" if re.fullmatch(r"\d+", gold) else gold


def _thousands(gold: str, separator: str) -> str:
    """A whole number with its thousands apart; other answers as they are."""
    return f"{int(gold):,}".replace(",", separator) if re.fullmatch(r"\d+", gold) else gold


def _mixed(gold: str) -> str:
    """A positive fraction over 1 as a mixed number; other answers as they are."""
    match = re.fullmatch(r"\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if match is None or int(match[1]) < int(match[2]):
        return gold
    whole, rest = divmod(int(match[1]), int(match[2]))
    return rf"{whole}\frac{{{rest}}}{{{match[2]}}}"


_SHORT_ROOT, _ROOT = re.compile(r"\\sqrt\{([0-9]+)\}"), r"\\sqrt\1"
_PARENTHESIS, _BIG = re.compile(r"([()])"), r"\\big\1"

_THIN, _CLOSED = r"\,", r",\!"

FORMS: dict[str, Callable[[str], str]] = {
    "boxed": lambda gold: rf"The answer is $\boxed{{{gold}}}$.",
    "boxed text": lambda gold: rf"\boxed{{\text{{{gold}}}}}",
    "units": lambda gold: rf"\boxed{{{gold} \text{{ apples}}}}",
    "percent": lambda gold: rf"\boxed{{{gold}\%}}",
    "fraction": lambda gold: rf"\boxed{{{_fraction(gold)}}}",
    "commas": lambda gold: rf"\boxed{{{_thousands(gold, ',')}}}",
    "thin spaces": lambda gold: rf"\boxed{{{_thousands(gold, _THIN)}}}",
    "plain spaces": lambda gold: rf"\boxed{{{_thousands(gold, ' ')}}}",
    "closed commas": lambda gold: rf"\boxed{{{_thousands(gold, _CLOSED)}}}",
    "mixed number": lambda gold: rf"\boxed{{{_mixed(gold)}}}",
    "full stop": lambda gold: rf"\boxed{{{gold}.}}",
    "word behind": lambda gold: rf"\boxed{{{gold} dollars}}",
    "degree sign": lambda gold: rf"\boxed{{{gold}°}}",
    "degree": lambda gold: rf"\boxed{{{gold}\degree}}",
    "spaced percent": lambda gold: rf"\boxed{{{gold}\,\%}}",
    "typographic minus": lambda gold: rf"\boxed{{{gold.replace('-', '–')}}}",
    "short roots": lambda gold: rf"\boxed{{{_SHORT_ROOT.sub(_ROOT, gold)}}}",
    "big parentheses": lambda gold: rf"\boxed{{{_PARENTHESIS.sub(_BIG, gold)}}}",
    "trailing words": lambda gold: rf"\boxed{{{gold}}} is what was asked for, in 3 steps.",
    "after another box": lambda gold: rf"\boxed{{99999}}, which is wrong. \boxed{{{gold}}}",
    "inline": lambda gold: f"So the final answer is ${gold}$.",
    "bare": lambda gold: f"The final answer is {gold}",
    # Wrong ones: accepted counts against whoever does.
    "wrong: a digit more": lambda gold: rf"\boxed{{1{gold}}}",
    "wrong: half of it": lambda gold: rf"\boxed{{\frac{{{gold}}}{{2^{{60}}}}}}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", default="verdicts.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    values = {name: _agreement(name, options) for name in ("math500", "gsm8k")}
    values["throughput"] = _throughput(options)
    Path(options.output).write_text(json.dumps(values, indent=2))


def _agreement(name: str, options: argparse.Namespace) -> dict:
    golds = [p.answer for p in load_benchmark(name, data=options.data)][: options.limit]
    counts: dict[str, dict[str, int]] = {}
    examples: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with ThreadPoolExecutor(2) as pool:
        for form, write in FORMS.items():
            texts = [write(gold) for gold in golds]
            ours = list(pool.map(math_verify, texts, golds))
            theirs = [_direct(gold, text) for gold, text in zip(golds, texts, strict=True)]
            both = sum(a == b == 1.0 for a, b in zip(ours, theirs, strict=True))
            neither = sum(a == b == 0.0 for a, b in zip(ours, theirs, strict=True))
            only_ours = [i for i in range(len(golds)) if ours[i] == 1.0 and theirs[i] == 0.0]
            only_theirs = [i for i in range(len(golds)) if ours[i] == 0.0 and theirs[i] == 1.0]
            counts[form] = {
                "both": both,
                "neither": neither,
                "only ours": len(only_ours),
                "only Math-Verify": len(only_theirs),
            }
            for kind, which in (("only ours", only_ours), ("only Math-Verify", only_theirs)):
                examples[f"{form}, {kind}"] = [(golds[i], texts[i]) for i in which]
    print(f"\n{name}: {len(golds)} gold answers, accepted by\n")
    print("| form | both | neither | only ours | only Math-Verify |\n|---|---|---|---|---|")
    for form, row in counts.items():
        print(f"| {form} | {' | '.join(map(str, row.values()))} |")
    for kind, found in examples.items():
        for gold, text in found[:4]:
            print(f"- {kind}: gold `{gold}` in `{text!r}`")
    return {"counts": counts, "examples": {k: v for k, v in examples.items() if v}}


def _direct(gold: str, text: str) -> float:
    """Math-Verify as its README calls it: both sides parsed, the gold answer as LaTeX."""
    return float(verify(parse(f"${gold}$"), parse(text)))


def _throughput(options: argparse.Namespace) -> dict:
    problems = load_benchmark("gsm8k", data=options.data)
    work = [
        (f"She has {i} and then some.</think>It is 3 + 4, so \\boxed{{{p.answer}}}.", p.answer)
        for i, p in enumerate(problems)
    ]
    # Half of them wrong, by one.
    work += [(text.replace("boxed{", "boxed{1"), gold) for text, gold in work]
    math_verify("1", "1")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: math_verify("1", "1"), range(8)))
        start = time.perf_counter()
        right = sum(pool.map(lambda w: judge("math_verify", *w, ["</think>"]).correct, work))
        seconds = time.perf_counter() - start
    print(f"\n{len(work)} GSM8K answers on two workers: {len(work) / seconds:.0f} a second")
    assert right == len(problems)
    return {"answers": len(work), "seconds": seconds}


if __name__ == "__main__":
    main()
