"""`softgrpo generate`: one soft thought, shown as it comes."""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from softgrpo.cli.fields import given_thinking
from softgrpo.evaluation import tokenize_prompts
from softgrpo.models import (
    context_length,
    default_device,
    load_config,
    load_tokenizer,
    load_weights,
)
from softgrpo.rollout import StreamedStep, TransformersEngine
from softgrpo.rollout.vllm_client import Client
from softgrpo.runs.style import read_style
from softgrpo.tasks import Problem
from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.phases import Markers

_MAX_NEW_TOKENS = 256


def run(options: argparse.Namespace) -> int:
    """Generate, and print the text, the thoughts or one JSON object."""
    style = read_style(options.model, given_thinking(options))
    thinking = style.thinking
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    Markers(thinking.think_end, tokenizer)
    problem = Problem("prompt", options.prompt, "")
    is_chat = style.chat and not options.plain and bool(tokenizer.chat_template)
    prompt = style.prompt.messages(problem) if is_chat else style.prompt.text(problem)
    if options.server:
        stream = Client(options.server).stream
    else:
        model = load_weights(options.model, trust_remote_code=options.trust_remote_code)
        stream = TransformersEngine(model.to(default_device()), tokenizer).stream
    prompt_ids = tokenize_prompts(tokenizer, [prompt])[0]
    most = options.max_new_tokens
    if most is None:
        context = context_length(load_config(options.model, options.trust_remote_code))
        most = _default_length(style.max_new_tokens, len(prompt_ids), context)
    steps = stream(prompt_ids, thinking, max_new_tokens=most, seed=options.seed)
    if options.json:
        print(json.dumps(_to_json(list(steps), tokenizer, thinking, options)))
        return 0
    shown: list[StreamedStep] = []
    steps = _kept(steps, shown)
    if options.show_thoughts:
        for number, step in enumerate(steps, start=1):
            print(thought_line(number, step, tokenizer), flush=True)
        print(f"\n{printable(''.join(stream_text(shown, tokenizer)))}")
    else:
        for text in stream_text(steps, tokenizer):
            print(printable(text), end="", flush=True)
        print()
    _warn_of_no_end(shown, thinking, tokenizer)
    return 0


def _default_length(of_run: int | None, prompt: int, context: int | None) -> int:
    """Tokens of thought and answer where none are asked for: no more than the context leaves."""
    most = of_run or _MAX_NEW_TOKENS
    return most if context is None else max(1, min(most, context - prompt))


def _kept(steps: Iterable[StreamedStep], shown: list[StreamedStep]) -> Iterator[StreamedStep]:
    """The steps as they come, each also put into a list."""
    for step in steps:
        shown.append(step)
        yield step


def _warn_of_no_end(
    steps: Sequence[StreamedStep], thinking: ThinkingConfig, tokenizer: Any
) -> None:
    """Say it where no marker came: then there is no answer."""
    text = tokenizer.decode([step.token for step in steps], skip_special_tokens=False)
    if thinking.think_end and not any(marker in text for marker in thinking.think_end):
        print(
            f"the thinking never ended in {len(steps)} tokens: there is no answer; raise "
            "--max-new-tokens, or end it by --max-think-tokens",
            file=sys.stderr,
        )


def printable(text: str) -> str:
    """Text that a terminal only shows: control and format characters are written as escapes."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char)[0] != "C"
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def thought_line(number: int, step: StreamedStep, tokenizer: Any) -> str:
    """One step: whether it is soft, and its alternatives with their weights."""
    kind = "soft" if step.is_soft else "forced" if step.is_forced else "token"
    alternatives = "  ".join(
        f"{json.dumps(_text(tokenizer, token), ensure_ascii=False)} {_share(weight)}"
        for token, weight in zip(step.ids, step.weights, strict=True)
    )
    return printable(f"{number:>5} {kind:<6} {alternatives}")


def _share(weight: float) -> str:
    """Three places, and never 0.000 for what is there."""
    return f"{weight:.3f}" if weight >= 0.0005 else f"{weight:.0e}"


def stream_text(steps: Iterable[StreamedStep], tokenizer: Any) -> Iterator[str]:
    """The text as it grows; a character that is not complete yet waits for its last token."""
    tokens: list[int] = []
    shown = ""
    for step in steps:
        tokens.append(step.token)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(tokens, skip_special_tokens=True)[len(shown) :]


def _to_json(
    steps: list[StreamedStep], tokenizer: Any, thinking: ThinkingConfig, options: argparse.Namespace
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": options.model,
        "prompt": options.prompt,
        "text": tokenizer.decode([step.token for step in steps], skip_special_tokens=True),
        "num_tokens": len(steps),
        "num_soft_tokens": sum(step.is_soft for step in steps),
        "seed": options.seed,
        "thinking": thinking.to_dict(),
    }
    if options.show_thoughts:
        result["steps"] = [
            {
                "token": _text(tokenizer, step.token),
                "is_soft": step.is_soft,
                "is_forced": step.is_forced,
                "alternatives": [
                    {"token": _text(tokenizer, token), "weight": weight}
                    for token, weight in zip(step.ids, step.weights, strict=True)
                ],
            }
            for step in steps
        ]
    return result


def _text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)
