"""A pretend accelerator: a device of its own whose numbers are computed on the CPU.

In two ways it behaves as CUDA does. An operation on tensors of two devices raises, and whatever
makes the host wait for the device is counted by the line of this project that caused it. So code
that has only met the CPU can be run as on a GPU, and compared with the CPU number by number.

    model = tiny_model().to(pretend.DEVICE)
    with pretend.counting() as counts:
        ...
    print(counts.launches, counts.uploads, counts.downloads, counts.waits.most_common())

To import this module is to register the device, for the whole process and for good; other libraries
then find an accelerator. Tests that use it have a process of their own (see test_on_pretend.py).

How it works: the device is torch's PrivateUse1. A tensor is a subclass that holds its numbers as a
CPU tensor; __torch_dispatch__ sees every operation on it below autograd. Operations without tensors
(torch.empty) reach a fallback of the device's key. No kernel is written: each is the CPU's.

What it is not: a model of time, of streams, or of memory. Generators, pinned memory and changes of
a tensor's own shape (resize_) are not there, and say so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

_ROOT = f"{Path(__file__).parents[2]}/"
aten = torch.ops.aten


# What is counted ----------------------------------------------------------------------------------
@dataclass
class Counts:
    """What a piece of program asked of the device.

    Attributes:
        waits: Times the host waited, by "file.py:line" of the project's innermost frame; a wait in
            a thread of autograd's that runs none of the project's lines is at "elsewhere". Every
            upload is one: from pageable memory, which is all there is here, a copy waits for its
            staging at least, non_blocking or not. (On CUDA a non_blocking copy from pinned memory
            is none.) Every download is one, even a non_blocking one: nobody can read it before.
        launches: Operations run on the device. Views and uninitialised tensors launch nothing; an
            operation is counted once, however many kernels CUDA would make of it.
        uploads: Copies from the host; an index on the host is one.
        downloads: Copies to the host, single numbers included.
    """

    waits: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    uploads: int = 0
    downloads: int = 0


_counting: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens inside; may be nested."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting[:] = [other for other in _counting if other is not counts]


def _count(*, waits: int = 0, launches: int = 0, uploads: int = 0, downloads: int = 0) -> None:
    line = _line() if waits and _counting else ""
    for counts in _counting:
        counts.launches += launches
        counts.uploads += uploads
        counts.downloads += downloads
        if waits:
            counts.waits[line] += waits


def _line() -> str:
    """The project's innermost line that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_ROOT) and "/site-packages/" not in path and path != __file__:
            return f"{path.removeprefix(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


# Operations ---------------------------------------------------------------------------------------
# What is read on the host: one number.
_READ = {
    aten._local_scalar_dense.default, aten.equal.default, aten.allclose.default,
    aten.is_nonzero.default,
}  # fmt: skip
# The shape of what comes out depends on the numbers.
_SHAPED_BY_NUMBERS = {
    aten.nonzero.default, aten.masked_select.default, aten._unique.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.bincount.default,
}  # fmt: skip
_INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor}
_INDEXED_PUT = {
    aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}  # fmt: skip
_NO_LAUNCH = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
    aten.new_empty.default, aten.new_empty_strided.default, aten._unsafe_view.default,
    aten._local_scalar_dense.default, aten.lift_fresh.default,
}  # fmt: skip
# Beside the pointwise ones, which torch tags, these take a number that lies on the host.
_TAKES_HOST_NUMBERS = _INDEXED_PUT | {
    aten.fill.Tensor, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor,
}  # fmt: skip


def _run(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation that the device has a part in, on the CPU's tensors."""
    if torch.Tag.inplace_view in op.tags:
        raise NotImplementedError(f"the pretend accelerator has no {op}")
    if op is aten.copy_.default:
        return _copy(args[0], args[1])
    device = kwargs.get("device")
    is_here = device is None or device.type == DEVICE.type
    tensors = [x for x in _leaves((*args, *kwargs.values())) if isinstance(x, Tensor)]
    if op is aten._to_copy.default and not is_here:
        _count_copy(to_host=True)
    elif is_here:
        _check_devices(op, args, tensors)
        _count_operation(op, args, kwargs)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = op(*_map(_raw, args), **{name: _map(_raw, value) for name, value in kwargs.items()})
    if not is_here:
        return result
    # What an operation in place returns is the very tensor that it was given.
    given = {id(x.raw): x for x in tensors if isinstance(x, PretendTensor)}
    return _map(lambda x: given[id(x)] if id(x) in given else _wrap(x), result)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """What the lists of an operation's arguments hold. (torch's own pytree is twice as slow.)"""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_map(function, x) for x in value])
    return function(value)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, PretendTensor) else value


