"""Functions of one array library, served by a backend of the other: NumPy arrays by torch, tensors by numpy and numba.

Nothing is copied. Arguments go over as views of the same memory and results come back so; `out` is the very array that
was given. What has no view there (negative strides in torch, a lazily negated tensor in NumPy) is given to
another function where there is one, and is a ValueError otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradmark.arrays import ArrayLibrary, NumpyArrays, TorchArrays

Function = Callable[..., Any]


def arrays_by_torch(
    function: Function, roles: Sequence[str], checks: NumpyArrays, otherwise: Function | None
) -> Function:
    """A function of NumPy arrays from one of tensors.

    Parameters
    ----------
    function : callable
        A function of the torch backend.
    roles : sequence of str
        The names of its parameters, in order.
    checks : NumpyArrays
        Of the dtypes that the torch backend takes and NumPy has.
    otherwise : callable, optional
        A function of NumPy arrays: it serves calls with arrays that torch has no view of.
    """
    import torch

    return _crossing(function, roles, functools.partial(_as_tensor, torch, checks), _as_array, checks, otherwise)


def tensors_by_numpy(
    function: Function, roles: Sequence[str], checks: TorchArrays, otherwise: Function | None
) -> Function:
    """A function of CPU tensors from one of NumPy arrays.

    Parameters
    ----------
    function : callable
        A function of the backend numpy or numba.
    roles : sequence of str
        The names of its parameters, in order.
    checks : TorchArrays
        Of the dtypes that this backend takes.
    otherwise : callable, optional
        A function of tensors: it serves calls with tensors that NumPy has no view of.
    """
    import torch

    return _crossing(function, roles, functools.partial(_as_view, torch, checks), torch.from_numpy, checks, otherwise)


class _NoViewError(ValueError):
    """The other library cannot have this array without a copy."""


def _crossing(
    function: Function,
    roles: Sequence[str],
    cross: Callable[[Any, str], Any],
    back: Callable[[Any], Any],
    checks: ArrayLibrary,
    otherwise: Function | None,
) -> Function:
    def served(*arguments: Any, out: Any = None, **keywords: Any) -> Any:
        try:
            given = [_crossed(value, role, cross) for role, value in zip(roles, arguments, strict=False)]
            named = {role: _crossed(value, role, cross) for role, value in keywords.items()}
            target = None if out is None else _crossed_out(out, arguments, given, cross, checks)
        except _NoViewError:
            if otherwise is None:
                raise
            return otherwise(*arguments, out=out, **keywords)
        result = function(*given, out=target, **named)
        return _brought_back(result, back) if out is None else _put_in_place(result, target, out, back)

    return served


def _crossed(value: Any, role: str, cross: Callable[[Any, str], Any]) -> Any:
    if isinstance(value, list | tuple):
        return [cross(item, f"{role}[{i}]") for i, item in enumerate(value)]
    return cross(value, role)


def _crossed_out(
    out: Any, arguments: Sequence[Any], given: Sequence[Any], cross: Callable[[Any, str], Any], checks: ArrayLibrary
) -> Any:
    """The view of `out`, the same object as that of an input where `out` is this input."""
    for argument, view in zip(arguments, given, strict=False):
        if out is argument:
            return view
    if isinstance(out, list | tuple):
        return [_crossed_out(item, (), (), cross, checks) for item in out]
    if hasattr(out, "dtype"):
        checks.output(out, out, ())
    return cross(out, "out")


def _brought_back(result: Any, back: Callable[[Any], Any]) -> Any:
    if result is None:
        return None
    if isinstance(result, tuple):
        items = [_brought_back(item, back) for item in result]
        # A named tuple takes its fields one by one.
        return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
    if isinstance(result, list):
        return [_brought_back(item, back) for item in result]
    return back(result)


def _put_in_place(result: Any, target: Any, out: Any, back: Callable[[Any], Any]) -> Any:
    """The result, with what was written to the views of `out` as `out` itself."""
    given = dict(zip(map(id, target), out, strict=True)) if isinstance(target, list) else {id(target): out}

    def found(item: Any) -> Any:
        return given[id(item)] if id(item) in given else back(item)

    return _brought_back(result, found)


def _as_view(torch: Any, checks: TorchArrays, value: Any, role: str) -> Any:
    """A tensor as a NumPy array; other values as they are."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, np.ndarray):
            raise TypeError(_mixed(role, value, "torch.Tensor", "torch.from_numpy"))
        return value
    if value.requires_grad or value.layout is not torch.strided or value.dtype not in checks.largest_of:
        checks.check(value, role)
        value = value.detach()
    if value.device.type != "cpu":
        raise ValueError(
            f"{role} is on {value.device}, other arguments are on the CPU; nothing is copied between devices silently:"
            f" move one with .to(device)"
        )
    try:
        return value.numpy()
    except (RuntimeError, TypeError) as error:
        raise _NoViewError(
            f"{role} cannot be had by the {checks.backend} backend: {_first_sentence(error)}; use the torch backend"
        ) from error


def _as_tensor(torch: Any, checks: NumpyArrays, value: Any, role: str) -> Any:
    """A NumPy array as a tensor; other values as they are."""
    if type(value) is not np.ndarray:
        if isinstance(value, torch.Tensor):
            raise TypeError(_mixed(role, value, "numpy.ndarray", "tensor.numpy()"))
        if isinstance(value, np.ndarray):
            checks.check(value, role)
        return value
    if not value.flags.behaved:
        if not value.flags.aligned:
            raise _NoViewError(
                f"{role} is not aligned to its elements, and torch has no such tensors; give {role}.copy(), or use"
                " another backend"
            )
        # A tensor cannot be read-only, and torch would warn of it. Nothing writes to what is no `out`.
        value = np.asarray(_Writeable(value))
    try:
        return torch.from_numpy(value)
    except (ValueError, TypeError) as error:
        checks.check(value, role)
        raise _NoViewError(
            f"{role} cannot be had by the torch backend: {_first_sentence(error)}; give {role}.copy(), or use another"
            " backend"
        ) from error


def _as_array(tensor: Any) -> Any:
    return tensor.numpy()


class _Writeable:
    """The memory of a read-only array, in NumPy's terms, without saying that it is read-only."""

    def __init__(self, array: Any) -> None:
        self._array = array  # Kept alive as long as this is.
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _mixed(role: str, value: Any, expected: str, conversion: str) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return (
        f"{role} is of type {kind}, other arguments are of type {expected}; give all of one type"
        f" ({conversion} converts without a copy)"
    )


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].split("\n")[0].rstrip(".")
