"""Gated units in PyTorch, on the device of the input: ATen's fused kernel for glu, else the activation and a product.

Half precision is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradmark.activations import torch as activations
from gradmark.catalog import GATED, backward_of

aten = torch.ops.aten

Function = Callable[..., Any]


def _unit(name: str) -> tuple[Function, Function]:
    """Forward and backward of a unit, from the functions of its activation."""
    gate = next(row.gate for row in GATED if row.name == name)
    value, gradient = getattr(activations, gate), getattr(activations, backward_of(gate))

    def forward(x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        a, b = _halves(x, axis, gate_last)
        if x.dtype in _HALF:
            a = a.float()
            return out.copy_(value(a, a).mul_(b))
        if out.is_contiguous():
            return value(a, out).mul_(b)
        return torch.mul(value(a, torch.empty_like(a)), b, out=out)

    def backward(grad: Any, x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        a, b = _halves(x, axis, gate_last)
        da, db = _halves(out, axis, gate_last)
        if x.dtype in _HALF:
            a, grad = a.float(), grad.float()
        scaled = grad * b
        if x.dtype not in _HALF and out.data_ptr() != x.data_ptr():
            gradient(scaled, a, da)
            value(a, db).mul_(grad)
            return out
        of_value = value(a, torch.empty_like(a)).mul_(grad)
        da.copy_(gradient(scaled, a, scaled))
        db.copy_(of_value)
        return out

    return forward, backward


def glu(x: Any, axis: int, gate_last: bool, out: Any) -> Any:
    """ATen's kernel, whose gate is last; other orders and half precision as the other units."""
    if not gate_last or x.dtype in _HALF:
        return _glu(x, axis, gate_last, out)
    # ATen resizes an `out` that is not contiguous to what it likes better.
    return aten.glu.out(x, axis, out=out) if out.is_contiguous() else out.copy_(aten.glu.default(x, axis))


def glu_backward(grad: Any, x: Any, axis: int, gate_last: bool, out: Any) -> Any:
    """ATen's kernel: σ(a) g for the value, g b σ(a) (1 - σ(a)) for the gate."""
    if not gate_last or x.dtype in _HALF:
        return _glu_backward(grad, x, axis, gate_last, out)
    if out.is_contiguous() and out.data_ptr() != x.data_ptr():
        return aten.glu_backward.grad_input(grad, x, axis, grad_input=out)
    return out.copy_(aten.glu_backward.default(grad, x, axis))


_HALF = (torch.float16, torch.bfloat16)


def _halves(x: Any, axis: int, gate_last: bool) -> tuple[Any, Any]:
    """Gate and value."""
    first, second = x.chunk(2, axis) if x.shape[axis] else (x, x)
    return (second, first) if gate_last else (first, second)


_glu, _glu_backward = _unit("glu")
reglu, reglu_backward = _unit("reglu")
geglu, geglu_backward = _unit("geglu")
geglu_tanh, geglu_tanh_backward = _unit("geglu_tanh")
swiglu, swiglu_backward = _unit("swiglu")
bilinear, bilinear_backward = _unit("bilinear")
