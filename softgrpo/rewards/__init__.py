"""Rewards: where the answer is in a completion, and what it is worth.

Imports no torch, and of softgrpo the sandbox and the words for values alone.
"""

from softgrpo.rewards.checked import CheckedAsyncReward, CheckedReward, RewardError, checked
from softgrpo.rewards.extraction import answer_part, completion_text, last_boxed
from softgrpo.rewards.reward import VERIFIERS, Judgement, judge, load_reward

__all__ = [
    "VERIFIERS",
    "CheckedAsyncReward",
    "CheckedReward",
    "Judgement",
    "RewardError",
    "answer_part",
    "checked",
    "completion_text",
    "judge",
    "last_boxed",
    "load_reward",
]
