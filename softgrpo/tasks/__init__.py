"""Tasks: problems, where they come from, and how they are put to a model.

A leaf: imports no torch and, of softgrpo, at most `rewards`.
"""

from softgrpo.tasks.benchmarks import BENCHMARKS, BOXED, load_benchmark
from softgrpo.tasks.problems import Problem
from softgrpo.tasks.prompts import PromptFormat, reward_columns, to_dataset
from softgrpo.tasks.sources import load_problems

__all__ = [
    "BENCHMARKS",
    "BOXED",
    "Problem",
    "PromptFormat",
    "load_benchmark",
    "load_problems",
    "reward_columns",
    "to_dataset",
]
