"""Functions of one array library, served by a backend of the other: NumPy arrays by torch, tensors by numpy and numba.

Nothing is copied. Arguments go over as views of the same memory and results come back so; `out` is the very array that
was given. What has no view there (negative strides in torch, a lazily negated tensor in NumPy) is given to another
function where there is one, and is a ValueError otherwise.

On a small array the crossing costs more than the kernel. So the functions are written out from their signatures for the
arguments of nearly every call; `_served_slowly` serves the others, or says what is wrong with them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradmark.arrays import ArrayLibrary, NumpyArrays, TorchArrays
from gradmark.signatures import define

Function = Callable[..., Any]


def arrays_by_torch(function: Function, checks: NumpyArrays, otherwise: Function | None) -> Function:
    """A function of NumPy arrays from one of tensors, with its signature.

    Parameters
    ----------
    function : callable
        A function of the torch backend.
    checks : NumpyArrays
        Of the dtypes that the torch backend takes and NumPy has.
    otherwise : callable, optional
        A function of NumPy arrays: it serves calls with arrays that torch has no view of.
    """
    import torch

    # Those that are read-only or not aligned have no view without more ado.
    view = "from_numpy({0}) if type({0}) is array_type and {0}.flags.behaved else "
    cross = functools.partial(_as_tensor, torch, checks)
    names = {"array_type": np.ndarray, "result_type": torch.Tensor, "from_numpy": torch.from_numpy}
    return _crossing(function, view, "{0}.numpy()", names, cross, _as_array, checks, otherwise)


def tensors_by_numpy(function: Function, checks: TorchArrays, otherwise: Function | None) -> Function:
    """A function of CPU tensors from one of NumPy arrays, with its signature.

    Parameters
    ----------
    function : callable
        A function of the backend numpy or numba.
    checks : TorchArrays
        Of the dtypes that this backend takes.
    otherwise : callable, optional
        A function of tensors: it serves calls with tensors that NumPy has no view of.
    """
    import torch

    # Of a tensor that is on another device, sparse or lazily negated, torch gives no array.
    view = "{0}.numpy() if type({0}) is array_type and not {0}.requires_grad else "
    cross = functools.partial(_as_view, torch, checks)
    names = {"array_type": torch.Tensor, "result_type": np.ndarray, "from_numpy": torch.from_numpy}
    return _crossing(function, view, "from_numpy({0})", names, cross, torch.from_numpy, checks, otherwise)


class _NoViewError(ValueError):
    """The other library cannot have this array without a copy."""


def _crossing(
    function: Function,
    view: str,
    back: str,
    names: Mapping[str, Any],
    cross: Callable[[Any, str], Any],
    cross_back: Callable[[Any], Any],
    checks: ArrayLibrary,
    otherwise: Function | None,
) -> Function:
    """The function that takes views, calls, and brings the result back.

    `view` is an expression up to its `else`: of an argument {0}, quick and true of nearly every array; `back` one of
    the result {0}.
    """
    signature = inspect.signature(function)
    given = [name for name in signature.parameters if name != "out"]
    in_place = " ".join(f"{name}_ if out is {name} else" for name in given)
    keywords = {p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    passed = [f"{name}={name}_" if name in keywords else f"{name}_" for name in signature.parameters]
    again = [f"{name}={name}" if name in keywords else name for name in signature.parameters]
    body = [
        "try:",
        *(f"    {name}_ = {view.format(name)}cross({name}, {name!r})" for name in given),
        f"    out_ = None if out is None else {in_place} {view.format('out')}undecided()",
        "except (AttributeError, RuntimeError, TypeError, ValueError):",
        "    quick = False",
        "else:",
        "    quick = True",
        # Outside of the handler: an error is then not shown as one that happened while another was handled.
        "if not quick:",
        f"    return slowly({', '.join(again)})",
        f"result = function({', '.join(passed)})",
        "if type(result) is result_type:",
        f"    return {back.format('result')} if out is None else out",
        "return bring_back(result, out_, out)",
    ]
    roles = [name for name in given if name not in keywords]
    slowly = functools.partial(_served_slowly, function, roles, cross, cross_back, checks, otherwise)
    names = {
        **names,
        "cross": functools.partial(_crossed, cross),
        "undecided": _undecided,
        "function": function,
        "slowly": slowly,
        "bring_back": functools.partial(_brought_back, cross_back),
    }
    return define(function.__name__, str(signature), "\n".join(body), names, function.__doc__ or "")


def _undecided() -> None:
    raise TypeError("no plain array: the slow way decides")


def _served_slowly(
    function: Function,
    roles: Sequence[str],
    cross: Callable[[Any, str], Any],
    cross_back: Callable[[Any], Any],
    checks: ArrayLibrary,
    otherwise: Function | None,
    *arguments: Any,
    out: Any = None,
    **keywords: Any,
) -> Any:
    """The same for any arguments."""
    try:
        given = [_crossed(cross, value, role) for role, value in zip(roles, arguments, strict=True)]
        named = {role: _crossed(cross, value, role) for role, value in keywords.items()}
        target = None if out is None else _crossed_out(out, arguments, given, cross, checks)
    except _NoViewError:
        if otherwise is None:
            raise
        return otherwise(*arguments, out=out, **keywords)
    return _brought_back(cross_back, function(*given, out=target, **named), target, out)


def _crossed(cross: Callable[[Any, str], Any], value: Any, role: str) -> Any:
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


def _brought_back(cross_back: Callable[[Any], Any], result: Any, target: Any, out: Any) -> Any:
    """The result, with what was written to the views of `out` as `out` itself."""
    if out is None:
        written = {}
    elif isinstance(target, list):
        written = dict(zip(map(id, target), out, strict=True))
    else:
        written = {id(target): out}

    def found(item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, tuple):
            items = map(found, item)
            # A named tuple takes its fields one by one.
            return type(item)(*items) if hasattr(item, "_fields") else tuple(items)
        if isinstance(item, list):
            return list(map(found, item))
        return written[id(item)] if id(item) in written else cross_back(item)

    return found(result)


def _as_view(torch: Any, checks: TorchArrays, value: Any, role: str) -> Any:
    """A tensor as a NumPy array; other values as they are."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, np.ndarray):
            raise TypeError(_mixed(role, value, "torch.Tensor", "torch.from_numpy"))
        return value
    if value.requires_grad or value.layout is not torch.strided or value.dtype not in checks.largest_of:
        checks.check(value, role)
        value = value.detach()
    if not value.is_cpu:
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
