"""Stabilizers in Numba: as few passes over memory as the operation allows, and no temporary of the input's size.

Sums run in float64, or in blocks that float64 adds up, and in an order that depends on the shapes alone: the bits are
the same for any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from gradmark.activations.numba import PAIRS, simplest
from gradmark.numerics.functions import Elementary
from gradmark.numerics.fused import Pointwise
from gradmark.stabilizers.batch_norm_numba import (
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from gradmark.stabilizers.clipping_numba import (
    clip_grad_norm,
    clip_grad_norm_backward,
    clip_grad_value,
    clip_grad_value_backward,
)

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "clip_grad_norm",
    "clip_grad_norm_backward",
    "clip_grad_value",
    "clip_grad_value_backward",
    "residual_add",
    "residual_add_backward",
]


def residual_add(x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any) -> Any:
    """y = activation(x + f)."""
    y = np.empty_like(x, subok=False) if out is None else out
    chosen, parameters = _simplest(activation, parameters)
    return _residual(chosen, len(parameters)).forward((x, f), parameters, y)


def residual_add_backward(
    grad: Any, x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any
) -> Any:
    """d = grad · activation'(x + f): dx and df alike, as both enter by their sum alone."""
    d = np.empty_like(x, subok=False) if out is None else out
    chosen, parameters = _simplest(activation, parameters)
    return _residual(chosen, len(parameters)).backward((grad, x, f), parameters, d)


def _simplest(activation: str | None, parameters: tuple[float, ...]) -> tuple[str | None, tuple[float, ...]]:
    return (None, ()) if activation is None else simplest(activation, parameters)


class _Residual(NamedTuple):
    forward: Pointwise
    backward: Pointwise


@functools.cache
def _residual(activation: str | None, parameters: int) -> _Residual:
    pair = _identity if activation is None else PAIRS[activation]

    def forward(m: Elementary) -> Callable[..., Any]:
        value = register_jitable(pair(m)[0])

        def activated_sum(x: Any, f: Any, p: Any) -> Any:
            return value(x + f, p)

        return activated_sum

    def backward(m: Elementary) -> Callable[..., Any]:
        gradient = register_jitable(pair(m)[1])

        def gradient_at_sum(g: Any, x: Any, f: Any, p: Any) -> Any:
            return gradient(g, x + f, p)

        return gradient_at_sum

    name = f"residual_add-{activation}"
    return _Residual(Pointwise(name, 2, forward, parameters), Pointwise(f"{name}-backward", 3, backward, parameters))


def _identity(m: Elementary) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def value(x: Any, p: Any) -> Any:
        return x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return g

    return value, gradient
