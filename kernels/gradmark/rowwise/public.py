"""The public functions of a row-wise operation: arguments checked once, then the backend's implementation.

An implementation of the operation `f` that saves y is a pair

    f(x, axis, out) -> out                         f_backward(grad, y, axis, out) -> out

and of the seeded one, which saves x,

    f(x, seed, tau, hard, axis, out) -> out        f_backward(grad, x, seed, tau, axis, out) -> out

It may rely on this: 0 <= axis < ndim; the arrays have the same shape, dtype and device, are outside of autograd and
are not empty along the axis; `out` may be the same memory as an input but does not overlap one partly; tau is a float
for which the row's `requires` hold.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from gradmark.activations.public import fixed_parameter, unmet
from gradmark.arrays import ArrayLibrary, check_axis, check_flag, check_same_shape
from gradmark.catalog import Parameter, Rowwise, backward_of
from gradmark.numerics.philox import check_seed
from gradmark.signatures import define


def functions(row: Rowwise, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Callable[..., Any]]:
    """The forward and the backward function of `row`, by name."""
    backward = backward_of(row.name)
    (saved,) = row.saved
    names = {
        **arrays.names,
        "arrays": arrays,
        "quiet": arrays.quiet,
        "check": arrays.check,
        "check_flag": check_flag,
        "check_gradient": check_gradient,
        "check_seed": check_seed,
        "fixed": fixed_parameter,
        "row_axis": row_axis,
        "unmet": unmet,
        "forward_kernel": getattr(implementation, row.name),
        "backward_kernel": getattr(implementation, backward),
    }
    forward_body = _body(row, arrays, "forward_kernel", ("x",), _arguments(row, hard=True))
    backward_body = _body(row, arrays, "backward_kernel", ("grad", saved), _arguments(row, hard=False))
    return {
        row.name: define(row.name, _signature(row, "x", hard=True), forward_body, names, _forward_doc(row)),
        backward: define(
            backward, _signature(row, "grad", saved, hard=False), backward_body, names, _backward_doc(row, saved)
        ),
    }


def row_axis(axis: Any, array: Any, role: str, operation: str) -> int:
    """The axis counted from the front; TypeError or ValueError unless `array` has it, and elements along it."""
    shape = array.shape
    usual = type(axis) is int and axis == -1 and shape
    found: int = len(shape) - 1 if usual else check_axis(axis, array, operation)
    if shape[found] == 0:
        raise ValueError(
            f"{role} has length 0 along axis {found} (its shape is {tuple(array.shape)}); {operation} needs at least"
            " one element there"
        )
    return found


def check_gradient(grad: Any, saved: Any, role: str, arrays: ArrayLibrary) -> None:
    """Raise unless `grad` has the type, dtype, device and shape of what is saved."""
    arrays.check_like(grad, "grad", saved, role)
    check_same_shape(grad, "grad", saved, role)


def _arguments(row: Rowwise, *, hard: bool) -> list[str]:
    """The names of what stands between the arrays and the axis."""
    if not row.seeded:
        return []
    return ["seed", *(p.name for p in row.parameters), *(["hard"] if hard else [])]


def _signature(row: Rowwise, *roles: str, hard: bool) -> str:
    defaults = {p.name: f"={p.default!r}" for p in row.parameters} | {"hard": "=False", "seed": ""}
    keywords = [name + defaults[name] for name in _arguments(row, hard=hard)]
    return f"({', '.join([*roles, '*', *keywords, 'axis=-1', 'out=None'])})"


def _body(row: Rowwise, arrays: ArrayLibrary, kernel: str, roles: tuple[str, ...], arguments: list[str]) -> str:
    like = roles[-1]
    lines = [f"if not ({arrays.accepts.format(like)}):", f"    check({like}, {like!r})", *_detach(arrays, like)]
    if "grad" in roles:
        lines += [
            f"if not ({arrays.agrees.format('grad', like)}):",
            f"    check_gradient(grad, {like}, {like!r}, arrays)",
            *_detach(arrays, "grad"),
        ]
    lines += [
        *_check_arguments(row, arguments, like),
        f"axis = row_axis(axis, {like}, {like!r}, {row.name!r})",
        "if out is None:",
        f"    out = empty_like({like})",
        "else:",
        f"    out = arrays.output(out, {like}, ({''.join(f'({role!r}, {role}), ' for role in roles)}))",
    ]
    call = f"return {kernel}({', '.join([*roles, *arguments, 'axis', 'out'])})"
    # NumPy computes in its own backend, and beside the kernels of the seeded operation.
    if arrays.backend == "numpy" or row.seeded:
        return "\n".join([*lines, "with quiet():", f"    {call}"])
    return "\n".join([*lines, call])


def _check_arguments(row: Rowwise, arguments: list[str], like: str) -> list[str]:
    if not arguments:
        return []
    lines = ["seed = check_seed(seed)"]
    lines += [f"{p.name} = fixed({p.name}, {p.name!r}, arrays.largest({like}))" for p in row.parameters]
    for requirement in row.requires:
        given = ", ".join(f"{p.name}={p.name}" for p in row.parameters)
        lines += [f"if not ({requirement}):", f"    raise unmet({row.name!r}, {requirement!r}, {given})"]
    if "hard" in arguments:
        lines += ["hard = check_flag(hard, 'hard')"]
    return lines


def _detach(arrays: ArrayLibrary, role: str) -> list[str]:
    return [arrays.detach.format(role)] if arrays.detach else []


_SEED = """\
seed : int
    0 <= seed < 2**64. Element i of the noise n, in C order, depends on the seed and on i alone; backends agree to a
    few ULP{}
