"""Gradients as expressions in PyTorch, which autograd differentiates again: what second derivatives are made of.

They come from the catalog: of an activation and of a gated unit from its peer, of a row-wise operation from its
gradient in y. At a kink they are 0, as autograd has it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

import torch

from gradmark.catalog import Activation, Gated, Rowwise

Row = Activation | Gated | Rowwise
Tensors = tuple[torch.Tensor, ...]


def second(row: Row, cotangents: Tensors, tensors: Tensors, numbers: tuple[Any, ...]) -> Tensors:
    """The gradients of `sum(cotangents · backward(*tensors))` with respect to the tensors.

    Parameters
    ----------
    row : Activation, Gated or Rowwise
        Whose backward pass is differentiated, in evaluation where it is seeded.
    cotangents : tuple of torch.Tensor
        One for each result of backward.
    tensors : tuple of torch.Tensor
        grad; x, of a row-wise operation y; learnable parameters.
    numbers : tuple
        The other arguments of the kernel.
    """
    gradient = _GRADIENTS[row.family](row, numbers)
    pull = torch.func.vjp(gradient, *tensors)[1]
    found: Tensors = pull(cotangents if len(cotangents) > 1 else cotangents[0])
    return found


def is_piecewise_linear(row: Activation) -> bool:
    """Whether the derivative depends on x in its conditions only, so that the second one is 0."""
    return not any("x" in _names(branch) for branch in _branches(ast.parse(row.derivative, mode="eval").body))


def _branches(expression: ast.expr) -> list[ast.expr]:
    if isinstance(expression, ast.IfExp):
        return [*_branches(expression.body), *_branches(expression.orelse)]
    return [expression]


def _names(expression: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def _of_activation(row: Activation, numbers: tuple[Any, ...]) -> Callable[..., Any]:
    learnable = [p.name for p in row.learnable]
    fixed = [p.name for p in row.parameters if not p.learnable]
    peer = _function("x", *learnable, *fixed, expression=row.peer)

    def value(x: Any, *parameters: Any) -> Any:
        if all(parameter.numel() == 1 for parameter in parameters):
            return peer(x, *(parameter.reshape(()) for parameter in parameters), *numbers)
        # One channel after the other: a peer may not know how to broadcast along axis 1.
        return torch.func.vmap(lambda x, *p: peer(x, *p, *numbers), in_dims=(1, *(0 for _ in parameters)), out_dims=1)(
            x, *parameters
        )

    def gradient(grad: Any, x: Any, *parameters: Any) -> Any:
        found = torch.func.vjp(value, x, *parameters)[1](grad)
        return found if parameters else found[0]

    return gradient


def _of_gated(row: Gated, numbers: tuple[Any, ...]) -> Callable[..., Any]:
    axis, gate_last = numbers
    peer = _function("a", "b", expression=row.peer)

    def value(x: Any) -> Any:
        first, last = x.chunk(2, axis)
        return peer(last, first) if gate_last else peer(first, last)

    return lambda grad, x: torch.func.vjp(value, x)[1](grad)[0]


def _of_rowwise(row: Rowwise, numbers: tuple[Any, ...]) -> Callable[..., Any]:
    *parameters, axis = numbers
    names = [p.name for p in row.parameters]
    gradient = _function("axis", *names, "g", "y", expression=row.gradient)
    return functools.partial(gradient, axis, *parameters[: len(names)])


_GRADIENTS: dict[str, Callable[..., Callable[..., Any]]] = {
    "activations": _of_activation,
    "gated": _of_gated,
    "rowwise": _of_rowwise,
}


@functools.cache
def _function(*variables: str, expression: str) -> Callable[..., Any]:
    """An expression of the catalog as a function of tensors; sums are along `axis`, where that is a variable."""
    names = {"torch": torch, "F": torch.nn.functional, "exp": torch.exp, "where": torch.where}
    total = "sum=lambda v: v.sum(axis, keepdim=True)"
    function: Callable[..., Any] = eval(f"lambda {', '.join(variables)}: (lambda {total}: {expression})()", names)
    return function
