"""Rewards: where the answer is in a completion, and what it is worth.

A leaf: imports no torch and nothing else of softgrpo.
"""

from softgrpo.rewards.extraction import answer_part, completion_text, last_boxed
from softgrpo.rewards.numbers import last_number
from softgrpo.rewards.reward import VERIFIERS, Judgement, Reward, judge, load_reward

__all__ = [
    "VERIFIERS",
    "Judgement",
    "Reward",
    "answer_part",
    "completion_text",
    "judge",
    "last_boxed",
    "last_number",
    "load_reward",
]
