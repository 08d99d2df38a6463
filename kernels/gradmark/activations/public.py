"""The public functions of an activation: arguments checked once, then the backend's implementation.

An implementation of the activation `f` with parameters p is a pair

    f(x, *p, out) -> out                       f_backward(grad, x, *p, out) -> out

and, where parameters are learnable, f_backward(grad, x, *p, out) -> (out, dp, ...); a seeded one takes the seed
before `out`, an int or None. It may rely on this: the arrays have the same shape, dtype and device and are outside
of autograd; `out` may be the same memory as an input but does not overlap one partly; a fixed parameter is a float; a
learnable one is an array of shape (1,) or (channels,), and so is its gradient; what the row `requires` holds.

Below a thousand elements the checks cost as much as the kernel. So the functions are written out from the row, and
test inline what nearly every call fulfils; `gradmark.arrays` says what is wrong with the others.
"""

from __future__ import annotations

import ctypes
import numbers
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gradmark.arrays import ArrayLibrary, check_same_shape, finite_number
from gradmark.catalog import Activation, Parameter, backward_of
from gradmark.numerics.philox import check_seed
from gradmark.signatures import define


def functions(row: Activation, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Callable[..., Any]]:
    """The forward and the backward function of `row`, by name."""
    backward = backward_of(row.name)
    names = {
        **arrays.names,
        "arrays": arrays,
        "quiet": arrays.quiet,
        "check": arrays.check,
        "check_agreement": check_agreement,
        "check_seed": check_seed,
        "fixed": fixed_parameter,
        "learnable": learnable_parameter,
        "unmet": unmet,
        "forward_kernel": getattr(implementation, row.name),
        "backward_kernel": getattr(implementation, backward),
    }
    return {
        row.name: define(row.name, forward_signature(row), _forward_body(row, arrays), names, _forward_doc(row)),
        backward: define(backward, backward_signature(row), _backward_body(row, arrays), names, _backward_doc(row)),
    }


def forward_signature(row: Activation) -> str:
    """The signature of the forward function."""
    return _signature(row, "x")


def backward_signature(row: Activation) -> str:
    """The signature of the backward function."""
    return _signature(row, "grad", "x")


def check_agreement(array: Any, role: str, x: Any, arrays: ArrayLibrary) -> None:
    """Raise unless `array` has the type, dtype, device and shape of `x`."""
    arrays.check_like(array, role, x, "x")
    check_same_shape(array, role, x, "x")


def fixed_parameter(value: Any, name: str, largest: float) -> float:
    """`value` as a kernel holds it: a float64 where x is one, else a float32. TypeError or ValueError if it is none.

    `largest` is the largest number that is accepted; that of float64 says that x is one.
    """
    number = finite_number(value, name, largest)
    return number if largest == sys.float_info.max else ctypes.c_float(number).value


def learnable_parameter(value: Any, name: str, x: Any, arrays: ArrayLibrary) -> tuple[Any, tuple[int, ...]]:
    """`value` as an array of shape (1,) or (channels,), and the shape that its gradient is to have."""
    if isinstance(value, numbers.Real):  # Scalars of NumPy too, but no array of shape ().
        return arrays.scalar(finite_number(value, name, arrays.largest(x)), x).reshape(1), ()
    try:
        arrays.check_like(value, name, x, "x")
    except TypeError as error:
        raise TypeError(f"{error}; or a real number, one for all channels") from None
    shape = tuple(value.shape)
    channels = x.shape[1] if x.ndim >= 2 else 1
    if shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"{name} has shape {shape}; accepted: () or (1,), one for all, or ({channels},),"
            f" one per channel (axis 1 of x, whose shape is {tuple(x.shape)})"
        )
    return arrays.detached(value, name).reshape(-1), shape


def unmet(operation: str, requirement: str, **parameters: float) -> ValueError:
    """The error of a call whose parameters lack what the row requires."""
    given = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    return ValueError(f"{operation} requires {requirement}, got {given}")


def _signature(row: Activation, *roles: str) -> str:
    seed = ("seed=None",) if row.seeded else ()
    return f"({', '.join([*roles, *map(_declared, row.parameters), '*', *seed, 'out=None'])})"


def _declared(parameter: Parameter) -> str:
    return parameter.name if parameter.default is None else f"{parameter.name}={parameter.default!r}"


def _forward_body(row: Activation, arrays: ArrayLibrary) -> str:
    return "\n".join(
        [
            *_check_input(arrays),
            *_check_parameters(row, arrays),
            *_find_out(row, arrays, "x"),
            *_call(arrays, f"return forward_kernel({_arguments(row, 'x')})"),
        ]
    )


def _backward_body(row: Activation, arrays: ArrayLibrary) -> str:
    gradients = "".join(f", d{p.name}" for p in row.learnable)
    shaped = "".join(f", d{p.name}.reshape(shape_of_{p.name})" for p in row.learnable)
    call = f"backward_kernel({_arguments(row, 'grad', 'x')})"
    return "\n".join(
        [
            *_check_input(arrays),
            f"if not ({arrays.agrees.format('grad', 'x')}):",
            "    check_agreement(grad, 'grad', x, arrays)",
            *_detach(arrays, "grad"),
            *_check_parameters(row, arrays),
            *_find_out(row, arrays, "grad", "x"),
            *_call(arrays, f"out{gradients} = {call}" if row.learnable else f"return {call}"),
            *([f"return out{shaped}"] if row.learnable else []),
        ]
    )


