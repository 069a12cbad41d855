"""Records read as results: one number a problem for every metric, and their means."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from softgrpo.evaluation import metrics
from softgrpo.evaluation.records import Record

# What a policy reads beside the sampling that all share.
_READ_BY = {
    "gumbel": ("tau", "min_weight"),
    "dirichlet": ("alpha",),
    "gaussian": ("sigma",),
    "embedding_gaussian": ("sigma",),
}
_NUMBER = re.compile(r"[-+]?[0-9]{1,40}(\.[0-9]{1,40})?")


@dataclass(frozen=True)
class Results:
    """The samples of one evaluation."""

    settings: Mapping[str, Any]  # that all of them share
    records: Sequence[Record]  # one a sample, in any order

    @cached_property
    def by_problem(self) -> dict[str, list[Record]]:
        """The samples of each problem, in order."""
        found: dict[str, list[Record]] = {}
        for record in sorted(self.records, key=lambda record: record.sequence):
            found.setdefault(record.problem_id, []).append(record)
        return found

    @property
    def num_samples(self) -> int:
        """The fewest samples a problem has."""
        return min(map(len, self.by_problem.values()))

    def pass_at(self, k: int) -> dict[str, float]:
        """By problem; see metrics.pass_at_k."""
        return self._of_each(lambda rs: metrics.pass_at_k(len(rs), sum(r.correct for r in rs), k))

    def first(self, k: int) -> dict[str, float]:
        """By problem; see metrics.first_k."""
        return self._of_each(lambda rs: metrics.first_k([r.correct for r in rs], k))

    def maj_at(self, k: int) -> dict[str, float]:
        """By problem; see metrics.maj_at_k."""
        return self._of_each(
            lambda rs: metrics.maj_at_k([vote(r.answer) for r in rs], [r.correct for r in rs], k)
        )

    def _of_each(self, number: Callable[[list[Record]], float]) -> dict[str, float]:
        return {problem: number(records) for problem, records in self.by_problem.items()}

    @property
    def pass_at_1(self) -> float:
        """The mean over problems."""
        return statistics.fmean(self.pass_at(1).values())

    @property
    def can_vote(self) -> bool:
        """Whether the verifier told what each sample answers."""
        return any(record.answer is not None for record in self.records)

    @property
    def standard_error(self) -> float:
        """Of pass@1, clustered by problem: samples of one problem are not independent.

        NaN for a single problem, whose spread is unknown.
        """
        shares = list(self.pass_at(1).values())
        return statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan

    @property
    def mean_tokens(self) -> float:
        """Generated tokens of a sample, thought and answer."""
        return statistics.fmean(record.num_tokens for record in self.records)

    @property
    def mean_tokens_of_correct(self) -> float:
        """The same over right samples; NaN where there are none."""
        tokens = [record.num_tokens for record in self.records if record.correct]
        return statistics.fmean(tokens) if tokens else math.nan

    @property
    def share_closed(self) -> float:
        """The share of samples whose thinking ended, by itself or forced.

        NaN where no marker ends it, and it is to last as long as the sample.
        """
        if _thinking(self.settings).get("think_end") in ([], ()):
            return math.nan
        return statistics.fmean(record.thinking_ended_by is not None for record in self.records)

    @property
    def share_truncated(self) -> float:
        """The share of samples that were cut off at their limit of tokens."""
        return statistics.fmean(record.finish_reason == "length" for record in self.records)

    def summary(self) -> dict[str, float | int]:
        """The numbers of a table before and after training."""
        return {
            "pass_at_1": self.pass_at_1,
            "standard_error": self.standard_error,
            "mean_tokens": self.mean_tokens,
            "share_closed": self.share_closed,
            "share_truncated": self.share_truncated,
            "num_problems": len(self.by_problem),
            "num_samples": len(self.records),
        }


def describe(settings: Mapping[str, Any]) -> str:
    """How samples of these settings were thought and drawn, in a line."""
    thinking = _thinking(settings)
    policy = str(thinking.get("policy", "policy unknown"))
    names = ("temperature", "top_k", "top_p", "min_p", *_READ_BY.get(policy, ()))
    names += ("max_think_tokens", "cold_stop_entropy")
    parts = [policy]
    parts += [f"{name} {thinking[name]}" for name in names if thinking.get(name) is not None]
    named = ("max_new_tokens", "seed", "verifier", "model")
    return ", ".join(parts + [f"{name} {settings[name]}" for name in named if name in settings])


def _thinking(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    given = settings.get("thinking")
    return given if isinstance(given, dict) else {}


def vote(answer: str | None) -> str | None:
    """An answer in a form in which equal ones look alike, as far as that is cheap.

    Numbers by their value; other text without white space, dollar signs and LaTeX's sizes and
    spaces. Wrong answers that are equal but look different stay apart, which favours the right
    one: maj@k is rather too high where they are many.
    """
    if answer is None:
        return None
    text = re.sub(r"\s|\$|\\left|\\right|\\[,;!]|(?<=[0-9]),(?=[0-9]{3})", "", answer)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return str(Fraction(text)) if _NUMBER.fullmatch(text) else text
