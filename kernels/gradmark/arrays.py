"""What the contract asks of arrays, once per array library: type, dtype, shape, device, `out`.

`NumpyArrays` serves the backends numpy and numba, `TorchArrays` the backend torch. The public functions of
each family (`activations/public.py` and its siblings) validate through one of them and then call an
implementation that may rely on what was checked.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class ArrayLibrary(Protocol):
    """The checks and allocations of one array library, for one backend."""

    backend: str
    dtypes: tuple[str, ...]
    device: str

    accepts: str
    """An expression, quick and true of nearly every array {0} that is accepted: where it is false, `check` decides.

    The functions that are made from a row test it in place of a call.
    """
    alike: str
    """The same of an array {0} that is to have the type, dtype and device of {1}."""
    agrees: str
    """The same of one that is to have its shape as well."""
    writeable: str
    """The same of an `out` {0} that agrees: one that can be written to, without elements in one place."""
    apart: str
    """The same of an `out` {0} and an input {1}: they are one array, or share no memory."""
    detach: str
    """A statement that takes the array {0} out of autograd; "" where there is no autograd."""
    names: Mapping[str, Any]
    """What these texts refer to; and `empty_like`, `largest_of` (dtype -> its largest finite number)."""

    def check(self, array: Any, role: str) -> None:
        """Raise TypeError unless `array` is of this library and of an accepted dtype."""

    def check_like(self, array: Any, role: str, like: Any, like_role: str) -> None:
        """Raise unless `array` has the type, dtype and device (not the shape) of `like`."""

    def check_dtype_name(self, dtype: Any) -> Any:
        """The library's dtype object for `dtype` (a name or a dtype), or TypeError."""

    def output(self, out: Any, like: Any, inputs: Sequence[tuple[str, Any]]) -> Any:
        """`out`, checked against `like` and for overlap with `inputs`; a new array where it is None."""

    def extent(self, array: Any) -> tuple[int, int]:
        """Address of the first byte of `array` and of the byte after its last; equal where it is empty."""

    def overlap(self, a: Any, b: Any) -> bool:
        """Whether an element's memory belongs to both arrays; True as well where that is too hard to tell."""

    def plainly_accepted(self, items: Sequence[Any]) -> bool:
        """Whether all are arrays that `check` accepts, on one device: True of nearly all such lists, and quick."""

    def plainly_apart(self, outputs: Any, *inputs: Sequence[Any]) -> bool:
        """Whether these are arrays to write to, each like the inputs of its index and apart from all others.

        An output may be an input of its index. True of nearly all such lists, and quick.
        """

    def scalar(self, value: float, like: Any) -> Any:
        """A 0-d array with the dtype and device of `like`."""

    def largest(self, array: Any) -> float:
        """The largest finite number of the dtype of `array`."""

    def detached(self, array: Any, role: str) -> Any:
        """The array without autograd, the same memory; ValueError where autograd is recording, and would miss it."""

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        """A context without floating-point warnings and without autograd."""


def check_same_shape(array: Any, role: str, like: Any, like_role: str) -> None:
    """Raise ValueError unless both arrays have the same shape; there is no broadcasting."""
    if array.shape != like.shape:
        raise ValueError(
            f"{role} has shape {tuple(array.shape)}, {like_role} has shape {tuple(like.shape)};"
            f" {role} must have the shape of {like_role} (nothing is broadcast)"
        )


def check_axis(axis: Any, x: Any, operation: str) -> int:
    """`axis`, counted from the front; TypeError or ValueError unless x has it."""
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise TypeError(f"axis must be an int, got {axis!r} of type {type(axis).__name__}")
    if x.ndim == 0:
        raise ValueError(f"x has no axes (its shape is ()); {operation} works along one")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis {axis} is out of range: x has shape {tuple(x.shape)}; accepted: {-x.ndim} <= axis < {x.ndim}"
        )
    return int(axis) % int(x.ndim)


