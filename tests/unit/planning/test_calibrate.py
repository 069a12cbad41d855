"""This machine, measured."""

from __future__ import annotations

import torch

from softgrpo.planning import calibrate


def test_this_machine_can_be_measured():
    measured = calibrate.measure(torch.device("cpu"))
    assert measured.single_flops > measured.layer_seconds > 0
    assert 0 < measured.decoding_share <= 1
    assert 0 < measured.training_share < 2
