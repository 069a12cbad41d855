"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import importlib

import pytest

PACKAGES = ["softgrpo", "softgrpo.thinking", "softgrpo.training"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_named(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_what_was_called_otherwise():
    from softgrpo import thinking

    assert thinking.POLICIES is thinking.MIXERS and thinking.ThinkingPolicy is thinking.Mixer
