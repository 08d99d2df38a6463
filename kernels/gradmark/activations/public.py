"""The public functions of an activation: arguments checked once, then the backend's implementation.

An implementation of the activation `f` with parameters p is a pair

    f(x, *p, out) -> out                       f_backward(grad, x, *p, out) -> out

and, where parameters are learnable, f_backward(grad, x, *p, out) -> (out, dp, ...). It may rely on this: the
arrays have the same shape, dtype and device; `out` may be the same memory as an input but does not overlap one
partly; a fixed parameter is a float; a learnable one is an array of shape (1,) or (channels,), and so is its
gradient.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gradmark.arrays import ArrayLibrary, check_same_shape, finite_number
from gradmark.catalog import Activation, Parameter, backward_of
from gradmark.signatures import define


def functions(row: Activation, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Callable[..., Any]]:
    """The forward and the backward function of `row`, by name."""
    backward = backward_of(row.name)
    names = {
        "arrays": arrays,
        "quiet": arrays.quiet,
        "check_same_shape": check_same_shape,
        "fixed": finite_number,
        "learnable": learnable_parameter,
        "forward_kernel": getattr(implementation, row.name),
        "backward_kernel": getattr(implementation, backward),
    }
    return {
        row.name: define(row.name, forward_signature(row), _forward_body(row), names, _forward_doc(row)),
        backward: define(backward, backward_signature(row), _backward_body(row), names, _backward_doc(row)),
    }


def forward_signature(row: Activation) -> str:
    """The signature of the forward function."""
    return f"({', '.join(['x', *map(_declared, row.parameters), '*', 'out=None'])})"


def backward_signature(row: Activation) -> str:
    """The signature of the backward function."""
    return f"({', '.join(['grad', 'x', *map(_declared, row.parameters), '*', 'out=None'])})"


def learnable_parameter(value: Any, name: str, x: Any, arrays: ArrayLibrary) -> tuple[Any, tuple[int, ...]]:
    """`value` as an array of shape (1,) or (channels,), and the shape that its gradient is to have."""
    if isinstance(value, numbers.Real) and not hasattr(value, "dtype"):
        return arrays.scalar(finite_number(value, name, arrays.largest(x)), x).reshape(1), ()
    arrays.check_like(value, name, x, "x")
    shape = tuple(value.shape)
    channels = x.shape[1] if x.ndim >= 2 else 1
    if shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"{name} has shape {shape}; accepted: () or (1,), one for all, or ({channels},),"
            f" one per channel (axis 1 of x, whose shape is {tuple(x.shape)})"
        )
    return value.reshape(-1), shape


def _declared(parameter: Parameter) -> str:
    return parameter.name if parameter.default is None else f"{parameter.name}={parameter.default!r}"


def _check_parameters(row: Activation) -> list[str]:
    lines = []
    for p in row.parameters:
        if p.learnable:
            lines.append(f"{p.name}, shape_of_{p.name} = learnable({p.name}, {p.name!r}, x, arrays)")
        else:
            lines.append(f"{p.name} = fixed({p.name}, {p.name!r}, arrays.largest(x))")
    return lines


def _inputs(row: Activation, *roles: str) -> str:
    pairs = [f"({role!r}, {role})" for role in (*roles, *(p.name for p in row.learnable))]
    return f"({', '.join(pairs)},)"


def _forward_body(row: Activation) -> str:
    arguments = ", ".join(["x", *(p.name for p in row.parameters), "out"])
    lines = [
        "arrays.check(x, 'x')",
        *_check_parameters(row),
        f"out = arrays.output(out, x, {_inputs(row, 'x')})",
        "with quiet():",
        f"    return forward_kernel({arguments})",
    ]
    return "\n".join(lines)


def _backward_body(row: Activation) -> str:
    arguments = ", ".join(["grad", "x", *(p.name for p in row.parameters), "out"])
    lines = [
        "arrays.check(x, 'x')",
        "arrays.check_like(grad, 'grad', x, 'x')",
        "check_same_shape(grad, 'grad', x, 'x')",
        *_check_parameters(row),
        f"out = arrays.output(out, x, {_inputs(row, 'grad', 'x')})",
        "with quiet():",
    ]
    if not row.learnable:
        return "\n".join([*lines, f"    return backward_kernel({arguments})"])
    gradients = ", ".join(f"d{p.name}" for p in row.learnable)
    shaped = ", ".join(f"d{p.name}.reshape(shape_of_{p.name})" for p in row.learnable)
    return "\n".join([*lines, f"    out, {gradients} = backward_kernel({arguments})", f"return out, {shaped}"])


def _parameter_docs(row: Activation) -> str:
    entries = []
    for p in row.parameters:
        kind = "float or array of shape (), (1,) or (channels,)" if p.learnable else "float"
        entries.append(f"{p.name} : {kind}\n    {p.doc[0].upper()}{p.doc[1:]}. Default: {p.default!r}.\n")
    return "".join(entries)


_RAISES = """\
Raises
------
TypeError
    An array of another library or of a dtype that the backend lacks; the message lists what it takes.
ValueError
    Shapes or devices that differ, a learnable parameter of the wrong length, an `out` that is read-only, of
    another shape, or that overlaps an input partly.
"""


def _forward_doc(row: Activation) -> str:
    return f"""y = {row.formula}, elementwise.

Parameters
----------
x : array
    The input, of any shape.
{_parameter_docs(row)}out : array, optional
    Where the result goes: shape, dtype and device of x. May be x itself.

Returns
-------
y : array
    Shape, dtype and device of x.

{_RAISES}
Source
------
{row.source}
"""


def _backward_doc(row: Activation) -> str:
    more = "".join(
        f"d{p.name} : array\n    Σ grad · ({p.partial}), of the shape of {p.name} (of () for a number).\n"
        for p in row.learnable
    )
    return f"""dx = grad · f'(x), f'(x) = {row.derivative}, elementwise.

Parameters
----------
grad : array
    The gradient with respect to y; shape, dtype and device of x.
x : array
    The input of the forward pass, which must keep: {", ".join(row.saved)}.
{_parameter_docs(row)}out : array, optional
    Where dx goes. May be grad or x itself.

Returns
-------
dx : array
    Shape, dtype and device of x.
{more}
{_RAISES}
Source
------
{row.source}
"""
