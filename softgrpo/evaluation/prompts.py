"""Prompts as token ids, cut exactly as TRL's trainers cut them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def tokenize_prompts(
    tokenizer: Any, prompts: Sequence[Any], template_options: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of prompts that are all chat messages or all plain text.

    Args:
        tokenizer: The model's.
        prompts: Texts, or lists of messages, which go through the chat template.
        template_options: More variables for the template (`enable_thinking` and the like).

    Raises:
        ValueError: Chat messages and a tokenizer without a chat template, or what the tokenizer or
            its template cannot take: half of a surrogate pair, an unknown role.
    """
    is_text = isinstance(prompts[0], str)
    if not is_text and not tokenizer.chat_template:
        raise ValueError(
            "chat=True: the model's tokenizer has no chat template; chat: false puts the prompt "
            "as plain text"
        )
    try:
        if is_text:
            return tokenizer(text=list(prompts))["input_ids"]
        return tokenizer.apply_chat_template(
            list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(template_options or {}),
        )["input_ids"]
    except Exception as error:  # of whatever a template or a tokenizer's files make of them
        what = "tokenizer" if is_text else "chat template"
        raise ValueError(f"the model's {what} cannot take the prompts: {error}") from error
