"""Row-wise operations in NumPy: the reference.

Blocks of rows, (rows, length, inner), small enough that their temporaries stay in cache. They are float64 whatever the
dtype of the arrays, which leaves one rounding in float16 and float32; for float64, differences keep their rounding
error where an exponential would enlarge it, and sums are pairwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics import philox_numpy
from gradmark.numerics.slabs import deliver, slabs

BLOCK = 1 << 14
"""Elements at a time: the handful of float64 arrays that a block needs, 128 KiB each, stay in a core's own cache."""


def softmax(x: Any, axis: int, out: Any) -> Any:
    """exp(x - max x), which cannot overflow, over its sum."""
    return _by_blocks(_softmax_of(x.dtype), axis, x, out)


def softmax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """∂y_i/∂x_j = y_i (δ_ij - y_j), hence dx = y (g - Σ g y)."""
    return _by_blocks(lambda g, y: y * (g - _sum(g * y)), axis, grad, y, out)


def log_softmax(x: Any, axis: int, out: Any) -> Any:
    """x - max x - log(1 + s), s the sum of the other exponentials: both are small where y is."""
    below_largest = _BELOW_LARGEST[x.dtype == np.float64]

    def of_block(x: Any) -> Any:
        d, rest = below_largest(x)
        e = _exp_of_sum(d, rest)
        top = d.argmax(axis=1)[:, None]
        # exp(0) - 1 is 0; where the largest element is infinite, NaN.
        np.put_along_axis(e, top, np.take_along_axis(e, top, 1) - 1, 1)
        d -= np.log1p(_sum(e))
        d += rest
        return d

    return _by_blocks(of_block, axis, x, out)


def log_softmax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """∂y_i/∂x_j = δ_ij - exp(y_j), hence dx = g - exp(y) Σ g."""
    return _by_blocks(lambda g, y: g - np.exp(y) * _sum(g), axis, grad, y, out)


def softmin(x: Any, axis: int, out: Any) -> Any:
    """softmax of -x."""
    of_block = _softmax_of(x.dtype)
    return _by_blocks(lambda x: of_block(-x), axis, x, out)


def softmin_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """That of softmax, times -1."""
    return _by_blocks(lambda g, y: y * (_sum(g * y) - g), axis, grad, y, out)


def sparsemax(x: Any, axis: int, out: Any) -> Any:
    """x less a threshold, which is the largest of (x_1 + ... + x_k - 1) / k over the k largest elements.

    Relative to the largest element, so that the sums do not grow with it.
    """
    below_largest = _BELOW_LARGEST[x.dtype == np.float64]

    def of_block(x: Any) -> Any:
        d, rest = below_largest(x)
        # Negated, the largest come first. Cumulated sums tell the support; a pairwise one is more accurate.
        sums = -np.cumsum(np.sort(-d, axis=1), axis=1)
        first = ((sums - 1) / np.arange(1, d.shape[1] + 1)[:, None]).max(axis=1, keepdims=True)
        inside = ~(d <= first)
        threshold = (_sum(np.where(inside, d, 0.0)) - 1) / inside.sum(axis=1, keepdims=True)
        return np.maximum((d - threshold) + rest, 0)

    return _by_blocks(of_block, axis, x, out)


def sparsemax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """On the support g less the mean of its k elements: ∂y_i/∂x_j = δ_ij - 1/k there, 0 elsewhere."""

    def of_block(g: Any, y: Any) -> Any:
        inside = ~(y <= 0)
        # y - y is 0, and NaN in a row of NaN.
        g = np.where(inside, g + (y - y), 0.0)
        return np.where(inside, g - _sum(g) / inside.sum(axis=1, keepdims=True), 0.0)

    return _by_blocks(of_block, axis, grad, y, out)


def gumbel_softmax(x: Any, seed: int, tau: float, hard: bool, axis: int, out: Any) -> Any:
    """softmax of (x + n) / tau; with `hard`, a one at its largest element."""
    noise, of_block = _noise(x, seed), _softmax_of(x.dtype)
    y = _by_blocks(lambda x, n: of_block((x + n) / tau), axis, x, noise, noise)
    out[...] = one_hot(y, axis) if hard else y
    return out


