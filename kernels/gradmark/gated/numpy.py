"""Gated units in NumPy: the reference, the activation's own function and a product, on blocks that stay in cache.

float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradmark.activations import numpy as activations
from gradmark.catalog import GATED, backward_of
from gradmark.numerics.slabs import deliver, slabs

BLOCK = 1 << 14
"""Elements of a half at a time: what a block needs stays in a core's own cache."""

Function = Callable[..., Any]


def _unit(name: str) -> tuple[Function, Function]:
    """Forward and backward of a unit, from the functions of its activation."""
    gate = next(row.gate for row in GATED if row.name == name)
    value, gradient = getattr(activations, gate), getattr(activations, backward_of(gate))

    def forward(x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        flat, outer, inner, scattered = slabs(axis, x, out)
        length = inner * out.shape[axis]
        a, b = _halves(flat[0], outer, length, gate_last)
        y = flat[1].reshape(outer, length)
        for part in _blocks(outer, length):
            gate = _wide(a[part])
            np.multiply(value(gate, np.empty_like(gate)), b[part], out=y[part], casting="same_kind")
        deliver(flat, scattered)
        return out

    def backward(grad: Any, x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        flat, outer, inner, scattered = slabs(axis, grad, x, out)
        length = inner * grad.shape[axis]
        g = flat[0].reshape(outer, length)
        (a, b), (da, db) = (_halves(array, outer, length, gate_last) for array in flat[1:])
        for part in _blocks(outer, length):
            # d(f(a) b) = b f'(a) da + f(a) db.
            gate, h = _wide(a[part]), _wide(g[part])
            of_gate = gradient(h * b[part], gate, np.empty_like(gate))
            np.multiply(value(gate, np.empty_like(gate)), h, out=db[part], casting="same_kind")
            da[part] = of_gate
        deliver(flat, scattered)
        return out

    return forward, backward


def _halves(flat: Any, outer: int, length: int, gate_last: bool) -> tuple[Any, Any]:
    """Gate and value, (slabs, length) each."""
    halves = flat.reshape(outer, 2, length)
    return (halves[:, 1], halves[:, 0]) if gate_last else (halves[:, 0], halves[:, 1])


def _blocks(outer: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Parts of an array (outer, length)."""
    rows = max(1, BLOCK // max(1, length))
    for row in range(0, outer, rows):
        for start in range(0, length, BLOCK):
            yield slice(row, row + rows), slice(start, start + BLOCK)


def _wide(x: Any) -> Any:
    """float16 as float32; others as they are."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


glu, glu_backward = _unit("glu")
reglu, reglu_backward = _unit("reglu")
geglu, geglu_backward = _unit("geglu")
geglu_tanh, geglu_tanh_backward = _unit("geglu_tanh")
swiglu, swiglu_backward = _unit("swiglu")
bilinear, bilinear_backward = _unit("bilinear")