"""

_HARD = """\
hard : bool
    Whether y is 1 at the first of the largest elements of a row and 0 elsewhere. The gradient is the same in both
    cases (straight-through). Default: False.
"""


def _argument_docs(row: Rowwise, *, hard: bool) -> str:
    if not row.seeded:
        return ""
    seed = _SEED.format("." if hard else "; that of the forward pass.")
    return seed + "".join(map(_parameter_doc, row.parameters)) + (_HARD if hard else "")


def _parameter_doc(parameter: Parameter) -> str:
    doc = parameter.doc[0].upper() + parameter.doc[1:]
    return f"{parameter.name} : float\n    {doc}. Default: {parameter.default!r}.\n"


def _raises(row: Rowwise) -> str:
    required = "".join(f" Parameters for which `{requirement}` does not hold." for requirement in row.requires)
    seed = ", a seed or an option of another type" if row.seeded else ""
    return f"""\
Raises
------
TypeError
    An array of another library or of a dtype that the backend lacks (the message lists what it takes), an axis that is
    no int{seed}.
ValueError
    No such axis, no elements along it, shapes or devices that differ, an `out` that is read-only, of another shape, or
    that overlaps an input partly.{required}
"""


def _limit(row: Rowwise) -> str:
    return " x / tau must not overflow: where it does, results are undefined." if row.seeded else ""


def _forward_doc(row: Rowwise) -> str:
    noise = ", with n the noise -log(-log(v)), v uniform in (0, 1)" if row.seeded else ""
    return f"""y = {row.formula}, of each row along an axis{noise}.

Parameters
----------
x : array
    The input, with at least one element along the axis. -inf masks an element.{_limit(row)}
{_argument_docs(row, hard=True)}axis : int
    The axis of the rows. Default: -1, the last.
out : array, optional
    Where the result goes: shape, dtype and device of x. May be x itself.

Returns
-------
y : array
    Shape, dtype and device of x. NaN in all of a row that holds NaN or +inf, or nothing but -inf.

{_raises(row)}{_source(row)}"""


def _backward_doc(row: Rowwise, saved: str) -> str:
    which = "result" if saved == "y" else "input"
    again = " y is computed again." if saved == "x" else ""
    return f"""dx = {row.gradient}, of each row along an axis, with g = grad.{again}

Parameters
----------
grad : array
    The gradient with respect to y; shape, dtype and device of {saved}.
{saved} : array
    The {which} of the forward pass.
{_argument_docs(row, hard=False)}axis : int
    The axis of the rows. Default: -1, the last.
out : array, optional
    Where dx goes. May be grad or {saved} itself.

Returns
-------
dx : array
    Shape, dtype and device of {saved}.

{_raises(row)}{_source(row)}"""


def _source(row: Rowwise) -> str:
    conventions = f"\nConventions\n-----------\n{row.conventions}\n" if row.conventions else ""
    seed = ", seed=0" if row.seeded else ""
    return f"""{conventions}
Source
------
{row.source}

Examples
--------
>>> import numpy as np, gradmark
>>> gradmark.backend("numpy").{row.name}(np.array([[1.0, 2.0], [3.0, -np.inf]]){seed}).shape
(2, 2)
"""
