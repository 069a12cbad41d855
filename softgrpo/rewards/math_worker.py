"""The program that runs Math-Verify, in a process of its own: `math_verifier.py` starts it.

Not imported by softgrpo, and imports nothing of it: it is run as a file, so that it starts fast
and with little in memory. Requests and replies are JSON, one a line: [gold, answer] in, a verdict
(1.0, 0.0, or null where gold cannot be read) out. A first verdict, unasked, says that it is ready.

The answers are a model's and may ask for anything, so the process kills itself: the kernel ends it
in the middle of whatever it computes when a request has used up its time, and refuses it memory
beyond its limit.
"""

import json
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr

# Boxes first, then what is announced as the answer, then any mathematics.
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


@lru_cache(maxsize=256)
def _parse_gold(gold: str) -> list[Any]:
    return parse(gold, _TARGETS, parsing_timeout=None)


def _verdict(gold: str, answer: str) -> float | None:
    expected = _parse_gold(gold)
    if not expected:
        return None
    found = parse(answer, _TARGETS, parsing_timeout=None)
    is_equal = verify(expected, found, timeout_seconds=None)
    return float(is_equal and _are_close(expected[0], found[0]))


def _are_close(expected: Any, found: Any) -> bool:
    """Whether two constants differ by less than a millionth of themselves.

    Math-Verify compares some after rounding to six places, where 2^-60 and 2^-61 are both 0.
    """
    if not all(isinstance(x, Expr) and x.is_number and x.is_finite for x in (expected, found)):
        return True
    difference = abs(expected - found).evalf(30)
    return bool(difference <= 1e-6 * abs(expected).evalf(30))


def main(time_limit: float, memory_limit: int) -> None:
    """Answers requests until standard input ends.

    Args:
        time_limit: Seconds of processor time a request may take, and a tenth of the seconds it may
            take by the clock: on a busy machine the verdicts stay the same.
        memory_limit: Bytes of address space. Not held on macOS, whose kernel does not know it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no reply
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    # The first verdict compiles the patterns, which no answer should pay for.
    print(json.dumps(_verdict("$1/2$", "$0.5$")), file=replies, flush=True)
    for line in sys.stdin:
        # Nothing catches these signals, so they end the process, in C code too.
        signal.setitimer(signal.ITIMER_PROF, time_limit)
        signal.setitimer(signal.ITIMER_REAL, 10 * time_limit)
        verdict = _verdict(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
