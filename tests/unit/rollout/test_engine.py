"""What every engine refuses, and where its sequences end."""

from __future__ import annotations

import pytest

from softgrpo.rollout.engine import check_prompts, find_eos_token_ids
from tests.helpers import word_tokenizer


@pytest.mark.parametrize("declared", [None, 1, [1], [5, 6]])
def test_the_ends_are_the_models_and_the_tokenizers(declared):
    tokenizer = word_tokenizer()
    models = {declared} if isinstance(declared, int) else set(declared or ())
    assert find_eos_token_ids(declared, tokenizer) == models | {tokenizer.eos_token_id}
    tokenizer.eos_token = None
    assert find_eos_token_ids(declared, tokenizer) == models


def test_a_limit_for_each_prompt():
    assert check_prompts([[3], [4, 5]], 7, 9) == [7, 7]
    assert check_prompts([[3], [4, 5]], (7, 6), None) == [7, 6]
    with pytest.raises(ValueError, match="1 limits for 2 prompts"):
        check_prompts([[3], [4]], [7], None)