def _wrap(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _copy(target: Tensor, source: Tensor) -> Tensor:
    """target.copy_(source), which is how a tensor gets onto the device and off it."""
    if isinstance(target, PretendTensor) == isinstance(source, PretendTensor):
        _count(launches=1)
    else:
        _count_copy(to_host=isinstance(source, PretendTensor))
    _raw(target).copy_(_raw(source))
    return target


def _count_copy(to_host: bool) -> None:
    _count(waits=1, uploads=not to_host, downloads=to_host)


def _count_operation(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    launches = not (op.is_view or op in _NO_LAUNCH)
    waits = op in _READ or op in _SHAPED_BY_NUMBERS
    # With the size of the result given nobody has to wait for it.
    waits |= op is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if op in _INDEXED or op in _INDEXED_PUT:
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if not isinstance(index, PretendTensor):
                _count_copy(to_host=False)
        # One number put where a mask is true is masked_fill.
        is_fill = op in _INDEXED_PUT and args[2].dim() == 0
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        waits |= not is_fill and any(isinstance(mask, PretendTensor) for mask in masks)
    _count(waits=waits, launches=launches, downloads=op in _READ)


def _check_devices(op: OpOverload, args: tuple, tensors: list[Tensor]) -> None:
    """Refuse an operation on tensors of two devices, as CUDA does.

    Raises:
        RuntimeError: It has both, and the CPU's are neither indices nor numbers that are only read.
    """
    others = [x for x in tensors if not isinstance(x, PretendTensor)]
    if not others or len(others) == len(tensors):
        return
    written = [
        value
        for value, argument in zip(args, op._schema.arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    indices = args[1] if op in _INDEXED or op in _INDEXED_PUT else []
    takes_numbers = torch.Tag.pointwise in op.tags or op in _TAKES_HOST_NUMBERS
    for other in others:
        is_number = other.dim() == 0 and takes_numbers and not _holds(written, other)
        if not is_number and not _holds(indices, other):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and cpu! ({op} with a tensor {list(other.shape)} on the CPU)"
            )


def _holds(values: Any, wanted: Tensor) -> bool:
    return any(value is wanted for value in values)


# The tensor ---------------------------------------------------------------------------------------
class PretendTensor(Tensor):
    """A tensor on the device.

    Attributes:
        raw: Its numbers, of the same shape, strides and dtype, on the CPU.
    """

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> PretendTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, op: OpOverload, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(op, args, kwargs or {})

    # Where torch does not dispatch, or refuses subclasses.
    def tolist(self) -> Any:
        _count_copy(to_host=True)
        return self.raw.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} tensor to numpy: use .cpu() first")

    def __repr__(self, **_: Any) -> str:  # for a debugger: waits for nothing
        return f"pretend {self.raw!r}"

    def as_subclass(self, cls: type[Tensor]) -> Tensor:
        """A tensor of another kind, whose __torch_function__ then holds, still on the device."""
        both = type(cls.__name__, (cls, PretendTensor), {})
        return PretendTensor.__new__(both, self.raw)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: PretendTensor) -> None:
        Tensor.data.__set__(self, value)
        self.raw = value.raw


# The device ---------------------------------------------------------------------------------------
_HALVES = [torch.bfloat16, torch.float16]


class _Backend(_DummyBackendModule):
    """torch.pretend: what torch and its libraries ask of an accelerator's module."""

    def synchronize(self, device: Any = None) -> None:
        _count(waits=1)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return _HALVES


_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend", 0)
# A parameter that moves to the device stays the same object, as on CUDA: ties would break.
torch.__future__.set_swap_module_params_on_conversion(True)

_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
_kernels = torch.library.Library("aten", "IMPL")
# torch.tensor(..., device=DEVICE) copies below __torch_dispatch__.
_kernels.impl("_copy_from", lambda source, target, *_: _copy(target, source), "PrivateUse1")


# Attention ----------------------------------------------------------------------------------------
def _attend(*args: Any, **kwargs: Any) -> Tensor:
    """F.scaled_dot_product_attention, fused where the CPU's is: one launch, and the same sums."""
    if torch._fused_sdp_choice(*_map(_raw, args), **kwargs) != SDPBackend.FLASH_ATTENTION.value:
        return aten.scaled_dot_product_attention.default.decompose(*args, **kwargs)
    query, key, value, mask, dropout, is_causal = (*args, *(None, 0.0, False)[len(args) - 3 :])
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -torch.inf).to(query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, dropout, is_causal, attn_mask=mask, scale=kwargs.get("scale")
    )[0]


_kernels.impl("scaled_dot_product_attention", _attend, "AutogradPrivateUse1")


# Autocast -----------------------------------------------------------------------------------------
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _autocast(op: OpOverload) -> None:
    """Let an operation run in autocast's dtype, as on the CPU and on CUDA."""

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("pretend")

        def cast(x: Any) -> Any:
            is_cast = isinstance(x, Tensor) and x.dtype in (torch.float32, *_HALVES)
            return x.to(dtype) if is_cast else x

        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*_map(cast, args), **kwargs)

    _kernels.impl(op, run, "AutocastPrivateUse1")


_fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _product in (
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default,
    aten.addmm.default, aten.baddbmm.default, aten.scaled_dot_product_attention.default,
):  # fmt: skip
    _autocast(_product)
