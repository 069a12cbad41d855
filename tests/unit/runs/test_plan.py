"""What a plan decides where the recipe leaves it open."""

from __future__ import annotations

import pytest

from softgrpo.runs.plan import num_shown
from softgrpo.runs.recipe import RunConfig


@pytest.mark.parametrize(
    ("wanted", "processes", "count"), [(None, 1, 4), (None, 2, 0), (3, 1, 3), (3, 2, 3), (0, 1, 0)]
)
def test_samples_are_kept_where_nobody_waits_for_them_or_where_asked_for(wanted, processes, count):
    assert num_shown(RunConfig(model="m", task="t", num_samples_kept=wanted), processes) == count
