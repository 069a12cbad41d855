"""FLOP and times: torch's count, and what must hold of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from softgrpo.planning import speed
from softgrpo.planning.devices import DEVICES
from softgrpo.planning.shapes import shape_of
from tests.unit.planning.test_memory import JOB, SHAPE
from tests.unit.planning.test_shapes import CONFIGS, real

H100 = DEVICES["h100"]


def test_flops_of_a_token_are_torchs():
    name, length = "untied llama", 64
    model = real(CONFIGS[name])
    model.set_attn_implementation("eager")  # which the counter can count
    inputs = torch.zeros(1, length, SHAPE.hidden)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.base_model(inputs_embeds=inputs, use_cache=False)
    # Eager attention computes the whole square.
    assert counted.get_total_flops() == pytest.approx(
        length * speed.forward_flops(shape_of(CONFIGS[name]), length), rel=0.02
    )


def test_a_backward_pass_costs_two_forward_ones_and_checkpointing_one_more():
    job = replace(JOB, reference="none")
    plain = speed.update(SHAPE, job, H100).flops
    again = speed.update(SHAPE, replace(job, checkpointing="all"), H100).flops
    assert again / plain == pytest.approx(4 / 3)
    forward = speed.replay(SHAPE, job, H100).flops
    assert plain / forward == pytest.approx(3)  # a rollout is an update's sequences here


@pytest.mark.parametrize("name", DEVICES)
def test_more_tokens_take_longer(name):
    longer = replace(JOB, completion_tokens=2 * JOB.completion_tokens)
    for part in (speed.replay, speed.update):
        assert part(SHAPE, longer, DEVICES[name]).seconds > part(SHAPE, JOB, DEVICES[name]).seconds
    rollouts = [speed.rollout(SHAPE, job, DEVICES[name], 16).seconds for job in (JOB, longer)]
    assert rollouts[1] > rollouts[0]


def test_a_decoding_step_is_bound_by_memory_with_few_rows():
    one, two = (speed.rollout(SHAPE, JOB, replace(H100, layer_seconds=0.0), n) for n in (1, 2))
    assert two.seconds < 1.5 * one.seconds
    assert two.flops > 1.5 * one.flops
