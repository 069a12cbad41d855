"""A trace under a model: inputs rebuilt, log-densities of the recorded steps."""

from softgrpo.replay.ancestors import check_packing
from softgrpo.replay.embeddings import build_inputs_embeds
from softgrpo.replay.forward import add_replay, replay
from softgrpo.replay.head import OutputHead, check_model
from softgrpo.replay.logps import (
    Replayed,
    logps_from_hidden,
    logps_from_logits,
    replay_steps,
)
from softgrpo.replay.packing import pack

__all__ = [
    "OutputHead",
    "Replayed",
    "add_replay",
    "build_inputs_embeds",
    "check_model",
    "check_packing",
    "logps_from_hidden",
    "logps_from_logits",
    "pack",
    "replay",
    "replay_steps",
]
