"""Stabilizers in Numba: as few passes over memory as the operation allows, and no temporary of the input's size.

Batch norm in training reads x twice, once for the statistics and once to normalize; so does its backward pass, and
so does clipping by the norm. The backward pass of that needs the norm, then a dot product, then the result: three.
Everything else is a single pass. Arrays that are not C-contiguous are copied first.

Sums run per block of a fixed size, in float64, and the blocks' sums are added in order: the bits depend on the
shape, not on the number of threads. Within a block LLVM may reassociate the sum, so that it runs in vector lanes.

Two layouts: `rows`, where a channel's values come in long contiguous runs, takes a channel's numbers as scalars;
`columns`, for short runs (a batch of vectors has runs of one), treats each place of a run as a channel of its own,
takes the numbers as vectors along the row, and joins the places at the end.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from gradmark.activations.numba import PAIRS, simplest
from gradmark.numerics.compile_cache import jit
from gradmark.numerics.elementary import add_in_any_order
from gradmark.numerics.functions import Elementary
from gradmark.numerics.fused import CHUNK, LONG_ROW, Pointwise, delivered, flattened, run
from gradmark.stabilizers import clipping
from gradmark.stabilizers.arrays import moving_average, outputs, parameter_gradients

TILE = 1 << 12
"""Elements of a channel in one block: they stay in the first-level cache between the two sums over them."""
TILE_ROWS = 64
"""Layout `columns`: rows of the batch in one block."""
TILE_COLUMNS = 256
"""Layout `columns`: columns in one block; with TILE_ROWS, a block stays in the second-level cache."""

_KINDS = (0.0, math.inf, math.nan)


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    out: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    """Training: normalize by the statistics of the batch; returns y, mean, invstd and the new running statistics."""
    y = np.empty_like(x, subok=False) if out is None else out
    flat, flat_y = flattened(x, y, order="C")
    layout = _Layout.of(x)
    mean, rest, var = layout.moments(flat)
    invstd = 1.0 / np.sqrt(var + eps)
    # x - high is exact where x is near the mean, so that nothing cancels although the loop runs in x's precision.
    high = mean.astype(x.dtype)
    low = (mean - high) + rest
    layout.elementwise(_normalize, (flat, flat), (high, low, invstd, *_affine(weight, bias, x)), flat_y)
    count = layout.values
    return (
        delivered(y, flat_y),
        high,
        invstd.astype(x.dtype),
        moving_average(running_mean, mean, momentum),
        moving_average(running_var, var * (count / (count - 1)), momentum),
    )


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, invstd: Any, out: Any) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm` in x, weight and bias.

    With x̂ = (x - mean) invstd over m values: ∂x̂_j/∂x_i = invstd (δ_ij - 1/m - x̂_i x̂_j / m), hence
    dx = weight invstd (g - Σg / m - x̂ Σ(g x̂) / m).
    """
    dx = np.empty_like(x, subok=False) if out is None else out
    flat_grad, flat_x, flat_dx = flattened(grad, x, dx, order="C")
    layout = _Layout.of(x)
    sum_grad, sum_grad_centred = layout.gradient_sums(flat_grad, flat_x, mean)
    sum_grad_xhat = sum_grad_centred * invstd
    count = max(layout.values, 1)
    numbers = mean, invstd, _scale(weight, invstd), sum_grad / count, sum_grad_xhat / count
    layout.elementwise(_differentiate, (flat_grad, flat_x), numbers, flat_dx)
    return delivered(dx, flat_dx), *parameter_gradients(weight, sum_grad_xhat, sum_grad)


