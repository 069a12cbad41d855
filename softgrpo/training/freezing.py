"""Parameters that a soft thought gives no gradient.

A thought's inputs are looked up without gradient (see replay.embeddings). So an input embedding
learns only if it is the output head as well. If it is not, it is frozen: DDP would wait for its
gradient for ever, and an optimizer may keep two moments of it.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze_input_embedding(model: Any) -> list[nn.Parameter]:
    """Freeze the parameters of a model's input embedding that its output head does not share.

    Those of an adapter on the embedding, and of a copy of it that PEFT trains, are among them.
    Returned are those that needed a gradient until now.
    """
    shared = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    frozen = [
        parameter
        for parameter in model.get_input_embeddings().parameters()
        if parameter.requires_grad and id(parameter) not in shared
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def frozen_message(frozen: list[nn.Parameter]) -> str | None:
    """What to say of parameters that have been frozen; None: nothing."""
    if not frozen:
        return None
    return (
        f"{sum(parameter.numel() for parameter in frozen):,} parameters of the input embedding are "
        "frozen: the inputs of a soft thought are looked up without gradient, and the output head "
        "does not share them"
    )
