"""Operations on tensors outside of autograd: which backend serves a call, and the call itself.

A kernel takes its tensors first, then numbers, in the order of `arguments`. NumPy and Numba work on the memory of the
tensors themselves, through NumPy's view of them; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gradmark import dispatch
from gradmark.backends import DTYPES, backend, why_unusable
from gradmark.catalog import BACKWARD, FORWARD, Activation, Gated, Pass, Rowwise, backward_of
from gradmark.gated.public import first_half
from gradmark.signatures import define

Row = Activation | Gated | Rowwise
Kernel = Callable[..., Any]


def backend_of(operation: str, operation_pass: Pass, tensor: torch.Tensor) -> str:
    """The backend that serves a call whose input, or whose saved result, is `tensor`, as `gradmark.dispatch` chooses.

    Parameters
    ----------
    operation, operation_pass : str
        A row of the catalog, and "forward" or "backward".
    tensor : torch.Tensor
        What decides: its dtype, device, layout and size.

    Returns
    -------
    str
        "numpy" or "numba" for tensors on the CPU; "torch" for all others, also those that nobody takes: its errors say
        what is wrong. Nobody but torch is chosen for a tensor that is not contiguous, unless it is asked for.
    """
    if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        return "torch"
    plain = tensor.is_contiguous() and not tensor.is_neg()
    return dispatch.backend_of_tensor(operation, operation_pass, tensor, plain=plain)


_DTYPES = frozenset(getattr(torch, name) for name in DTYPES["torch"])


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a kernel, and of the operator of torch.library that calls it."""

    name: str
    kind: str
    """Its type as torch.library writes it; "Tensor?" is a seed in a tensor of its own, or None."""
    forward_only: bool = False
    """Whether the backward function of the backends does without it."""

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor; those come first."""
        return self.kind.startswith("Tensor")


def arguments(row: Row, operation_pass: Pass) -> tuple[Argument, ...]:
    """The arguments of the kernel of a row: what is differentiated, a seed, then numbers."""
    if operation_pass == FORWARD:
        return Argument("x", "Tensor"), *_more(row)
    return Argument("grad", "Tensor"), Argument(saved_of(row), "Tensor"), *_more(row)


def saved_of(row: Row) -> str:
    """What backward takes beside the gradient: "x" or "y"."""
    (saved,) = row.saved
    return saved


def _more(row: Row) -> tuple[Argument, ...]:
    if isinstance(row, Gated):
        return Argument("axis", "int"), Argument("gate_last", "bool")
    seed = [Argument("seed", "Tensor?")] if row.seeded else []
    if isinstance(row, Activation):
        learnable = [Argument(p.name, "Tensor") for p in row.learnable]
        return *learnable, *seed, *(Argument(p.name, "float") for p in row.parameters if not p.learnable)
    parameters = [Argument(p.name, "float") for p in row.parameters]
    hard = [Argument("hard", "bool", forward_only=True)] if row.seeded else []
    return *seed, *parameters, *hard, Argument("axis", "int")


def kernel(row: Row, operation_pass: Pass) -> Kernel:
    """The function of tensors that computes a pass of a row, outside of autograd."""
    name = row.name if operation_pass == FORWARD else backward_of(row.name)
    given = arguments(row, operation_pass)
    names = {
        "backend_of": backend_of,
        "torch_function": getattr(backend("torch"), name),
        # A library is imported by the first call that it serves.
        "of_arrays": {which: backend(which) for which in ("numpy", "numba") if why_unusable(which) is None},
        "empty_like": torch.empty_like,
        "from_numpy": torch.from_numpy,
        "first_half": first_half,
    }
    signature = f"({', '.join(argument.name for argument in given)})"
    return define(name, signature, _body(row, operation_pass, name), names, f"`{name}` outside of autograd.")


def _body(row: Row, operation_pass: Pass, name: str) -> str:
    given = arguments(row, operation_pass)
    tensors = [argument.name for argument in given if argument.kind == "Tensor"]
    like = "x" if operation_pass == FORWARD else saved_of(row)
    # What lies on two devices goes to the torch backend, which says so.
    others = [tensor for tensor in tensors if tensor != like]
    together = "".join(f" and {tensor}.device == {like}.device and not {tensor}.is_neg()" for tensor in others)
    out = f"first_half(x, axis, {name!r})[1]" if isinstance(row, Gated) and operation_pass == FORWARD else like
    learned = row.learnable if isinstance(row, Activation) and operation_pass == BACKWARD else ()
    results = ", ".join(["_", *(f"d{p.name}" for p in learned)])
    return "\n".join(
        [
            # Where a tensor requires grad, NumPy's view has to be taken outside of autograd.
            *(f"if {tensor}.requires_grad: {tensor} = {tensor}.detach()" for tensor in tensors),
            f"which = backend_of({row.name!r}, {operation_pass!r}, {like})",
            f"if which != 'torch'{together}:",
            f"    out = empty_like({out})",
            f"    {results} = {_call(name, row, operation_pass, views=True)}",
            f"    return {', '.join(['out', *(f'from_numpy(d{p.name})' for p in learned)])}",
            f"return {_call(name, row, operation_pass, views=False)}",
        ]
    )


def _call(name: str, row: Row, operation_pass: Pass, *, views: bool) -> str:
    """The call of a backend's function with the arguments of the kernel, or with NumPy's views of them."""
    view = ".numpy()" if views else ""
    main = 1 if operation_pass == FORWARD else 2
    given = arguments(row, operation_pass)
    passed = [f"{argument.name}{view}" for argument in given[:main]]
    for argument in given[main:]:
        value = f"{argument.name}{view}" if argument.kind == "Tensor" else argument.name
        if argument.kind == "Tensor?":
            value = f"None if {value} is None else int({value})"
        if operation_pass == FORWARD or not argument.forward_only:
            passed.append(f"{argument.name}={value}")
    if views:
        return f"of_arrays[which].{name}({', '.join([*passed, 'out=out.numpy()'])})"
    return f"torch_function({', '.join(passed)})"
