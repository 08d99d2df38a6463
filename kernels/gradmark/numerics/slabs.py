"""How NumPy arrays are walked along an axis: as (outer, length, inner), without a copy where they are dense.

Dense means that the elements fill a block of memory without gaps, in any order of the axes (C, Fortran, channels
last), the same in all arrays. Then an element along the axis is `inner` contiguous ones after the one before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradmark.numerics.layout import contiguous, is_dense


def slabs(axis: int, *arrays: Any) -> tuple[list[Any], int, int, Any]:
    """The arrays, of which the last is to be written, along `axis`. Their lengths along it may differ.

    Returns
    -------
    flat : list of array
        The arrays as contiguous 1-d ones.
    outer, inner : int
    scattered : array or None
        Where to copy the last of the flat arrays to in the end; None where that is the memory of the result.
    """
    # Below a thousand elements this takes as long as the loops: the common case comes first, and takes no detours.
    if all([a.flags.carray for a in arrays]):  # noqa: C419
        shape = arrays[-1].shape
        inner = 1 if axis == len(shape) - 1 else math.prod(shape[axis + 1 :])
        return [a if a.ndim == 1 else a.reshape(-1) for a in arrays], math.prod(shape[:axis]), inner, None
    if not all(map(is_dense, arrays)):
        arrays, axis = _in_the_order_of_memory(axis, arrays)
    *inputs, out = arrays
    shape = out.shape
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if is_dense(out):
        return [*map(_flat, inputs), out.reshape(-1)], outer, inner, None
    return [*map(_flat, inputs), np.empty(out.size, out.dtype)], outer, inner, out


def deliver(flat: list[Any], scattered: Any) -> None:
    """Copy what was written to a result that is not dense."""
    if scattered is not None:
        scattered[...] = flat[-1].reshape(scattered.shape)


def _in_the_order_of_memory(axis: int, arrays: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """The arrays with their axes in the order of the strides, longest first: for dense ones, that is C order."""
    out = arrays[-1]
    order = sorted(range(out.ndim), key=lambda k: -abs(out.strides[k]))
    turned = tuple(a.transpose(order) for a in arrays)
    return (turned, order.index(axis)) if all(map(is_dense, turned)) else (arrays, axis)


def _flat(array: Any) -> Any:
    array = contiguous(array)
    return array if array.ndim == 1 else array.reshape(-1)
