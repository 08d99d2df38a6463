"""The public functions of a gated unit: arguments checked once, then the backend's implementation.

An implementation of the unit `f` is a pair

    f(x, axis, gate_last, out) -> out              f_backward(grad, x, axis, gate_last, out) -> out

It may rely on this: 0 <= axis < x.ndim, and x has an even length there; the arrays have the same dtype and device and
are outside of autograd; grad, and the forward pass's `out`, have half of that length, and share no memory with what
has all of it; the backward pass's `out` has the shape of x and may be its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from gradmark.arrays import ArrayLibrary, check_axis, check_flag, check_same_shape
from gradmark.catalog import Gated, backward_of
from gradmark.signatures import define


def functions(row: Gated, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Callable[..., Any]]:
    """The forward and the backward function of `row`, by name."""
    backward = backward_of(row.name)
    names = {
        **arrays.names,
        "arrays": arrays,
        "quiet": arrays.quiet,
        "check": arrays.check,
        "check_flag": check_flag,
        "check_half": check_half,
        "first_half": first_half,
        "forward_kernel": getattr(implementation, row.name),
        "backward_kernel": getattr(implementation, backward),
    }
    return {
        row.name: define(row.name, _signature(row, "x"), _forward_body(row, arrays), names, _forward_doc(row)),
        backward: define(
            backward, _signature(row, "grad", "x"), _backward_body(row, arrays), names, _backward_doc(row)
        ),
    }


def first_half(x: Any, axis: Any, operation: str) -> tuple[int, Any]:
    """The axis counted from the front, and the first half of x along it; TypeError or ValueError if there is none."""
    shape = x.shape
    usual = type(axis) is int and axis == -1 and shape
    axis = len(shape) - 1 if usual else check_axis(axis, x, operation)
    length = shape[axis]
    if length % 2:
        raise ValueError(
            f"x has length {length} along axis {axis} (its shape is {tuple(x.shape)}); {operation} takes an even one,"
            " a gate and a value of the same shape"
        )
    return axis, x[..., : length // 2] if axis == len(shape) - 1 else x[(*(slice(None),) * axis, slice(length // 2))]


def check_half(array: Any, role: str, half: Any, arrays: ArrayLibrary) -> None:
    """Raise unless `array` has the type, dtype and device of x, and the shape of one of its halves."""
    arrays.check_like(array, role, half, "x")
    check_same_shape(array, role, half, "the result")


def _signature(row: Gated, *roles: str) -> str:
    return f"({', '.join(roles)}, *, axis=-1, gate_last={row.gate_last!r}, out=None)"


def _forward_body(row: Gated, arrays: ArrayLibrary) -> str:
    return "\n".join(
        [
            *_check_input(row, arrays),
            "if out is None:",
            "    out = empty_like(half)",
            "else:",
            f"    if not ({arrays.agrees.format('out', 'half')}):",
            "        check_half(out, 'out', half, arrays)",
            "    out = arrays.output(out, half, (('x', x),))",
            *_call("return forward_kernel(x, axis, gate_last, out)", arrays),
        ]
    )


def _backward_body(row: Gated, arrays: ArrayLibrary) -> str:
    return "\n".join(
        [
            *_check_input(row, arrays),
            f"if not ({arrays.agrees.format('grad', 'half')}):",
            "    check_half(grad, 'grad', half, arrays)",
            *_detach(arrays, "grad"),
            "if out is None:",
            "    out = empty_like(x)",
            "else:",
            "    out = arrays.output(out, x, (('grad', grad), ('x', x)))",
            *_call("return backward_kernel(grad, x, axis, gate_last, out)", arrays),
        ]
    )


def _check_input(row: Gated, arrays: ArrayLibrary) -> list[str]:
    return [
        f"if not ({arrays.accepts.format('x')}):",
        "    check(x, 'x')",
        *_detach(arrays, "x"),
        f"axis, half = first_half(x, axis, {row.name!r})",
        "if gate_last is not True and gate_last is not False:",
        "    gate_last = check_flag(gate_last, 'gate_last')",
    ]


def _detach(arrays: ArrayLibrary, role: str) -> list[str]:
    return [arrays.detach.format(role)] if arrays.detach else []


def _call(statement: str, arrays: ArrayLibrary) -> list[str]:
    """The statement, without warnings where NumPy computes."""
    return ["with quiet():", f"    {statement}"] if arrays.backend == "numpy" else [statement]


_AXIS = """\
axis : int
    The axis that is halved. Default: -1, the last.
gate_last : bool
    Whether the gate a is the second half, and the value b the first. Default: {}.
"""

_RAISES = """\
Raises
------
TypeError
    An array of another library or of a dtype that the backend lacks (the message lists what it takes), an axis that is
    no int, a gate_last that is no bool.
ValueError
    No such axis, an odd length along it, shapes or devices that differ, an `out` that is read-only, of another shape,
    or that overlaps an input partly.
"""


def _forward_doc(row: Gated) -> str:
    return f"""y = {row.gate}(a) b, elementwise, with a and b the halves of x along an axis.

Parameters
----------
x : array
    The input, of an even length along the axis.
{_AXIS.format(row.gate_last)}out : array, optional
    Where the result goes: shape of y, dtype and device of x. Shares no memory with x.

Returns
-------
y : array
    Shape of x but half as long along the axis, dtype and device of x.

{_RAISES}{_source(row)}"""


def _backward_doc(row: Gated) -> str:
    return f"""dx, of which the half of the gate is grad b f'(a) and that of the value grad f(a), with f = {row.gate}.

Parameters
----------
grad : array
    The gradient with respect to y; shape of y, dtype and device of x.
x : array
    The input of the forward pass, which must keep: {", ".join(row.saved)}.
{_AXIS.format(row.gate_last)}out : array, optional
    Where dx goes. May be x itself.

Returns
-------
dx : array
    Shape, dtype and device of x.

{_RAISES}{_source(row)}"""


def _source(row: Gated) -> str:
    return f"""
Conventions
-----------
{row.conventions}

Source
------
{row.source}

Examples
--------
>>> import numpy as np, gradmark
>>> gradmark.backend("numpy").{row.name}(np.array([1.0, -2.0, 3.0, 4.0])).shape
(2,)
"""
