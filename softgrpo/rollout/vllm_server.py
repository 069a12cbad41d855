"""vLLM's own OpenAI-compatible server with soft thinking in it.

Requests say how to think in ``vllm_xargs``, one ``soft_*`` entry a setting (see vllm_plugin.wire);
``temperature``, ``top_p`` and the like are the answer's. What a request does not say the server's
defaults do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from softgrpo.rollout.vllm_plugin.versions import require_vllm
from softgrpo.rollout.vllm_plugin.wire import DEFAULTS_VARIABLE, encode_config
from softgrpo.thinking.config import ThinkingConfig


def serve(model: str, thinking: ThinkingConfig | None, arguments: Sequence[str]) -> None:
    """Run the server until it is stopped.

    Args:
        model: A folder in Hugging Face format or a hub id.
        thinking: How to think where a request does not say so; its answer fields are not used.
            None: only requests that say how to think do.
        arguments: Those of ``vllm serve`` (``--port 8000``, ...).

    Raises:
        ValueError: This vLLM has not been tested (says how to override), or is not there;
            an argument that soft thinking sets itself; names it.
    """
    require_vllm()
    from vllm.entrypoints.cli.main import main

    from softgrpo.rollout.vllm_plugin.options import server_arguments
    from softgrpo.rollout.vllm_plugin.validation import TOKENIZER_VARIABLE

    own = server_arguments(arguments)
    if thinking is not None:
        sent, _ = encode_config(thinking)
        os.environ[DEFAULTS_VARIABLE] = json.dumps(sent)
    os.environ[TOKENIZER_VARIABLE] = model
    sys.argv = ["vllm", "serve", model, *arguments, *own]
    main()
