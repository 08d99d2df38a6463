"""What gradmark's functions are given, and the peers as far as they take the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import ELEMENTWISE, LISTS, Data

MAX_NORM = 1.0
"""Of clip_grad_norm: the norm of normals is the root of their number, so this clips."""

_SEED = 1


def arguments(data: Data) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arrays (of clip_grad_norm a list of them), and the keywords."""
    case = data.case
    if case.operation == "clip_grad_norm":
        grads = lists(data)
        return (grads, MAX_NORM), {"out": grads}
    if case.operation == "residual_add":
        inputs = (data.x, data.other)
        return (data.grad, *inputs) if case.backward else inputs, {"activation": case.variant}
    if case.operation in ("batch_norm", "batch_norm_inference"):
        return _batch_norm(data), {}
    keywords: dict[str, Any] = {"seed": _SEED} if case.noisy else {}
    if case.group == ELEMENTWISE:
        keywords |= {p.name: learnable(p, data) if p.learnable else p.usual for p in case.row.parameters}
    return (data.grad, _saved(data)) if case.backward else (data.x,), keywords


def learnable(parameter: Any, data: Data) -> np.ndarray:
    """A learnable parameter as in training: an array."""
    return np.full(1, parameter.usual, dtype=data.case.dtype)


def lists(data: Data) -> list[np.ndarray]:
    """The arrays of clip_grad_norm."""
    count, length = LISTS[data.case.size]
    return [array.copy() for array in data.normal((count, length), seed=6)]


def _batch_norm(data: Data) -> tuple[Any, ...]:
    channels = (data.shape[1],)
    weight, bias = data.normal(channels, seed=4), data.normal(channels, seed=5)
    zeros, ones = np.zeros(channels, data.case.dtype), np.ones(channels, data.case.dtype)
    # Normals have the statistics 0 and 1 to within the sampling error, which no kernel's speed depends on.
    return (data.grad, data.x, weight, zeros, ones) if data.case.backward else (data.x, weight, bias, zeros, ones)


def _saved(data: Data) -> np.ndarray:
    """What backward needs: x, or of most row-wise operations y."""
    if data.case.row.saved == ("x",):
        return data.x
    import gradmark

    y: np.ndarray = getattr(gradmark.backend("numpy"), data.case.operation)(data.x)
    return y