def _check_input(arrays: ArrayLibrary) -> list[str]:
    return [f"if not ({arrays.accepts.format('x')}):", "    check(x, 'x')", *_detach(arrays, "x")]


def _detach(arrays: ArrayLibrary, role: str) -> list[str]:
    return [arrays.detach.format(role)] if arrays.detach else []


def _check_parameters(row: Activation, arrays: ArrayLibrary) -> list[str]:
    lines = []
    if any(not p.learnable for p in row.parameters):
        lines.append("largest = largest_of[x.dtype]")
    for p in row.parameters:
        if p.learnable:
            quick = f"{arrays.alike.format(p.name, 'x')} and {p.name}.ndim == 1"
            quick += f" and ({p.name}.shape == (1,) or {p.name}.shape == x.shape[1:2])"
            lines += [
                f"if {quick}:",
                f"    shape_of_{p.name} = {p.name}.shape",
                *(f"    {line}" for line in _detach(arrays, p.name)),
                "else:",
                f"    {p.name}, shape_of_{p.name} = learnable({p.name}, {p.name!r}, x, arrays)",
            ]
        else:
            largest = f"max(largest, {_FLOAT32_LARGEST!r})" if p.compared else "largest"
            slow = f"type({p.name}) is not float or not -largest <= {p.name} <= largest"
            lines += [f"if {slow}:", f"    {p.name} = fixed({p.name}, {p.name!r}, {largest})"]
    for requirement in row.requires:
        given = ", ".join(f"{p.name}={p.name}" for p in row.parameters)
        lines += [f"if not ({requirement}):", f"    raise unmet({row.name!r}, {requirement!r}, {given})"]
    if row.seeded:
        lines += ["if seed is not None:", "    seed = check_seed(seed)"]
    return lines


_FLOAT32_LARGEST = (2.0 - 2.0**-23) * 2.0**127


def _find_out(row: Activation, arrays: ArrayLibrary, *roles: str) -> list[str]:
    inputs = *roles, *(p.name for p in row.learnable)
    quick = [arrays.agrees.format("out", "x"), arrays.writeable.format("out")]
    quick += [arrays.apart.format("out", role) for role in inputs]
    pairs = "".join(f"({role!r}, {role}), " for role in inputs)
    return [
        "if out is None:",
        "    out = empty_like(x)",
        f"elif not ({' and '.join(quick)}):",
        f"    out = arrays.output(out, x, ({pairs}))",
    ]


def _arguments(row: Activation, *roles: str) -> str:
    return ", ".join([*roles, *(p.name for p in row.parameters), *(["seed"] if row.seeded else []), "out"])


def _call(arrays: ArrayLibrary, statement: str) -> list[str]:
    """The statement, without warnings where NumPy computes."""
    if arrays.backend == "numpy":
        return ["with quiet():", f"    {statement}"]
    return [statement]


def _parameter_docs(row: Activation) -> str:
    entries = []
    for p in row.parameters:
        kind = "float or array of shape (), (1,) or (channels,), axis 1 of x" if p.learnable else "float"
        default = "" if p.default is None else f" Default: {p.default!r}."
        entries.append(f"{p.name} : {kind}\n    {p.doc[0].upper()}{p.doc[1:]}.{default}\n")
    return "".join(entries)


_SEED = """\
seed : int, optional
    None is evaluation: one slope, (lower + upper) / 2. An int, 0 <= seed < 2**64, is training: element i of x (in C
    order) has, where it is not positive, the slope lower + (upper - lower) u, with u the element i of
    `uniform(x.shape, seed=seed)`: the same in every backend{}
"""


def _seed_doc(row: Activation, end: str) -> str:
    return _SEED.format(end) if row.seeded else ""


def _raises(row: Activation) -> str:
    required = "".join(f" Parameters for which `{requirement}` does not hold." for requirement in row.requires)
    return f"""\
Raises
------
TypeError
    An array of another library or of a dtype that the backend lacks; the message lists what it takes.
ValueError
    Shapes or devices that differ, a learnable parameter of the wrong length, an `out` that is read-only, of
    another shape, or that overlaps an input partly.{required}
"""


def _source(row: Activation) -> str:
    conventions = f"\nConventions\n-----------\n{row.conventions}\n" if row.conventions else ""
    return f"""{conventions}
Source
------
{row.source}
"""


def _forward_doc(row: Activation) -> str:
    return f"""y = {row.formula}, elementwise.

Parameters
----------
x : array
    The input, of any shape.
{_parameter_docs(row)}{_seed_doc(row, ".")}out : array, optional
    Where the result goes: shape, dtype and device of x. May be x itself.

Returns
-------
y : array
    Shape, dtype and device of x.

{_raises(row)}{_source(row)}"""


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
{_parameter_docs(row)}{_seed_doc(row, ", and that of the forward pass.")}out : array, optional
    Where dx goes. May be grad or x itself.

Returns
-------
dx : array
    Shape, dtype and device of x.
{more}
{_raises(row)}{_source(row)}"""
