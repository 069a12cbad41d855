"""The preallocated cache is transformers' own, rows dropped and repeated included."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from softgrpo.rollout.cache import make_cache
from tests.helpers import tiny_model


def _decode(model, cache, keep):
    """Hidden states of 4 prompt tokens, a selection of rows, then 12 single tokens."""
    ids = torch.randint(0, 30, (3, 16), generator=torch.Generator().manual_seed(0))
    prompt = model.base_model(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)[0]
    states = [prompt[keep]]
    cache.batch_select_indices(torch.tensor(keep))
    for t in range(4, 16):
        token = ids[keep, t : t + 1]
        states.append(model.base_model(input_ids=token, past_key_values=cache, use_cache=True)[0])
    return torch.cat(states, dim=1)


@pytest.mark.parametrize("name", ["tied", "bias_gptj", "softcap"])
@pytest.mark.parametrize("keep", [[0, 1, 2], [2, 0], [1], [0, 0, 1, 1, 2]])
@torch.no_grad()
def test_decoding_with_it_is_decoding_with_dynamic_cache(name, keep):
    model = tiny_model(name)
    found = _decode(model, make_cache(model.config, 16), keep)
    wanted = _decode(model, DynamicCache(config=model.config), keep)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_selecting_rows_again_and_again_keeps_their_states():
    model = tiny_model()
    ids = torch.randint(0, 30, (4, 8))
    cache = make_cache(model.config, 8)
    model.base_model(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor([3, 1, 0]))
    model.base_model(input_ids=ids[[3, 1, 0], 4:6], past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor([2, 0]))
    found = model.base_model(input_ids=ids[[0, 3], 6:], past_key_values=cache, use_cache=True)[0]
    wanted = model.base_model(input_ids=ids[[0, 3]])[0][:, 6:]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