def batch_norm_inference(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> Any:
    """Normalize by the running statistics."""
    y = np.empty_like(x, subok=False) if out is None else out
    flat, flat_y = flattened(x, y, order="C")
    numbers = running_mean, np.zeros_like(running_mean), _inverse_deviation(running_var, eps), *_affine(weight, bias, x)
    _Layout.of(x).elementwise(_normalize, (flat, flat), numbers, flat_y)
    return delivered(y, flat_y)


def batch_norm_inference_backward(
    grad: Any, x: Any, weight: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm_inference`: y is affine in x, so dx = weight invstd g."""
    dx = np.empty_like(x, subok=False) if out is None else out
    flat_grad, flat_x, flat_dx = flattened(grad, x, dx, order="C")
    invstd = _inverse_deviation(running_var, eps)
    layout = _Layout.of(x)
    sum_grad, sum_grad_centred = layout.scaled_and_summed(
        flat_grad, flat_x, running_mean, _scale(weight, invstd).astype(x.dtype), flat_dx
    )
    return delivered(dx, flat_dx), *parameter_gradients(weight, sum_grad_centred * invstd, sum_grad)


def clip_grad_norm(grads: Sequence[Any], max_norm: float, out: Any) -> tuple[list[Any], Any]:
    """Scale all arrays by one coefficient so that their global norm is at most max_norm."""
    norm = clipping.global_norm(grads, _square_sums, _largest)
    return _scaled_copies(grads, clipping.coefficient(norm, max_norm), out), np.array(norm)


def clip_grad_norm_backward(cotangents: Sequence[Any], grads: Sequence[Any], max_norm: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_norm`: c v - k g where it clipped, else v."""
    norm = clipping.global_norm(grads, _square_sums, _largest)
    if clipping.coefficient(norm, max_norm) >= 1.0:
        return _scaled_copies(cotangents, 1.0, out)
    scale = clipping.normalizing_power(norm)
    dot = 0.0
    for v, g in zip(cotangents, grads, strict=True):
        flat_v, flat_g = _read(v, g)
        partial = np.empty(_chunks(flat_g))
        _dots(flat_g, flat_v, flat_g, scale, partial)
        dot += float(partial.sum())
    factors = clipping.backward_factors(norm, max_norm, scale, dot)
    dgrads = outputs(grads, out)
    for v, g, d in zip(cotangents, grads, dgrads, strict=True):
        flat_v, flat_g, flat_d = flattened(v, g, d)
        _differences(flat_d, flat_v, flat_g, factors.cotangent, factors.projection, scale, flat_d)
        delivered(d, flat_d)
    return dgrads


def clip_grad_value(grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """Clamp every element to [-clip_value, clip_value]."""
    clipped = outputs(grads, out)
    peaks = []
    for g, y in zip(grads, clipped, strict=True):
        flat_g, flat_y = flattened(g, y)
        kinds = np.empty(_chunks(flat_g), np.int64)
        _clamped(flat_g, flat_g, float(_limit(clip_value, g)), flat_y, kinds)
        peaks.append(_KINDS[kinds.max(initial=0)])
        delivered(y, flat_y)
    # Afterwards, as one pass both looks and clamps; so `out` is already written when this raises.
    clipping.check_finite(peaks)
    return clipped


def clip_grad_value_backward(cotangents: Sequence[Any], grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_value`: v where |g| <= clip_value, else 0."""
    dgrads = outputs(grads, out)
    for v, g, d in zip(cotangents, grads, dgrads, strict=True):
        _mask((v, g), (_limit(clip_value, g),), d)
    return dgrads


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


class _Layout(NamedTuple):
    """How x of shape (batch, channels, *spatial) is walked; `length` is the number of places in space."""

    batch: int
    channels: int
    length: int

    @classmethod
    def of(cls, x: Any) -> _Layout:
        return cls(x.shape[0], x.shape[1], math.prod(x.shape[2:]))

    @property
    def values(self) -> int:
        """Values of a channel."""
        return self.batch * self.length

    @property
    def rows(self) -> bool:
        return self.length >= LONG_ROW

    def moments(self, x: Any) -> tuple[Any, Any, Any]:
        """Mean, the rest that float64 leaves of it, and biased variance of each channel, in float64."""
        if self.channels == 0:
            none = np.zeros(0)
            return none, none, none
        # Relative to one value of the channel, so that means and sums are of the size of the spread, not of the mean.
        origin = x[: self.channels * self.length : self.length].astype(np.float64)
        if self.rows:
            counts = self._tile_counts()
            means, squares = np.empty((2, self.channels, counts.size))
            _moments_rows(x, x, origin, self.length, means, squares)
        else:
            counts = self._block_counts()
            means, squares = np.empty((2, counts.size, self.channels * self.length))
            spread = origin.repeat(self.length)
            _moments_columns(x, x, spread, spread.size, means.reshape(-1), squares.reshape(-1))
            counts, means, squares = counts.repeat(self.length), self._joined(means), self._joined(squares)
        offset, var = _combined_moments(counts, means, squares)
        mean = origin + offset
        return mean, offset - (mean - origin), var

    def gradient_sums(self, grad: Any, x: Any, mean: Any) -> tuple[Any, Any]:
        """Σ grad and Σ grad (x - mean) of each channel, in float64."""
        return self._summed(_sums_rows, _sums_columns, grad, x, mean)

    def scaled_and_summed(self, grad: Any, x: Any, mean: Any, scale: Any, out: Any) -> tuple[Any, Any]:
        """The same sums, and grad · scale into `out`, in one pass."""
        return self._summed(_scaled_sums_rows, _scaled_sums_columns, grad, x, mean, scale, out)

    def elementwise(self, steps: _Steps, arrays: tuple[Any, Any], numbers: tuple[Any, ...], out: Any) -> None:
        """out = step(a, b, *numbers of the channel)."""
        if out.size == 0:
            return
        per_channel = np.array(numbers, dtype=out.dtype)
        if self.rows:
            steps.rows(out, *arrays, per_channel, self.length, out)
        else:
            steps.columns(out, *arrays, per_channel.repeat(self.length, axis=1), out)

    def _summed(
        self, rows: _Loop, columns: _Loop, grad: Any, x: Any, mean: Any, scale: Any = None, out: Any = None
    ) -> tuple[Any, Any]:
        if x.size == 0:
            none = np.zeros(self.channels)
            return none, none
        mean = mean.astype(np.float64)
        written = () if out is None else (scale, out)
        if self.rows:
            sums = np.empty((2, self.channels, self._tile_counts().size))
            rows(x, grad, x, mean, *written, self.length, *sums)
            return sums[0].sum(axis=1), sums[1].sum(axis=1)
        width = self.channels * self.length
        sums = np.empty((2, self._block_counts().size, width))
        spread = (mean.repeat(self.length), *(() if out is None else (scale.repeat(self.length), out)))
        columns(x, grad, x, *spread, width, sums[0].reshape(-1), sums[1].reshape(-1))
        return self._joined(sums[0]).sum(axis=1), self._joined(sums[1]).sum(axis=1)

    def _tile_counts(self) -> Any:
        """Layout `rows`: values in each tile of a channel, in the order of `_tile`."""
        height, width = max(1, TILE // self.length), min(self.length, TILE)
        return np.outer(_lengths(self.batch, height), _lengths(self.length, width)).reshape(-1)

    def _block_counts(self) -> Any:
        """Layout `columns`: rows of the batch in each block."""
        return _lengths(self.batch, TILE_ROWS)

    def _joined(self, blocks: Any) -> Any:
        """(blocks, channels · length) -> (channels, blocks · length)."""
        return blocks.reshape(-1, self.channels, self.length).swapaxes(0, 1).reshape(self.channels, -1)


def _lengths(total: int, step: int) -> Any:
    """Lengths, as float64, of the pieces of `total` elements that are cut every `step`."""
    lengths = np.full(-(-total // step), float(step))
    lengths[-1] = total - step * (lengths.size - 1)
    return lengths


def _combined_moments(counts: Any, means: Any, squares: Any) -> tuple[Any, Any]:
    """Mean and variance of the union of blocks (Chan, Golub, LeVeque, Am. Stat. 37, 1983)."""
    total = counts.sum()
    mean = (means * counts).sum(axis=1) / total
    between = (counts * np.square(means - mean[:, None])).sum(axis=1)
    return mean, (squares.sum(axis=1) + between) / total


def _affine(weight: Any, bias: Any, x: Any) -> tuple[Any, Any]:
    channels = x.shape[1]
    return (
        np.ones(channels, x.dtype) if weight is None else weight,
        np.zeros(channels, x.dtype) if bias is None else bias,
    )


def _inverse_deviation(var: Any, eps: float) -> Any:
    return 1.0 / np.sqrt(var.astype(np.float64) + eps)


def _scale(weight: Any, invstd: Any) -> Any:
    return invstd if weight is None else weight * invstd


def _read(*arrays: Any) -> list[Any]:
    """The arrays as contiguous 1-d ones, elements in the same order."""
    if all(a.flags.f_contiguous for a in arrays):
        arrays = tuple(a.T for a in arrays)
    return [np.require(a, requirements=["C", "A"]).reshape(-1) for a in arrays]


def _chunks(flat: Any) -> int:
    return -(-int(flat.size) // CHUNK)


def _limit(clip_value: float, g: Any) -> float:
    """clip_value in the dtype of g; the largest finite number where it is beyond that."""
    return float(g.dtype.type(min(clip_value, float(np.finfo(g.dtype).max))))


def _square_sums(grads: Sequence[Any], scale: float) -> list[float]:
    sums = []
    for g in grads:
        (flat,) = _read(g)
        partial = np.empty(_chunks(flat))
        _squares(flat, flat, scale, partial)
        sums.append(float(partial.sum()))
    return sums


def _largest(grads: Sequence[Any]) -> list[float]:
    # max |g| from two reductions, which pass NaN on, without the array of |g|.
    return [float(np.maximum(g.max(), -g.min())) if g.size else 0.0 for g in grads]


def _scaled_copies(arrays: Sequence[Any], factor: float, out: Any) -> list[Any]:
    results = outputs(arrays, out)
    for a, y in zip(arrays, results, strict=True):
        flat_a, flat_y = flattened(a, y)
        _scaled(flat_a, flat_a, factor, flat_y)
        delivered(y, flat_y)
    return results


class _Loop:
    """A loop over flat arrays, compiled per dtype on first use: serial below the parallel threshold, parallel above.

    Parameters
    ----------
    body : function
        Its name is that of the machine code in the cache.
    arguments : str
        A letter an argument. Of the dtype T of the data: r, an array that is read; w, one that is written; n, a
        2-d array of numbers per channel. Of float64: f, an array that is read; p, one that is written (partial
        results); P, a 2-d one; s, a scalar. Of int64: k, an array that is written; i, a scalar.
    """

    def __init__(self, body: Callable[..., Any], arguments: str) -> None:
        self.name = body.__name__
        self._body = body
        self._arguments = arguments
        self._compiled: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self._compiling = threading.Lock()

    def __call__(self, like: Any, *arguments: Any) -> None:
        """Run over data of the dtype and size of `like`."""
        dtype = like.dtype.name
        run(self._compiled.get(dtype) or self.compile(dtype), like.size, arguments)

    def compile(self, dtype: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The serial and the parallel loop of a dtype, compiled or loaded from the cache."""
        with self._compiling:
            if dtype not in self._compiled:
                signature = types.void(*(_numba_type(letter, dtype) for letter in self._arguments))
                serial, parallel = (
                    jit(self._body, signature, name=f"{self.name}-{kind}-{dtype}", parallel=kind == "parallel")
                    for kind in ("serial", "parallel")
                )
                self._compiled[dtype] = serial, parallel
        return self._compiled[dtype]


def _numba_type(letter: str, dtype: str) -> Any:
    data, real, whole = getattr(types, dtype), types.float64, types.int64
    kinds: dict[str, Any] = {
        "r": types.Array(data, 1, "C", readonly=True),
        "w": types.Array(data, 1, "C"),
        "n": types.Array(data, 2, "C"),
        "f": types.Array(real, 1, "C", readonly=True),
        "p": types.Array(real, 1, "C"),
        "P": types.Array(real, 2, "C"),
        "s": real,
        "k": types.Array(whole, 1, "C"),
        "i": whole,
    }
    return kinds[letter]


# Rows: x[n, c, s] is flat[(n channels + c) length + s]; tile t of a channel is some rows of one segment.


@register_jitable
def _tile(t: Any, batch: Any, length: Any) -> Any:
    """First and last row, first and last place, of tile t."""
    height, width = max(1, TILE // length), min(length, TILE)
    segments = (length + width - 1) // width
    first_row, first_place = t // segments * height, t % segments * width
    return first_row, min(first_row + height, batch), first_place, min(first_place + width, length)


@register_jitable
def _sum_row(a: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(a[i]))
    return total


@register_jitable
def _offsets_row(a: Any, origin: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(a[i]) - origin)
    return total


@register_jitable
def _squares_row(a: Any, origin: Any, mean: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        d = (np.float64(a[i]) - origin) - mean
        total = add_in_any_order(total, d * d)
    return total


@register_jitable
def _products_row(a: Any, b: Any, mean: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(a[i]) * (np.float64(b[i]) - mean))
    return total


@register_jitable
def _scale_row(g: Any, scale: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = g[i] * scale


def _batch_norm_moments_rows(x: Any, origin: Any, length: Any, means: Any, squares: Any) -> None:
    channels, tiles = means.shape
    batch = x.size // max(1, channels * length)
    for index in prange(channels * tiles):
        c, t = index // tiles, index % tiles
        n0, n1, s0, s1 = _tile(t, batch, length)
        total = 0.0
        for n in range(n0, n1):
            row = (n * channels + c) * length
            total += _offsets_row(x[row + s0 : row + s1], origin[c])
        mean = total / ((n1 - n0) * (s1 - s0))
        square = 0.0
        for n in range(n0, n1):
            row = (n * channels + c) * length
            square += _squares_row(x[row + s0 : row + s1], origin[c], mean)
        means[c, t] = mean
        squares[c, t] = square


def _batch_norm_sums_rows(g: Any, x: Any, mean: Any, length: Any, sums: Any, products: Any) -> None:
    channels, tiles = sums.shape
    batch = x.size // max(1, channels * length)
    for index in prange(channels * tiles):
        c, t = index // tiles, index % tiles
        n0, n1, s0, s1 = _tile(t, batch, length)
        total, product = 0.0, 0.0
        for n in range(n0, n1):
            row = (n * channels + c) * length
            part = g[row + s0 : row + s1]
            total += _sum_row(part)
            product += _products_row(part, x[row + s0 : row + s1], mean[c])
        sums[c, t] = total
        products[c, t] = product


def _batch_norm_scaled_sums_rows(
    g: Any, x: Any, mean: Any, scale: Any, out: Any, length: Any, sums: Any, products: Any
) -> None:
    channels, tiles = sums.shape
    batch = x.size // max(1, channels * length)
    for index in prange(channels * tiles):
        c, t = index // tiles, index % tiles
        n0, n1, s0, s1 = _tile(t, batch, length)
        total, product = 0.0, 0.0
        for n in range(n0, n1):
            row = (n * channels + c) * length
            low, high = row + s0, row + s1
            # The sums first: `out` may be the memory of g or x. The row is in the first-level cache for the second.
            total += _sum_row(g[low:high])
            product += _products_row(g[low:high], x[low:high], mean[c])
            _scale_row(g[low:high], scale[c], out[low:high])
        sums[c, t] = total
        products[c, t] = product


# Columns: x[n, k] is flat[n width + k]; a block is TILE_ROWS rows, walked in stripes of TILE_COLUMNS columns.


@register_jitable
def _stripe(index: Any, batch: Any, width: Any) -> Any:
    """Block, first and last row, first and last column, of the stripe of this index."""
    stripes = (width + TILE_COLUMNS - 1) // TILE_COLUMNS
    block = index // stripes
    first_row, first_column = block * TILE_ROWS, index % stripes * TILE_COLUMNS
    return block, first_row, min(first_row + TILE_ROWS, batch), first_column, min(first_column + TILE_COLUMNS, width)


@register_jitable
def _stripes(batch: Any, width: Any) -> Any:
    return (batch + TILE_ROWS - 1) // TILE_ROWS * ((width + TILE_COLUMNS - 1) // TILE_COLUMNS)


@register_jitable
def _add_offsets(a: Any, origin: Any, total: Any) -> None:
    for i in range(total.size):
        total[i] += np.float64(a[i]) - origin[i]


@register_jitable
def _add_squares(a: Any, origin: Any, mean: Any, total: Any) -> None:
    for i in range(total.size):
        d = (np.float64(a[i]) - origin[i]) - mean[i]
        total[i] += d * d


@register_jitable
def _add_products(g: Any, x: Any, mean: Any, total: Any, product: Any) -> None:
    for i in range(total.size):
        total[i] += np.float64(g[i])
        product[i] += np.float64(g[i]) * (np.float64(x[i]) - mean[i])


@register_jitable
def _scale_columns(g: Any, scale: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = g[i] * scale[i]


def _batch_norm_moments_columns(x: Any, origin: Any, width: Any, means: Any, squares: Any) -> None:
    batch = x.size // max(1, width)
    for index in prange(_stripes(batch, width)):
        block, n0, n1, k0, k1 = _stripe(index, batch, width)
        mean = means[block * width + k0 : block * width + k1]
        square = squares[block * width + k0 : block * width + k1]
        mean[:] = 0.0
        square[:] = 0.0
        for n in range(n0, n1):
            _add_offsets(x[n * width + k0 : n * width + k1], origin[k0:k1], mean)
        for i in range(mean.size):
            mean[i] /= n1 - n0
        for n in range(n0, n1):
            _add_squares(x[n * width + k0 : n * width + k1], origin[k0:k1], mean, square)


def _batch_norm_sums_columns(g: Any, x: Any, mean: Any, width: Any, sums: Any, products: Any) -> None:
    batch = x.size // max(1, width)
    for index in prange(_stripes(batch, width)):
        block, n0, n1, k0, k1 = _stripe(index, batch, width)
        total = sums[block * width + k0 : block * width + k1]
        product = products[block * width + k0 : block * width + k1]
        total[:] = 0.0
        product[:] = 0.0
        for n in range(n0, n1):
            low, high = n * width + k0, n * width + k1
            _add_products(g[low:high], x[low:high], mean[k0:k1], total, product)


def _batch_norm_scaled_sums_columns(
    g: Any, x: Any, mean: Any, scale: Any, out: Any, width: Any, sums: Any, products: Any
) -> None:
    batch = x.size // max(1, width)
    for index in prange(_stripes(batch, width)):
        block, n0, n1, k0, k1 = _stripe(index, batch, width)
        total = sums[block * width + k0 : block * width + k1]
        product = products[block * width + k0 : block * width + k1]
        total[:] = 0.0
        product[:] = 0.0
        for n in range(n0, n1):
            low, high = n * width + k0, n * width + k1
            # The sums first, as above.
            _add_products(g[low:high], x[low:high], mean[k0:k1], total, product)
            _scale_columns(g[low:high], scale[k0:k1], out[low:high])


_moments_rows = _Loop(_batch_norm_moments_rows, "rfiPP")
_sums_rows = _Loop(_batch_norm_sums_rows, "rrfiPP")
_scaled_sums_rows = _Loop(_batch_norm_scaled_sums_rows, "rrfrwiPP")
_moments_columns = _Loop(_batch_norm_moments_columns, "rfipp")
_sums_columns = _Loop(_batch_norm_sums_columns, "rrfipp")
_scaled_sums_columns = _Loop(_batch_norm_scaled_sums_columns, "rrfrwipp")


class _Steps(NamedTuple):
    """An elementwise step step(a, b, p0, ..., p4), with five numbers per channel, in both layouts."""

    rows: _Loop
    columns: _Loop


def _steps(name: str, step: Callable[..., Any]) -> _Steps:
    step = register_jitable(step)

    @register_jitable
    def along_row(a: Any, b: Any, p0: Any, p1: Any, p2: Any, p3: Any, p4: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = step(a[i], b[i], p0, p1, p2, p3, p4)

    @register_jitable
    def along_columns(a: Any, b: Any, p0: Any, p1: Any, p2: Any, p3: Any, p4: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = step(a[i], b[i], p0[i], p1[i], p2[i], p3[i], p4[i])

    def rows(a: Any, b: Any, p: Any, length: Any, out: Any) -> None:
        channels = p.shape[1]
        count = out.size // length
        height, width = max(1, TILE // length), min(length, TILE)
        for t in prange((count + height - 1) // height * ((length + width - 1) // width)):
            r0, r1, s0, s1 = _tile(t, count, length)
            c = r0 % channels
            for r in range(r0, r1):
                low, high = r * length + s0, r * length + s1
                along_row(a[low:high], b[low:high], p[0, c], p[1, c], p[2, c], p[3, c], p[4, c], out[low:high])
                c = 0 if c + 1 == channels else c + 1

    def columns(a: Any, b: Any, p: Any, out: Any) -> None:
        width = p.shape[1]
        batch = out.size // width
        for index in prange(_stripes(batch, width)):
            _, n0, n1, k0, k1 = _stripe(index, batch, width)
            for n in range(n0, n1):
                low, high = n * width + k0, n * width + k1
                along_columns(
                    a[low:high],
                    b[low:high],
                    p[0, k0:k1],
                    p[1, k0:k1],
                    p[2, k0:k1],
                    p[3, k0:k1],
                    p[4, k0:k1],
                    out[low:high],
                )

    rows.__name__, columns.__name__ = f"{name}_rows", f"{name}_columns"
    return _Steps(_Loop(rows, "rrniw"), _Loop(columns, "rrnw"))


def _normalize_step(x: Any, unused: Any, high: Any, low: Any, invstd: Any, weight: Any, bias: Any) -> Any:
    return (x - high - low) * invstd * weight + bias


def _differentiate_step(g: Any, x: Any, mean: Any, invstd: Any, scale: Any, mean_grad: Any, mean_grad_xhat: Any) -> Any:
    xhat = (x - mean) * invstd
    return scale * (g - mean_grad - xhat * mean_grad_xhat)


_normalize = _steps("_batch_norm_normalize", _normalize_step)
_differentiate = _steps("_batch_norm_differentiate", _differentiate_step)


# Clipping: flat arrays in chunks; arithmetic in float64, as a coefficient may be subnormal in float32.


@register_jitable
def _scaled_squares_row(a: Any, scale: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        scaled = np.float64(a[i]) * scale
        total = add_in_any_order(total, scaled * scaled)
    return total


@register_jitable
def _scaled_products_row(v: Any, g: Any, scale: Any) -> Any:
    total = 0.0
    for i in range(v.size):
        total = add_in_any_order(total, np.float64(v[i]) * (np.float64(g[i]) * scale))
    return total


@register_jitable
def _scaled_row(a: Any, factor: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = np.float64(a[i]) * factor


@register_jitable
def _differences_row(v: Any, g: Any, c: Any, k: Any, scale: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = c * np.float64(v[i]) - k * (np.float64(g[i]) * scale)


@register_jitable
def _clamped_row(a: Any, limit: Any, out: Any) -> Any:
    """The largest kind met: 0 a finite number, 1 an infinity, 2 NaN."""
    largest_kind = 0
    for i in range(out.size):
        value = a[i]
        kind = 2 if value != value else (1 if abs(value) == np.inf else 0)
        largest_kind = max(largest_kind, kind)
        out[i] = limit if value > limit else (-limit if value < -limit else value)
    return largest_kind


def _clip_squares(a: Any, scale: Any, partial: Any) -> None:
    for chunk in prange(partial.size):
        partial[chunk] = _scaled_squares_row(a[chunk * CHUNK : min((chunk + 1) * CHUNK, a.size)], scale)


def _clip_dots(v: Any, g: Any, scale: Any, partial: Any) -> None:
    for chunk in prange(partial.size):
        low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, v.size)
        partial[chunk] = _scaled_products_row(v[low:high], g[low:high], scale)


def _clip_scaled(a: Any, factor: Any, out: Any) -> None:
    for chunk in prange((a.size + CHUNK - 1) // CHUNK):
        low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, a.size)
        _scaled_row(a[low:high], factor, out[low:high])


def _clip_differences(v: Any, g: Any, c: Any, k: Any, scale: Any, out: Any) -> None:
    for chunk in prange((v.size + CHUNK - 1) // CHUNK):
        low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, v.size)
        _differences_row(v[low:high], g[low:high], c, k, scale, out[low:high])


def _clip_clamped(a: Any, limit: Any, out: Any, kinds: Any) -> None:
    real = a.dtype.type(limit)
    for chunk in prange(kinds.size):
        low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, a.size)
        kinds[chunk] = _clamped_row(a[low:high], real, out[low:high])


_squares = _Loop(_clip_squares, "rsp")
_dots = _Loop(_clip_dots, "rrsp")
_scaled = _Loop(_clip_scaled, "rsw")
_differences = _Loop(_clip_differences, "rrsssw")
_clamped = _Loop(_clip_clamped, "rswk")
_mask = Pointwise("clip_mask", 2, lambda m: _mask_step(m.real(0)))


def _mask_step(zero: Any) -> Callable[..., Any]:
    def mask(v: Any, g: Any, limit: Any) -> Any:
        return v if abs(g) <= limit else zero

    return mask


# Residual addition: the scalar functions of the activation, applied to the sum.


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
