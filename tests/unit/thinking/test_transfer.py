"""Arrays arrive as they were sent, whatever else travels with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgrpo.thinking.transfer import upload

ARRAYS = {
    "large": np.array([2**53 - 1, -3, 0]),
    "noise": np.random.default_rng(0).exponential(size=(4, 3)),
    "none": np.zeros(0, dtype=np.int64),
    "flags": np.array([True, False]),
    "other": np.array([False]),
    "rows": np.array([[1, 2], [3, 4]]),
}


@pytest.mark.parametrize("names", [list(ARRAYS), ["flags"], ["noise"], ["none", "rows"]], ids=str)
def test_what_arrives_is_what_was_sent(names):
    sent = {name: ARRAYS[name] for name in names}
    found = upload(torch.device("cpu"), **sent)
    assert found.keys() == sent.keys()
    for name, array in sent.items():
        assert torch.equal(found[name], torch.from_numpy(array))
