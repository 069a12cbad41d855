"""Evaluation: problems and an engine in, records and pass@1 out. Knows no trainer."""

from softgrpo.evaluation.evaluate import Evaluation, evaluate, to_record
from softgrpo.evaluation.prompts import tokenize_prompts
from softgrpo.evaluation.records import read_records, write_records

__all__ = [
    "Evaluation",
    "evaluate",
    "read_records",
    "to_record",
    "tokenize_prompts",
    "write_records",
]
