"""The laboratory: a task and a model small enough that a claim about learning is tested in minutes.

It is a task (`chains`), the command that makes its base model (`base`), and that model as it ships
(`BASE_MODEL`). It is not a benchmark: a number measured here ranks estimators, not reasoning.
"""

from pathlib import Path

BASE_MODEL = Path(__file__).parent / "base_model"
