"""The trace: whatever is done to it and undone gives it back; it refuses other settings by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.utils import _apply_to_tensors

from softgrpo.thinking import SoftTrace, ThinkingConfig, from_tokens
from softgrpo.thinking.config import REPLAY_FIELDS

CONFIG = ThinkingConfig()


def _trace(lengths, num_steps=None, seed=0, noise=False):
    torch.manual_seed(seed)
    size = (len(lengths), num_steps or max(lengths), 3)
    lengths = torch.tensor(lengths, dtype=torch.int32)
    here = (torch.arange(size[1]) < lengths[:, None])[..., None]
    support = (torch.rand(size) < 0.7) & here
    support[..., :1] = here
    return SoftTrace(
        ids=torch.randint(1, 50, size, dtype=torch.int32) * here,
        scores=torch.randn(size) * here,
        support=support,
        is_soft=(torch.rand(size[:2]) < 0.5) & here[..., 0],
        lengths=lengths,
        embedding_noise=torch.randn(*size[:2], 4) * here if noise else None,
        settings=CONFIG.replay_settings(),
        source={"seed": 5},
    )


def _same(a, b):
    assert a.tensors().keys() == b.tensors().keys()
    for name, value in a.tensors().items():
        other = b.tensors()[name]
        assert value.dtype == other.dtype and torch.equal(value, other), name
    assert a.settings == b.settings


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_splitting_and_concatenating_is_the_identity(size, noise):
    trace = _trace([3, 1, 4, 2, 5], noise=noise)
    _same(SoftTrace.cat(trace.split(size)), trace)


@pytest.mark.parametrize("noise", [False, True])
def test_padding_and_trimming_is_the_identity(noise):
    trace = _trace([3, 1, 4], noise=noise)
    _same(trace.pad(9).pad(4), trace)
    assert trace.pad(9).tokens == trace.tokens
    assert (trace.pad(9).mask.sum(-1) == trace.lengths).all()


def test_concatenating_pads_to_the_longest_and_keeps_every_row():
    a, b = _trace([2, 1]), _trace([5, 3], seed=1)
    both = SoftTrace.cat([a, b])
    _same(both[:2].pad(2), a)
    _same(both[[2, 3]], b)
    assert both.tokens == a.tokens + b.tokens


def test_padding_never_cuts_a_sequence():
    with pytest.raises(ValueError, match="num_steps=3"):
        _trace([3, 4]).pad(3)


@pytest.mark.parametrize("noise", [False, True])
def test_saving_and_loading_is_the_identity(tmp_path, noise):
    trace = _trace([3, 1, 4], noise=noise)
    trace.save(tmp_path / "trace.safetensors")
    loaded = SoftTrace.load(tmp_path / "trace.safetensors")
    _same(loaded, trace)
    assert loaded.source == trace.source
    loaded.require(CONFIG)


def test_a_view_can_be_saved(tmp_path):
    view = _trace([3, 1, 4])[::2]
    view.save(tmp_path / "trace.safetensors")
    _same(SoftTrace.load(tmp_path / "trace.safetensors"), view)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no trace"):
        SoftTrace.load(tmp_path / "x.safetensors")


OTHER = {
    "policy": "dirichlet", "temperature": 0.6, "tau": 0.5, "min_weight": 0.1,
    "prob_floor": 0.0, "noise_clamp": None, "alpha": 2.0, "sigma": 0.1, "answer_temperature": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ids", lambda x: x.float()),
        ("ids", lambda x: -x - 1),
        ("ids", lambda x: x[0]),
        ("scores", lambda x: x.half()),
        ("scores", lambda x: x[:, :, :2]),
        ("support", lambda x: x.int()),
        ("is_soft", lambda x: x[:1]),
        ("lengths", lambda x: x + 99),
        ("lengths", lambda x: x - 99),
        ("lengths", lambda x: x[:, None]),
        ("embedding_noise", lambda x: x[:, :1]),
        ("embedding_noise", lambda x: x[0, 0]),
        ("lengths", None),
        ("more", None),
    ],
)
def test_a_trace_with_other_tensors_is_refused(tmp_path, name, change):
    path, tensors = tmp_path / "t.safetensors", _trace([3, 2], noise=True).tensors()
    header = {"format": "softgrpo.trace.v1", "settings": "{}", "source": "{}"}
    if change is not None:
        tensors[name] = change(tensors[name]).contiguous()
    elif tensors.pop(name, None) is None:
        tensors[name] = torch.zeros(1)
    save_file(tensors, path, metadata=header)
    with pytest.raises(ValueError, match="is no trace|of the trace|the trace"):
        SoftTrace.load(path)


@pytest.mark.parametrize("value", ["", "[]", "3", "{", "[" * 100_000])
@pytest.mark.parametrize("name", ["settings", "source"])
def test_a_trace_with_another_header_is_refused(tmp_path, name, value):
    path = tmp_path / "t.safetensors"
    header = {"format": "softgrpo.trace.v1", "settings": "{}", "source": "{}", name: value}
    save_file(_trace([3]).tensors(), path, metadata=header)
    with pytest.raises(ValueError, match=name):
        SoftTrace.load(path)


@pytest.mark.parametrize("field", REPLAY_FIELDS)
def test_a_replay_under_another_setting_is_refused_by_its_name(field):
    trace = _trace([2])
    trace.require(CONFIG)
    with pytest.raises(ValueError, match=field):
        trace.require(replace(CONFIG, **{field: OTHER[field]}))


def test_traces_of_other_settings_do_not_mix():
    settings = replace(CONFIG, tau=0.5).replay_settings()
    other = SoftTrace(**_trace([2]).tensors(), settings=settings)
    with pytest.raises(ValueError, match="settings differ"):
        SoftTrace.cat([_trace([2]), other])


def test_a_trace_is_frozen_and_none_of_the_containers_that_wrappers_look_into():
    """torch's own search for tensors, which FSDP2 casts a forward's arguments by."""
    trace = _trace([2], noise=True)
    with pytest.raises(AttributeError, match="scores"):
        trace.scores = torch.zeros(1)
    seen = []
    assert _apply_to_tensors(seen.append, {"trace": trace})["trace"] is trace
    assert not seen


def test_a_row_is_not_a_batch():
    with pytest.raises(TypeError):
        _trace([2])[0]


def test_forced_tokens_are_those_nobody_drew():
    trace = _trace([3, 2])
    trace.support[0, 1] = False
    assert trace.is_forced.tolist() == [[False, True, False], [False, False, False]]


def test_ordinary_completions_are_a_trace_without_soft_steps():
    trace = from_tokens([[5, 6, 7], [8]], CONFIG, num_columns=3)
    assert trace.tokens == [[5, 6, 7], [8]]
    assert not trace.is_soft.any() and not trace.is_forced.any()