def check_flag(value: Any, name: str) -> bool:
    """`value` as a bool; TypeError unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def finite_number(value: Any, name: str, largest: float = sys.float_info.max) -> float:
    """`value` as a float; TypeError or ValueError unless it is a real number of at most `largest` in magnitude."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite and within the range of float64, got {value!r}")
    if abs(number) > largest:
        raise ValueError(f"{name} must be within ±{largest:.4g}, the range of x's dtype, got {value!r}")
    return number


def positive_int(value: Any, name: str) -> int:
    """`value` as an int; TypeError or ValueError unless it is an integer of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if int(value) < 1:
        raise ValueError(f"{name} must be 1 or more, got {value!r}")
    return int(value)


class NumpyArrays:
    """NumPy arrays, for the backends numpy and numba."""

    device = "cpu"
    accepts = "type({0}) is array_type and {0}.dtype in largest_of"
    alike = "type({0}) is array_type and {0}.dtype is {1}.dtype"
    agrees = f"{alike} and {{0}}.shape == {{1}}.shape"
    writeable = "{0}.flags.carray"  # C-contiguous, aligned and writeable
    apart = "({0} is {1} or not may_share_memory({0}, {1}))"
    detach = ""

    def __init__(self, backend: str, dtypes: tuple[str, ...]) -> None:
        self.backend = backend
        self.dtypes = dtypes
        self.largest_of = {np.dtype(name): float(np.finfo(name).max) for name in dtypes}
        self.names: Mapping[str, Any] = {
            "array_type": np.ndarray,
            "empty_like": np.empty_like,
            "largest_of": self.largest_of,
            "may_share_memory": np.may_share_memory,
        }

    def check(self, array: Any, role: str) -> None:
        # Not a subclass: a matrix multiplies differently, and a masked array's mask would be lost.
        if type(array) is not np.ndarray:
            raise TypeError(
                f"{role} is {_article(type(array))}; the {self.backend} backend takes numpy.ndarray"
                " (numpy.asarray converts numbers, lists and CPU tensors)"
            )
        # A byte-swapped dtype is never equal to the native one, so this rejects it as well.
        if array.dtype not in self.largest_of:
            raise TypeError(f"{role} has dtype {array.dtype!s}; {self._accepts()}")

    def check_like(self, array: Any, role: str, like: Any, like_role: str) -> None:
        self.check(array, role)
        if array.dtype != like.dtype:
            raise TypeError(f"{role} has dtype {array.dtype}, {like_role} has {like.dtype}; they must be the same")

    def check_dtype_name(self, dtype: Any) -> Any:
        try:
            found = np.dtype(dtype)
        except TypeError:
            found = None
        if found is None or dtype is None or found not in self.largest_of:
            raise TypeError(f"dtype {dtype!r} is not available; {self._accepts()}")
        return found

    def output(self, out: Any, like: Any, inputs: Sequence[tuple[str, Any]]) -> Any:
        if out is None:
            return np.empty_like(like, subok=False)
        self.check_like(out, "out", like, "the input")
        check_same_shape(out, "out", like, "the input")
        if not out.flags.writeable:
            raise ValueError("out is read-only; give a writeable array or none")
        if not out.flags.c_contiguous:
            check_distinct_elements(out.shape, out.strides, out.itemsize)
        for role, array in inputs:
            if np.may_share_memory(out, array) and not _same_memory(out, array) and _share_memory(out, array):
                raise ValueError(
                    f"out overlaps {role} without being the same array; give {role} itself or separate memory"
                )
        return out

    def extent(self, array: Any) -> tuple[int, int]:
        return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)

    def overlap(self, a: Any, b: Any) -> bool:
        return _share_memory(a, b)

    def plainly_accepted(self, items: Sequence[Any]) -> bool:
        return all([type(a) is np.ndarray and a.dtype in self.largest_of for a in items])  # noqa: C419

    def plainly_apart(self, outputs: Any, *inputs: Sequence[Any]) -> bool:
        if type(outputs) is not list or any([len(outputs) != len(items) for items in inputs]):  # noqa: C419
            return False
        if not all([type(y) is np.ndarray and y.flags.carray and y.flags.owndata for y in outputs]):  # noqa: C419
            return False
        # Arrays that own their memory share none.
        written = set(map(id, outputs))
        return len(written) == len(outputs) and all(
            y is a or (a.flags.owndata and id(a) not in written and a.dtype is y.dtype and a.shape == y.shape)
            for items in inputs
            for y, a in zip(outputs, items, strict=True)
        )

    def scalar(self, value: float, like: Any) -> Any:
        return np.array(value, dtype=like.dtype)

    def largest(self, array: Any) -> float:
        return self.largest_of[array.dtype]

    def detached(self, array: Any, role: str) -> Any:
        return array

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        # Compiled code does not warn. np.errstate takes a microsecond.
        return contextlib.nullcontext() if self.backend == "numba" else np.errstate(all="ignore")

    def _accepts(self) -> str:
        return f"the {self.backend} backend takes {', '.join(self.dtypes)} in native byte order"


def _same_memory(a: Any, b: Any) -> bool:
    return bool(a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.shape == b.shape)


def check_distinct_elements(shape: tuple[int, ...], strides: tuple[int, ...], item: int, role: str = "out") -> None:
    """Raise unless each axis steps over all that the axes of smaller strides reach."""
    reach = item
    for stride, length in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reach:
            raise ValueError(f"{role} has several elements in one place (an overlapping view); give separate memory")
        reach = stride * (length - 1) + reach


class TorchArrays:
    """PyTorch tensors, on the CPU or on CUDA, for the backend torch."""

    accepts = "type({0}) is array_type and {0}.dtype in largest_of and {0}.layout is strided"
    alike = "type({0}) is array_type and {0}.dtype is {1}.dtype and {0}.device == {1}.device and {0}.layout is strided"
    agrees = f"{alike} and {{0}}.shape == {{1}}.shape"
    writeable = "not {0}.requires_grad and {0}.is_contiguous()"
    apart = "({0} is {1} or not overlap({0}, {1}))"
    detach = "if {0}.requires_grad: {0} = outside_of_autograd({0}, {0!r})"

    def __init__(self, backend: str, dtypes: tuple[str, ...], device: str = "cpu") -> None:
        import torch

        self._torch = torch
        self.backend = backend
        self.dtypes = dtypes
        self.device = device
        self.largest_of = {getattr(torch, name): torch.finfo(getattr(torch, name)).max for name in dtypes}
        self.names: Mapping[str, Any] = {
            "array_type": torch.Tensor,
            "empty_like": torch.empty_like,
            "largest_of": self.largest_of,
            "outside_of_autograd": self.detached,
            "overlap": _tensors_overlap,
            "strided": torch.strided,
        }

    def check(self, array: Any, role: str) -> None:
        if not isinstance(array, self._torch.Tensor):
            raise TypeError(
                f"{role} is {_article(type(array))}; the {self.backend} backend takes torch.Tensor"
                " (torch.from_numpy converts an array without a copy)"
            )
        if array.layout != self._torch.strided:
            raise TypeError(f"{role} has layout {array.layout}; dense (strided) tensors are accepted")
        if array.dtype not in self.largest_of:
            raise TypeError(f"{role} has dtype {_short(array.dtype)}; {self._accepts()}")
        self.detached(array, role)

    def check_like(self, array: Any, role: str, like: Any, like_role: str) -> None:
        self.check(array, role)
        if array.dtype != like.dtype:
            raise TypeError(
                f"{role} has dtype {_short(array.dtype)}, {like_role} has {_short(like.dtype)}; they must be the same"
            )
        if array.device != like.device:
            raise ValueError(
                f"{role} is on {array.device}, {like_role} on {like.device}; nothing is copied between devices"
                f" silently: move one with {role}.to({str(like.device)!r})"
            )

    def check_dtype_name(self, dtype: Any) -> Any:
        found = getattr(self._torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(found, self._torch.dtype) or found not in self.largest_of:
            raise TypeError(f"dtype {dtype!r} is not available; {self._accepts()}")
        return found

    def output(self, out: Any, like: Any, inputs: Sequence[tuple[str, Any]]) -> Any:
        if out is None:
            return self._torch.empty_like(like, requires_grad=False)
        self.check_like(out, "out", like, "the input")
        check_same_shape(out, "out", like, "the input")
        if out.requires_grad:
            raise ValueError("out requires grad; give a tensor outside of autograd (out.detach()) or none")
        if not out.is_contiguous():
            check_distinct_elements(tuple(out.shape), tuple(out.stride()), 1)
        for role, array in inputs:
            if _tensors_overlap(out, array) and not _same_tensor_memory(out, array):
                raise ValueError(
                    f"out overlaps {role} without being the same tensor; give {role} itself or separate memory"
                )
        return out

    def extent(self, array: Any) -> tuple[int, int]:
        return _extent(array) if array.numel() else (0, 0)

    def overlap(self, a: Any, b: Any) -> bool:
        return _tensors_overlap(a, b)

    def plainly_accepted(self, items: Sequence[Any]) -> bool:
        dtypes, tensor, strided = self.largest_of, self._torch.Tensor, self._torch.strided
        return (
            all([type(a) is tensor and a.dtype in dtypes and a.layout is strided for a in items])  # noqa: C419
            and not any([a.requires_grad for a in items])  # noqa: C419
            and len({a.device for a in items}) <= 1
        )

    def plainly_apart(self, outputs: Any, *inputs: Sequence[Any]) -> bool:
        # A tensor does not tell whether others share its storage.
        return False

    def scalar(self, value: float, like: Any) -> Any:
        return self._torch.tensor(value, dtype=like.dtype, device=like.device)

    def largest(self, array: Any) -> float:
        return self.largest_of[array.dtype]

    def detached(self, array: Any, role: str) -> Any:
        if not array.requires_grad:
            return array
        if self._torch.is_grad_enabled():
            raise ValueError(
                f"{role} requires grad, and gradmark's functions are outside of autograd: its graph would end here"
                f" without a word. Give {role}.detach(), or call within torch.no_grad(); the gradient comes from the"
                " *_backward function"
            )
        return array.detach()

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        return self._torch.no_grad()

    def _accepts(self) -> str:
        return f"the {self.backend} backend takes {', '.join(self.dtypes)}"


def _tensors_overlap(a: Any, b: Any) -> bool:
    if a.device != b.device or a.device.type == "meta" or a.numel() == 0 or b.numel() == 0:
        return False
    first_a, last_a = _extent(a)
    first_b, last_b = _extent(b)
    if first_a >= last_b or first_b >= last_a:
        return False
    return _share_memory(_AddressesOf(a).array(), _AddressesOf(b).array())


def _share_memory(a: Any, b: Any) -> bool:
    """Exactly, but for strides on which that takes longer than a call is worth: they count as overlapping."""
    try:
        return bool(np.shares_memory(a, b, max_work=100_000))  # type: ignore[arg-type]  # NumPy's stubs know two values
    except np.exceptions.TooHardError:
        return True


class _AddressesOf:
    """The addresses of a tensor's elements, on any device, in NumPy's terms: never to be read."""

    def __init__(self, tensor: Any) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "typestr": f"|V{size}",
        }

    def array(self) -> Any:
        return np.asarray(self)


def _extent(tensor: Any) -> tuple[int, int]:
    """First byte and the byte after the last, as torch has no negative strides."""
    if tensor.is_contiguous():
        first = tensor.data_ptr()
        return first, first + tensor.nbytes
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()


def _same_tensor_memory(a: Any, b: Any) -> bool:
    return bool(a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.shape == b.shape)


def _article(kind: type) -> str:
    return f"of type {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
