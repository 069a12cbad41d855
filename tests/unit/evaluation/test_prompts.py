"""Prompts are cut as TRL cuts them."""

import pytest

from softgrpo.evaluation import tokenize_prompts
from tests.helpers import make_trainer, train_config, word_tokenizer

_TEMPLATE = (
    "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"
)


def test_equal_to_trl(tmp_path):
    trainer = make_trainer("tied", train_config(tmp_path))
    tokenizer = trainer.processing_class
    tokenizer.chat_template = _TEMPLATE
    for prompts in (["a b", "c"], [[{"role": "user", "content": "d e"}]]):
        assert tokenize_prompts(tokenizer, prompts) == trainer._tokenize_prompts(prompts)[0]


def test_chat_without_a_template_says_what_would_do():
    with pytest.raises(ValueError, match="chat: false"):
        tokenize_prompts(word_tokenizer(), [[{"role": "user", "content": "a"}]])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("\ud800", "tokenizer cannot take the prompts"),
        ([{"role": "user", "content": "a"}], "chat template cannot take the prompts: no users"),
    ],
)
def test_what_the_tokenizer_cannot_take_is_refused(prompt, said):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(ValueError, match=said):
        tokenize_prompts(tokenizer, [prompt])