def gumbel_softmax_backward(grad: Any, x: Any, seed: int, tau: float, axis: int, out: Any) -> Any:
    """That of softmax, over tau."""
    softmax_of = _softmax_of(x.dtype)

    def of_block(g: Any, x: Any, n: Any) -> Any:
        y = softmax_of((x + n) / tau)
        return y * (g - _sum(g * y)) / tau

    return _by_blocks(of_block, axis, grad, x, _noise(x, seed), out)


def one_hot(y: Any, axis: int) -> Any:
    """1 at the first of the largest elements of each row, 0 elsewhere; NaN where a row is NaN."""
    ones = np.zeros(y.shape, y.dtype)
    np.put_along_axis(ones, y.argmax(axis=axis, keepdims=True), 1, axis)
    return np.where(np.isnan(y), y, ones)


def _noise(x: Any, seed: int) -> Any:
    """Gumbel(0, 1) in the dtype of x; in float32 for float16."""
    noise = np.empty(x.shape, np.promote_types(x.dtype, np.float32))
    philox_numpy.fill_gumbel(noise.reshape(-1), 0, seed)
    return noise


def _by_blocks(function: Callable[..., Any], axis: int, *arrays: Any) -> Any:
    """The function of float64 arrays (rows, length, inner), from the inputs into the last array, block by block."""
    *_, out = arrays
    flat, outer, inner, scattered = slabs(axis, *arrays)
    length = out.shape[axis]
    *inputs, target = (a.reshape(outer, length, inner) for a in flat)
    rows = max(1, BLOCK // max(1, length * inner))
    columns = max(1, BLOCK // length if rows == 1 else inner)
    for row in range(0, outer, rows):
        for column in range(0, inner, columns):
            part = slice(row, row + rows), slice(None), slice(column, column + columns)
            target[part] = function(*(a[part].astype(np.float64) for a in inputs))
    deliver(flat, scattered)
    return out


def _softmax_of(dtype: Any) -> Callable[[Any], Any]:
    """The softmax of a block, with results good to this dtype."""
    exact = dtype == np.float64
    below_largest, total = _BELOW_LARGEST[exact], _exact_sum if exact else _sum

    def of_block(x: Any) -> Any:
        e = _exp_of_sum(*below_largest(x))
        e /= total(e)
        return e

    return of_block


def _difference(x: Any) -> tuple[Any, float]:
    """x - max x, whose rounding error has no say in a narrower result."""
    return x - x.max(axis=1, keepdims=True), 0.0


def _exact_difference(x: Any) -> tuple[Any, Any]:
    """x - max x as a sum of two floats (Knuth's two-sum, TAOCP 2, 4.2.2)."""
    largest = x.max(axis=1, keepdims=True)
    d = x - largest
    back = d - x
    rest = (x - (d - back)) - (largest + back)
    # What a difference of infinities is, d alone says.
    rest[~np.isfinite(rest)] = 0
    return d, rest


_BELOW_LARGEST: tuple[Callable[[Any], tuple[Any, Any]], ...] = (_difference, _exact_difference)
"""By whether the elements are float64."""


def _exp_of_sum(d: Any, rest: Any) -> Any:
    """exp(d + rest) = exp(d) (1 + rest), as the rest is below an ULP of d."""
    e = np.exp(d)
    if isinstance(rest, np.ndarray):
        e += e * rest
    return e


def _exact_sum(e: Any) -> Any:
    """Σ of numbers from 0 to 1: of their multiples of 2^-30, which is exact for 2^22 of them, and of what is left."""
    high = (e + _GRID) - _GRID
    return _sum(high) + _sum(e - high)


_GRID = 1.5 * 2.0**22
"""Added to a smaller number, it leaves multiples of 2^-30 (Rump, Ogita, Oishi, SIAM J. Sci. Comput. 31, 2008)."""


def _sum(a: Any) -> Any:
    """Σ along axis 1, pairwise: NumPy does so along contiguous elements only."""
    if a.shape[2] == 1:
        return a.sum(axis=1, keepdims=True)
    while a.shape[1] > 1:
        half = a.shape[1] // 2
        halved = a[:, :half] + a[:, half : 2 * half]
        if a.shape[1] % 2:
            halved[:, :1] += a[:, -1:]
        a = halved
    return a
