"""Evaluation: problems and an engine in, records and their numbers out. Knows no trainer."""

from softgrpo.evaluation.compare import (
    Pair,
    Run,
    Score,
    default_ks,
    paired,
    paired_tests,
    score,
)
from softgrpo.evaluation.prompts import tokenize_prompts
from softgrpo.evaluation.records import Record, RecordFile, is_records, read_records
from softgrpo.evaluation.results import Results, describe
from softgrpo.evaluation.sampling import Sampling, deal, sample
from softgrpo.evaluation.statistics import share

__all__ = [
    "Pair",
    "Record",
    "RecordFile",
    "Results",
    "Run",
    "Sampling",
    "Score",
    "deal",
    "default_ks",
    "describe",
    "is_records",
    "paired",
    "paired_tests",
    "read_records",
    "score",
    "share",
    "sample",
    "tokenize_prompts",
]
