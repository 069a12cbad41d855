"""The pretend accelerator itself: the CPU's numbers, CUDA's refusals, waits by their lines."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softgrpo.thinking.trace import from_tokens
from tests.accelerator import pretend
from tests.accelerator.pretend import DEVICE, PretendTensor
from tests.helpers import MODELS, thinking, tiny_model

HERE = "tests/accelerator/on_pretend.py"


def _here(*values: float) -> torch.Tensor:
    return torch.tensor(values or (1.0, 2.0, 3.0))


def _there(*values: float) -> torch.Tensor:
    return _here(*values).to(DEVICE)


# Numbers ------------------------------------------------------------------------------------------
def test_a_network_learns_what_it_learns_on_the_cpu():
    grads = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        layer, x = nn.Linear(8, 8).to(device), torch.randn(4, 8).to(device)
        hidden = F.layer_norm(layer(x), (8,)).masked_fill_(x > 1, 0.5)
        hidden[1:, ::2] *= 2
        F.cross_entropy(hidden, x.argmax(-1)).backward()
        grads.append(layer.weight.grad.cpu())
    assert torch.equal(grads[0], grads[1]) and grads[0].abs().max() > 0


def test_random_numbers_are_the_cpus():
    torch.manual_seed(5)
    wanted = torch.randn(4), torch.empty(3).exponential_()
    torch.manual_seed(5)
    found = torch.randn(4, device=DEVICE), torch.empty(3, device=DEVICE).exponential_()
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.device == DEVICE and torch.equal(ours.cpu(), theirs)


def test_a_view_is_written_through():
    x = torch.zeros(2, 3, device=DEVICE)
    x.t()[1].add_(1)
    x[0, 2] = 7
    assert x.tolist() == [[0, 1, 7], [0, 1, 0]]


@pytest.mark.parametrize("enable_gqa", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention_is_the_cpus_to_the_bit(mask, enable_gqa):
    groups = 2 if enable_gqa else 4
    query, key, value = torch.randn(2, 4, 5, 8), *torch.randn(2, 2, groups, 5, 8)
    seen = {"bool": torch.ones(5, 5).tril().bool(), "float": torch.randn(5, 5), None: None}[mask]
    results = []
    for device in ("cpu", DEVICE):
        inputs = [x.detach().to(device, copy=True).requires_grad_() for x in (query, key, value)]
        there = None if seen is None else seen.to(device)
        output = F.scaled_dot_product_attention(*inputs, attn_mask=there, enable_gqa=enable_gqa)
        output.square().sum().backward()
        results.append([x.cpu() for x in (output.detach(), *(y.grad for y in inputs))])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_moves_as_one(name):
    model = tiny_model(name)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    model.to(DEVICE)
    assert model.get_output_embeddings().weight is head  # as on CUDA the parameter stays
    assert model.get_input_embeddings().weight is embedding
    assert all(isinstance(p, PretendTensor) for p in [*model.parameters(), *model.buffers()])
    half = copy.deepcopy(model).to(torch.bfloat16).get_output_embeddings().weight
    assert isinstance(half, nn.Parameter) and half.dtype == half.raw.dtype == torch.bfloat16
    assert half.raw.data_ptr() != head.raw.data_ptr() and head.raw.dtype == torch.float32


def test_data_that_is_set_is_seen():
    x = nn.Parameter(_there(1.0))
    x.data = _there(5.0)
    assert (x + 1).tolist() == [6.0]


def test_autocast_multiplies_in_its_dtype():
    x = torch.randn(3, 3, device=DEVICE)
    with torch.autocast("pretend", dtype=torch.bfloat16):
        for product in (x @ x, F.linear(x, x), torch.bmm(x[None], x[None])):
            assert product.dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
        with torch.autocast("pretend", enabled=False):
            assert (x @ x).dtype == torch.float32
    assert torch.equal((x @ x).cpu(), x.cpu() @ x.cpu())


# Two devices --------------------------------------------------------------------------------------
ROWS = torch.tensor([0, 2])
MIXED = {
    "add": lambda: _there() + _here(),
    "add, reversed": lambda: _here() + _there(),
    "a number of the device": lambda: _here() + _there()[0],
    "into the cpu": lambda: _here().add_(_there()),
    "into a number": lambda: torch.tensor(1.0).add_(_there()[0]),
    "cat": lambda: torch.cat([_there(), _here()]),
    "stack of numbers": lambda: torch.stack([_there()[0], torch.tensor(1.0)]),
    "product": lambda: _there() @ _here(),
    "where": lambda: torch.where(_here() > 1, _there(), _there()),
    "mask": lambda: _there().masked_fill(_here() > 1, 0.0),
    "gather": lambda: _there().gather(0, ROWS),
    "index_select": lambda: _there().index_select(0, ROWS),
    "embedding": lambda: F.embedding(ROWS, torch.ones(3, 2, device=DEVICE)),
    "cpu by an index of the device": lambda: _here()[ROWS.to(DEVICE)],
    "values put": lambda: _there().index_put_((ROWS,), _here(1.0, 2.0)),
    "scatter": lambda: _there().scatter_(0, ROWS, 1.0),
    "a layer left behind": lambda: nn.Linear(3, 3)(_there()),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_an_operation_on_two_devices_raises(name):
    with pytest.raises(RuntimeError, match="same device"):
        MIXED[name]()


NUMBER = torch.tensor(2.0)
ALLOWED = {
    "add": lambda x: x + NUMBER,
    "add, reversed": lambda x: NUMBER + x,
    "in place": lambda x: x.mul_(NUMBER),
    "where": lambda x: torch.where(x > 1, x, NUMBER),
    "clamp": lambda x: x.clamp(min=NUMBER),
    "masked_fill": lambda x: x.masked_fill(x > 1, NUMBER),
    "fill": lambda x: x.fill_(NUMBER),
    "index": lambda x: x[ROWS],
    "list": lambda x: x[[0, 2]],
    "put": lambda x: x.index_put((ROWS,), x[:2]),
    "number put": lambda x: x.index_put((x > 1,), NUMBER),
    "copy": lambda x: x.copy_(_here(7.0, 8.0, 9.0)),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_numbers_and_indices_of_the_host_are_taken(name):
    found = ALLOWED[name](_there())
    assert found.device == DEVICE and torch.equal(found.cpu(), ALLOWED[name](_here()))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda: _there().numpy(), TypeError),
        (lambda: _there().t_(), NotImplementedError),
        (lambda: _there().resize_(1), NotImplementedError),
    ],
)
def test_what_there_is_not_is_refused(function, error):
    with pytest.raises(error, match="pretend"):
        function()


# Counts -------------------------------------------------------------------------------------------
MASK = _there() > 1
REPEATS = ROWS.to(DEVICE)
# name -> what is done, and its waits, uploads and downloads.
WAITS = {
    "item": (lambda x: x[0].item(), 1, 0, 1),
    "bool": (lambda x: bool((x > 0).all()), 1, 0, 1),
    "int": (lambda x: int(x[0]), 1, 0, 1),
    "tolist": (lambda x: x.tolist(), 1, 0, 1),
    "cpu": (lambda x: x.cpu(), 1, 0, 1),
    "cpu, not blocking": (lambda x: x.to("cpu", non_blocking=True), 1, 0, 1),
    "copied to the host": (lambda x: torch.empty(3).copy_(x), 1, 0, 1),
    "nonzero": (lambda x: x.nonzero(), 1, 0, 0),
    "where": (lambda x: torch.where(x > 1), 1, 0, 0),
    "boolean index": (lambda x: x[MASK], 1, 0, 0),
    "boolean index, put": (lambda x: x.__setitem__(MASK, x[1:].clone()), 1, 0, 0),
    "masked_select": (lambda x: x.masked_select(MASK), 1, 0, 0),
    "unique": (lambda x: x.unique(), 1, 0, 0),
    "unique_consecutive": (lambda x: x.unique_consecutive(), 1, 0, 0),
    "repeat_interleave": (lambda x: x[:2].repeat_interleave(REPEATS), 1, 0, 0),
    "bincount": (lambda x: REPEATS.bincount(), 1, 0, 0),
    "equal": (lambda x: torch.equal(x, x), 1, 0, 1),
    "allclose": (lambda x: torch.allclose(x, x), 1, 0, 1),
    "is_nonzero": (lambda x: x[0].is_nonzero(), 1, 0, 1),
    "synchronize": (lambda x: torch.pretend.synchronize(), 1, 0, 0),  # type: ignore[attr-defined]
    "to": (lambda x: _here().to(DEVICE), 1, 1, 0),
    "to, not blocking": (lambda x: _here().to(DEVICE, non_blocking=True), 1, 1, 0),
    "tensor": (lambda x: torch.tensor([1, 2], device=DEVICE), 1, 1, 0),
    "as_tensor": (lambda x: torch.as_tensor(0.5, device=DEVICE), 1, 1, 0),
    "new_tensor": (lambda x: x.new_tensor([1.0]), 1, 1, 0),
    "copied to the device": (lambda x: x.copy_(_here()), 1, 1, 0),
    "index of the host": (lambda x: x[ROWS], 1, 1, 0),
    "list": (lambda x: x[[0, 2]], 1, 1, 0),
    "two indices of the host": (lambda x: x[None][ROWS * 0, ROWS], 2, 2, 0),
}
NO_WAITS = {
    "arithmetic": lambda x: (x + 1).exp_().softmax(-1),
    "a number of the host": lambda x: x * NUMBER,
    "view": lambda x: x.view(1, 3).t()[1:],
    "masked_fill": lambda x: x.masked_fill(MASK, 0.0),
    "a number put by a mask": lambda x: x.__setitem__(MASK, 0.0),
    "masked_scatter": lambda x: x.masked_scatter(MASK, x),
    "three-way where": lambda x: torch.where(MASK, x, 0.0),
    "index": lambda x: x[REPEATS],
    "slice": lambda x: x[0:2],
    "repeat_interleave, size known": lambda x: x[:2].repeat_interleave(REPEATS, output_size=2),
    "sort": lambda x: (x.sort(), x.topk(2), x.cumsum(0), torch.searchsorted(x, x)),
    "made there": lambda x: (torch.zeros(3, device=DEVICE), torch.arange(3, device=DEVICE)),
    "cast": lambda x: x.double(),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted(name):
    function, *wanted = WAITS[name]
    x = _there()
    with pretend.counting() as counts:
        function(x)
    assert [counts.waits.total(), counts.uploads, counts.downloads] == wanted


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_needs_no_wait_counts_none(name):
    x = _there()
    with pretend.counting() as counts:
        NO_WAITS[name](x)
    assert not counts.waits and counts.uploads == counts.downloads == 0


def test_a_wait_is_counted_by_its_line():
    x = _there()
    with pretend.counting() as counts:
        for _ in range(3):
            x.sum().item()
        line = inspect.currentframe().f_lineno - 1
        x.tolist()
    assert counts.waits == {f"{HERE}:{line}": 3, f"{HERE}:{line + 2}": 1}


def test_a_wait_inside_the_project_is_the_projects():
    trace = from_tokens([[3, 4]], thinking()).to(DEVICE)
    with pretend.counting() as counts:
        trace.pad(4)
    lines, first = inspect.getsourcelines(type(trace).pad)
    offset = next(i for i, line in enumerate(lines) if "self.lengths.max()" in line)
    assert counts.waits == {f"softgrpo/thinking/trace.py:{first + offset}": 1}


def test_a_wait_in_the_backward_pass_is_counted():
    x = _there().requires_grad_()
    x.register_hook(lambda gradient: float(gradient.sum()) and None)
    with pretend.counting() as counts:
        x.square().sum().backward()
    assert counts.waits.total() == 1 and next(iter(counts.waits)).startswith(HERE)


def test_launches_are_operations_that_compute():
    x = _there()
    with pretend.counting() as counts:
        x.view(3, 1).t()[0, 1:].detach()
        torch.empty_like(x)
    assert counts.launches == 0
    with pretend.counting() as counts:
        (x + 1).mul_(2)
        torch.zeros(3, device=DEVICE)
    assert counts.launches == 3


def test_counts_may_be_nested_and_end():
    x = _there()
    with pretend.counting() as outer:
        with pretend.counting() as inner:
            x.tolist()
        x.tolist()
    x.tolist()
    assert (outer.waits.total(), inner.waits.total()) == (2, 1)
    assert (outer.downloads, inner.downloads) == (2, 1)
