"""The table of a run before and after training, by hand."""

from softgrpo.evaluation import Results
from softgrpo.runs.outcome import table
from tests.unit.evaluation.test_records import _record


def _results(rights: dict[str, list[bool]], think_end: list[str], **changes) -> Results:
    records = [
        _record(problem, sample, correct=correct, sequence=10 * number + sample, **changes)
        for number, (problem, verdicts) in enumerate(rights.items())
        for sample, correct in enumerate(verdicts)
    ]
    return Results({"thinking": {"think_end": think_end}}, records)


BEFORE = {"a": [False, False], "b": [False, True]}
AFTER = {"a": [True, False], "b": [True, True]}


def test_by_hand():
    before = {"soft": _results(BEFORE, ["####"], thinking_ended_by=None, finish_reason="length")}
    after = {"soft": _results(AFTER, ["####"])}
    header, row = table(before, after, "csv").splitlines()
    assert header == "decoding,pass@1 before,after,change,tokens,thinking closed,truncated"
    for cell in ("0.250 [", "0.750 [", "5.0 -> 5.0", "0% -> 100%", "100% -> 0%"):
        assert cell in row
    # Both problems gained as much: two of them say nothing of a third.
    assert "+0.500 [-1.00, +1.00]" in row


def test_the_change_is_by_problem():
    """Problems that are hard before are hard after: their spread does not blur the change."""
    before = {f"p{number}": [number % 2 == 0] * 8 for number in range(40)}
    after = {problem: [*verdicts[:7], True] for problem, verdicts in before.items()}
    row = table({"soft": _results(before, ["####"])}, {"soft": _results(after, ["####"])}, "csv")
    assert '"0.500 [0.35, 0.65]","0.562 [0.42, 0.69]","+0.062 [+0.01, +0.11]"' in row


def test_nothing_closes_where_no_marker_ends_the_thinking():
    results = {"soft": _results(BEFORE, [], thinking_ended_by=None)}
    assert table(results, results, "csv").splitlines()[1].split(",")[-2] == "- -> -"
