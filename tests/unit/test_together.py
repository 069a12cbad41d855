"""Alone in a process, what is done together is as if nothing were around it."""

from __future__ import annotations

import pytest

from softgrpo.together import gathered, num_processes, process_number, together


def test_alone_an_error_is_itself():
    error = KeyError("x")
    with pytest.raises(KeyError) as raised, together():
        raise error
    assert raised.value is error


def test_alone_what_is_gathered_is_ones_own():
    assert (process_number(), num_processes()) == (0, 1)
    value = object()  # nothing is pickled
    assert gathered(value) == [value]
