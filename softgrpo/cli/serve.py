"""`softgrpo serve`: vLLM's OpenAI-compatible server with soft thinking on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from softgrpo.cli.fields import given_thinking
from softgrpo.models import resolve_model
from softgrpo.rollout.vllm_server import serve
from softgrpo.runs.style import read_style


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Serve until stopped; what softgrpo does not know goes to ``vllm serve``."""
    thinking = read_style(options.model, given_thinking(options)).thinking
    serve(resolve_model(options.model), thinking, rest)
    return 0
