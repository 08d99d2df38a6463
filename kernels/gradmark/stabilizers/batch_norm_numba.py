"""Batch norm in Numba: two passes over the input, or one where nothing waits for sums over the whole of it.

x of shape (batch, channels, *spatial) is a matrix here: a row for each sample, and in it `length` columns for each
channel, its places in space. It is walked in cells of ROWS rows and about STRIPE columns, which hold whole channels or
a piece of one. Where a channel's columns are few, its numbers are first spread along them, and the sums run in a lane
for each column: so the loop over elements runs across the channels. Where they are many, each channel has a loop.

The sums of a channel's cells are added in the order of the cells: the bits depend on the shape, not on the threads.
Where all threads find groups of channels to work on, each takes whole groups, and reads their elements for the second
time from its own cache. Otherwise the threads share the cells of each pass. A result beyond the last-level cache is
stored past the caches, where the runs are long enough for whole lines.

Normalizing by running statistics needs no cells: it walks the rows as they lie in memory, and stores as ever.

Arrays that are not C-contiguous are copied first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import prange
from numba.extending import register_jitable

from gradmark.numerics import fused
from gradmark.numerics.by_address import call
from gradmark.numerics.elementary import add_in_any_order, inlined
from gradmark.numerics.layout import contiguous, delivered, flattened
from gradmark.numerics.streaming import fence, store_past_caches
from gradmark.stabilizers.arrays import moving_average
from gradmark.stabilizers.loops_numba import Function, Loop

STRIPE = 1 << 10
"""Columns of a cell: what is spread along them, and the lanes of the sums, stay in the first-level cache."""
ROWS = 1 << 6
"""Rows of a cell: it stays in the second-level cache between two passes."""
LANE = 1 << 4
"""Gradients that a lane adds in the precision of the data before float64 takes over: about as many in both layouts."""
LONG_RUN = 32
"""Places of a channel from which a loop over them alone is worth it."""


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
    channels = x.shape[1]
    high, invstd = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    mean, var = np.empty(channels), np.empty(channels)
    y = _run(_TRAINING, (x,), (*_affine(weight, bias, x), eps), out, (high, invstd, mean, var))
    count = x.size // max(1, channels)
    with np.errstate(all="ignore"):
        return (
            y,
            high,
            invstd,
            moving_average(running_mean, mean, momentum),
            moving_average(running_var, var * (count / (count - 1)), momentum),
        )


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, invstd: Any, out: Any) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm` in x, weight and bias.

    With x̂ = (x - mean) invstd over m values: ∂x̂_j/∂x_i = invstd (δ_ij - 1/m - x̂_i x̂_j / m), hence
    dx = weight invstd (g - Σg / m - x̂ Σ(g x̂) / m).
    """
    dweight, dbias = np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    numbers = _weight(weight, x), contiguous(mean), contiguous(invstd)
    dx = _run(_TRAINING_BACKWARD, (grad, x), numbers, out, (dweight, dbias))
    return (dx, None, None) if weight is None else (dx, dweight, dbias)


def batch_norm_inference(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> Any:
    """Normalize by the running statistics."""
    numbers = *_affine(weight, bias, x), contiguous(running_mean), contiguous(running_var), eps
    return _run(_INFERENCE, (x,), numbers, out, ())


def batch_norm_inference_backward(
    grad: Any, x: Any, weight: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm_inference`: y is affine in x, so dx = weight invstd g."""
    dweight, dbias = np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    numbers = _weight(weight, x), contiguous(running_mean), contiguous(running_var), eps
    dx = _run(_INFERENCE_BACKWARD, (grad, x), numbers, out, (dweight, dbias))
    return (dx, None, None) if weight is None else (dx, dweight, dbias)


class _Kernel(NamedTuple):
    """One loop twice, where nothing waits for sums over the whole."""

    groups: Loop
    """Each thread takes whole groups of channels."""
    cells: Loop
    """The threads share the cells of each pass."""


def _run(kernel: _Kernel, inputs: tuple[Any, ...], numbers: tuple[Any, ...], out: Any, results: tuple[Any, ...]) -> Any:
    """Fill the output, which is like the first input, and the results per channel; return the output."""
    x = inputs[0]
    y = np.empty_like(x, subok=False) if out is None else out
    if x.size == 0:
        return y
    batch, channels = x.shape[:2]
    length = x.size // (batch * channels)
    flat = [*inputs, y]
    if not all([a.flags.carray for a in flat]):  # noqa: C419
        flat = flattened(*flat, order="C")
    *matrices, result = [a.reshape(batch, -1) for a in flat]
    streamed = int(y.nbytes >= fused.STREAM_FROM)
    arguments = *matrices, length, streamed, *numbers, result, *results
    kernel.groups.run(x.dtype, x.size, arguments, kernel.cells if _is_short_of_groups(x, length) else kernel.groups)
    return delivered(y, flat[-1])


def _is_short_of_groups(x: Any, length: int) -> bool:
    """Whether some threads would have no group of channels to work on, or half of one, while others have whole ones."""
    if x.size < fused.PARALLEL_FROM:
        return False
    _, _, groups, parts = _grid(x.shape[0], x.shape[1], length)
    return bool(parts > 1 and groups < 2 * numba.get_num_threads())


def _affine(weight: Any, bias: Any, x: Any) -> tuple[Any, Any]:
    return _weight(weight, x), np.zeros(x.shape[1], x.dtype) if bias is None else contiguous(bias)


def _weight(weight: Any, x: Any) -> Any:
    return np.ones(x.shape[1], x.dtype) if weight is None else contiguous(weight)


# Cells. `group` counts groups of channels, `part` the cells of a group. A step is a function of an element of each of
# two matrices and of four numbers of its channel: a column of `numbers`, which has one for each channel of the cell.


@register_jitable
def _grid(rows: Any, channels: Any, length: Any) -> Any:
    """Channels in a group; pieces of a long channel; groups; parts of a group."""
    across = max(1, min(channels, STRIPE // length))
    pieces = (length + STRIPE - 1) // STRIPE
    return across, pieces, (channels + across - 1) // across, (rows + ROWS - 1) // ROWS * pieces


@register_jitable
def _cell(matrix: Any, length: Any, group: Any, part: Any) -> Any:
    """First and last channel; first and last row; first and last column; places of each channel."""
    rows = matrix.shape[0]
    channels = matrix.shape[1] // length
    across, pieces, _, _ = _grid(rows, channels, length)
    c0 = group * across
    c1 = min(c0 + across, channels)
    n0 = part // pieces * ROWS
    s0 = part % pieces * STRIPE
    s1 = min(s0 + STRIPE, length)
    return c0, c1, n0, min(n0 + ROWS, rows), c0 * length + s0, (c1 - 1) * length + s1, s1 - s0


@register_jitable
def _spread(numbers: Any, places: Any, width: Any) -> Any:
    """The numbers of a cell's channels, one for each column."""
    columns = np.empty((4, STRIPE), numbers.dtype)
    for k in range(4):
        if places == 1:
            for i in range(width):
                columns[k, i] = numbers[k, i]
        else:
            # A loop for each channel, not a division for each column.
            for c in range(width // places):
                for i in range(c * places, (c + 1) * places):
                    columns[k, i] = numbers[k, c]
    return columns[0, :width], columns[1, :width], columns[2, :width], columns[3, :width]


def _elementwise(step: Function) -> Function:
    """The function that fills a cell of `out` with the step's results, past the caches if that is asked for."""
    step = inlined(step)

    @inlined
    def loop(a: Any, b: Any, p0: Any, p1: Any, p2: Any, p3: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = step(a[i], b[i], p0[i], p1[i], p2[i], p3[i])

    def fill(a: Any, b: Any, length: Any, group: Any, part: Any, numbers: Any, streamed: Any, out: Any) -> None:
        c0, c1, n0, n1, k0, k1, places = _cell(a, length, group, part)
        if streamed and places >= LONG_RUN:
            buffer = np.empty(places, out.dtype)
            for n in range(n0, n1):
                for c in range(c1 - c0):
                    p0, p1, p2, p3 = numbers[0, c], numbers[1, c], numbers[2, c], numbers[3, c]
                    k = np.uint64(k0 + c * length)
                    for i in range(np.uint64(places)):
                        buffer[i] = step(a[n, k + i], b[n, k + i], p0, p1, p2, p3)
                    store_past_caches(buffer, out[n, k0 + c * length : k0 + c * length + places])
            fence()
        elif places >= LONG_RUN:
            for n in range(n0, n1):
                for c in range(c1 - c0):
                    p0, p1, p2, p3 = numbers[0, c], numbers[1, c], numbers[2, c], numbers[3, c]
                    # Unsigned: Numba compares what may be negative with 0 at each element.
                    k = np.uint64(k0 + c * length)
                    for i in range(np.uint64(places)):
                        out[n, k + i] = step(a[n, k + i], b[n, k + i], p0, p1, p2, p3)
        else:
            p0, p1, p2, p3 = _spread(numbers, places, k1 - k0)
            for n in range(n0, n1):
                loop(a[n, k0:k1], b[n, k0:k1], p0, p1, p2, p3, out[n, k0:k1])

    return inlined(fill)


def _summed(step: Function) -> Function:
    """The function that sums the step's results, which are pairs, for each of a cell's channels.

    It adds up to STRIPE or LANE of them in the precision of `numbers`, and these sums in float64.
    """
    step = inlined(step)

    @inlined
    def loop(a: Any, b: Any, p0: Any, p1: Any, p2: Any, p3: Any, lanes: Any) -> None:
        # Two loops: LLVM compares at most eight pairs of addresses to see that no arrays overlap; one needs more.
        for i in range(lanes.shape[1]):
            lanes[0, i] += step(a[i], b[i], p0[i], p1[i], p2[i], p3[i])[0]
        for i in range(lanes.shape[1]):
            lanes[1, i] += step(a[i], b[i], p0[i], p1[i], p2[i], p3[i])[1]

    @inlined
    def loop_of_two(a: Any, b: Any, a2: Any, b2: Any, p0: Any, p1: Any, p2: Any, p3: Any, lanes: Any) -> None:
        # A lane is read and stored once for two rows, whose sum must not overflow where a lane would not.
        real = lanes.dtype.type
        for i in range(lanes.shape[1]):
            u = real(step(a[i], b[i], p0[i], p1[i], p2[i], p3[i])[0])
            lanes[0, i] += u + real(step(a2[i], b2[i], p0[i], p1[i], p2[i], p3[i])[0])
        for i in range(lanes.shape[1]):
            u = real(step(a[i], b[i], p0[i], p1[i], p2[i], p3[i])[1])
            lanes[1, i] += u + real(step(a2[i], b2[i], p0[i], p1[i], p2[i], p3[i])[1])

    def add(a: Any, b: Any, length: Any, group: Any, part: Any, numbers: Any, sums: Any) -> None:
        c0, c1, n0, n1, k0, k1, places = _cell(a, length, group, part)
        real = numbers.dtype.type
        zero = real(0)
        sums[:] = 0.0
        if places >= LONG_RUN:
            for n in range(n0, n1):
                for c in range(c1 - c0):
                    p0, p1, p2, p3 = numbers[0, c], numbers[1, c], numbers[2, c], numbers[3, c]
                    k = np.uint64(k0 + c * length)
                    first, second = zero, zero
                    for i in range(np.uint64(places)):
                        u, v = step(a[n, k + i], b[n, k + i], p0, p1, p2, p3)
                        first = add_in_any_order(first, real(u))
                        second = add_in_any_order(second, real(v))
                    sums[0, c] += np.float64(first)
                    sums[1, c] += np.float64(second)
        else:
            p0, p1, p2, p3 = _spread(numbers, places, k1 - k0)
            lanes = np.empty((2, k1 - k0), numbers.dtype)
            for start in range(n0, n1, LANE):
                lanes[:] = zero
                stop = min(start + LANE, n1)
                for n in range(start, stop - 1, 2):
                    a0, b0, a1, b1 = a[n, k0:k1], b[n, k0:k1], a[n + 1, k0:k1], b[n + 1, k0:k1]
                    loop_of_two(a0, b0, a1, b1, p0, p1, p2, p3, lanes)
                if (stop - start) % 2:
                    loop(a[stop - 1, k0:k1], b[stop - 1, k0:k1], p0, p1, p2, p3, lanes)
                if places == 1:
                    for c in range(c1 - c0):
                        sums[0, c] += np.float64(lanes[0, c])
                        sums[1, c] += np.float64(lanes[1, c])
                else:
                    for c in range(c1 - c0):
                        for i in range(c * places, (c + 1) * places):
                            sums[0, c] += np.float64(lanes[0, i])
                            sums[1, c] += np.float64(lanes[1, i])

    return inlined(add)


# Training, forward: y = (x - mean) scale + shift.


@_summed
def _sum_offsets(x: Any, unused: Any, origin: Any, p1: Any, p2: Any, p3: Any) -> Any:
    d = np.float64(x) - origin
    return d, d * d


@inlined
def _normalize(x: Any, mean: Any, scale: Any, shift: Any) -> Any:
    return (x - mean) * scale + shift


@_elementwise
def _apply_affine(x: Any, unused: Any, mean: Any, scale: Any, shift: Any, p3: Any) -> Any:
    return _normalize(x, mean, scale, shift)


@register_jitable
def _origin(x: Any, length: Any, c: Any) -> Any:
    """The first value of a channel, from which its offsets are taken; 0 in place of infinity, whose offset is NaN."""
    first = np.float64(x[0, c * length])
    return first if math.isfinite(first) else 0.0


@register_jitable
def _moments(x: Any, length: Any, group: Any, part: Any, moments: Any) -> None:
    """A cell's mean relative to the first value of each channel, and the squares about it, summed.

    That value is one of n of the channel, so the squares about it are at most n + 1 times those about the mean: of the
    bits of float64, enough are left for float32. For float64, a second pass starts from the mean that the first found.
    """
    c0, c1, n0, n1, _, _, places = _cell(x, length, group, part)
    count = (n1 - n0) * places
    base = np.empty((4, c1 - c0))
    for c in range(c1 - c0):
        base[0, c] = _origin(x, length, c0 + c)
    _sum_offsets(x, x, length, group, part, base, moments)
    if x.itemsize > 4:
        for c in range(c1 - c0):
            mean = moments[0, c] / count
            base[0, c] += mean if math.isfinite(mean) else 0.0
        _sum_offsets(x, x, length, group, part, base, moments)
    for c in range(c1 - c0):
        mean = moments[0, c] / count
        moments[1, c] -= moments[0, c] * mean
        moments[0, c] = (base[0, c] - _origin(x, length, c0 + c)) + mean


@register_jitable
def _statistics(
    x: Any,
    length: Any,
    group: Any,
    moments: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    numbers: Any,
    invstd: Any,
    mean: Any,
    var: Any,
) -> None:
    """Mean and variance of the union of a group's cells (Chan, Golub, LeVeque, Am. Stat. 37, 1983)."""
    real = invstd.dtype.type
    total = x.shape[0] * length
    c0, c1, _, _, _, _, _ = _cell(x, length, group, 0)
    counts, shares = np.empty(moments.shape[0]), np.empty(moments.shape[0])
    for part in range(counts.size):
        _, _, n0, n1, _, _, places = _cell(x, length, group, part)
        counts[part] = (n1 - n0) * places
        shares[part] = counts[part] / total
    for c in range(c0, c1):
        offset, square = 0.0, 0.0
        for part in range(counts.size):
            offset += moments[part, 0, c - c0] * shares[part]
        for part in range(counts.size):
            d = moments[part, 0, c - c0] - offset
            square += moments[part, 1, c - c0] + d * d * counts[part]
        origin = _origin(x, length, c)
        mean[c] = origin + offset
        var[c] = square / total
        inverse = 1.0 / math.sqrt(var[c] + eps)
        invstd[c] = real(inverse)
        # x - high is exact where x is near the mean, so that nothing cancels although the loop runs in x's precision.
        high = real(mean[c])
        low = (mean[c] - np.float64(high)) + (offset - (mean[c] - origin))
        scale = np.float64(weight[c]) * inverse
        numbers[0, c] = high
        numbers[1, c] = real(scale)
        numbers[2, c] = real(np.float64(bias[c]) - low * scale)


@register_jitable
def _channels(group: Any, across: Any, channels: Any) -> Any:
    """First and last channel of a group."""
    return group * across, min((group + 1) * across, channels)


def _batch_norm_groups(
    moments_of: int,
    apply_affine: int,
    x: Any,
    length: Any,
    streamed: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    y: Any,
    high: Any,
    invstd: Any,
    mean: Any,
    var: Any,
) -> None:
    across, _, groups, parts = _grid(x.shape[0], mean.size, length)
    numbers = np.empty((4, mean.size), y.dtype)
    for group in prange(groups):
        c0, c1 = _channels(group, across, mean.size)
        moments = np.empty((parts, 2, c1 - c0))
        for part in range(parts):
            call(moments_of, (x, length, group, part, moments[part]))
        _statistics(x, length, group, moments, weight, bias, eps, numbers, invstd, mean, var)
        for part in range(parts):
            call(apply_affine, (x, x, length, group, part, numbers[:, c0:c1], streamed, y))
    high[:] = numbers[0]


def _batch_norm_cells(
    moments_of: int,
    apply_affine: int,
    x: Any,
    length: Any,
    streamed: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    y: Any,
    high: Any,
    invstd: Any,
    mean: Any,
    var: Any,
) -> None:
    across, _, groups, parts = _grid(x.shape[0], mean.size, length)
    numbers = np.empty((4, mean.size), y.dtype)
    moments = np.empty((parts, 2, mean.size))
    for cell in prange(groups * parts):
        c0, c1 = _channels(cell // parts, across, mean.size)
        call(moments_of, (x, length, cell // parts, cell % parts, moments[cell % parts, :, c0:c1]))
    for group in range(groups):
        c0, c1 = _channels(group, across, mean.size)
        _statistics(x, length, group, moments[:, :, c0:c1], weight, bias, eps, numbers, invstd, mean, var)
    for cell in prange(groups * parts):
        c0, c1 = _channels(cell // parts, across, mean.size)
        call(apply_affine, (x, x, length, cell // parts, cell % parts, numbers[:, c0:c1], streamed, y))
    high[:] = numbers[0]


# Training, backward: dx = scale (g - Σg / m - (x - mean) slope).


@_summed
def _sum_products(g: Any, x: Any, mean: Any, invstd: Any, p2: Any, p3: Any) -> Any:
    return g, g * ((x - mean) * invstd)


@register_jitable
def _sum_gradients(g: Any, x: Any, length: Any, group: Any, part: Any, statistics: Any, sums: Any) -> None:
    """Σ g and Σ g x̂ of a cell's channels."""
    _sum_products(g, x, length, group, part, statistics, sums)
    if not np.isfinite(sums.sum()):
        # A sum may have left the range of float32 on its way to one that does not.
        _sum_products(g, x, length, group, part, statistics.astype(np.float64), sums)


@_elementwise
def _differentiate(g: Any, x: Any, mean: Any, scale: Any, mean_grad: Any, slope: Any) -> Any:
    return scale * (g - mean_grad - (x - mean) * slope)


@register_jitable
def _gradients(sums: Any, c0: Any, dweight: Any, dbias: Any) -> None:
    """The sums of a group's cells, added up: into the first cell's, and rounded into the gradients."""
    for part in range(1, sums.shape[0]):
        sums[0] += sums[part]
    for c in range(sums.shape[2]):
        dbias[c0 + c] = sums[0, 0, c]
        dweight[c0 + c] = sums[0, 1, c]


@register_jitable
def _statistics_of(mean: Any, invstd: Any) -> Any:
    """The numbers of `_sum_gradients`."""
    numbers = np.empty((4, mean.size), mean.dtype)
    numbers[0] = mean
    numbers[1] = invstd
    return numbers


@register_jitable
def _factors(sums: Any, c0: Any, count: Any, weight: Any, mean: Any, invstd: Any, numbers: Any) -> None:
    """The numbers of `_differentiate` for a group's channels."""
    for c in range(c0, c0 + sums.shape[2]):
        numbers[0, c] = mean[c]
        numbers[1, c] = np.float64(weight[c]) * np.float64(invstd[c])
        numbers[2, c] = sums[0, 0, c - c0] / count
        numbers[3, c] = sums[0, 1, c - c0] / count * np.float64(invstd[c])


def _batch_norm_backward_groups(
    sum_gradients: int,
    differentiate: int,
    g: Any,
    x: Any,
    length: Any,
    streamed: Any,
    weight: Any,
    mean: Any,
    invstd: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    across, _, groups, parts = _grid(x.shape[0], dbias.size, length)
    statistics = _statistics_of(mean, invstd)
    numbers = np.empty((4, dbias.size), dx.dtype)
    for group in prange(groups):
        c0, c1 = _channels(group, across, dbias.size)
        sums = np.empty((parts, 2, c1 - c0))
        for part in range(parts):
            call(sum_gradients, (g, x, length, group, part, statistics[:, c0:c1], sums[part]))
        _gradients(sums, c0, dweight, dbias)
        _factors(sums, c0, x.shape[0] * length, weight, mean, invstd, numbers)
        for part in range(parts):
            call(differentiate, (g, x, length, group, part, numbers[:, c0:c1], streamed, dx))


def _batch_norm_backward_cells(
    sum_gradients: int,
    differentiate: int,
    g: Any,
    x: Any,
    length: Any,
    streamed: Any,
    weight: Any,
    mean: Any,
    invstd: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    across, _, groups, parts = _grid(x.shape[0], dbias.size, length)
    statistics = _statistics_of(mean, invstd)
    numbers = np.empty((4, dbias.size), dx.dtype)
    sums = np.empty((parts, 2, dbias.size))
    for cell in prange(groups * parts):
        c0, c1 = _channels(cell // parts, across, dbias.size)
        part = cell % parts
        call(sum_gradients, (g, x, length, cell // parts, part, statistics[:, c0:c1], sums[part, :, c0:c1]))
    _gradients(sums, 0, dweight, dbias)
    _factors(sums, 0, x.shape[0] * length, weight, mean, invstd, numbers)
    for cell in prange(groups * parts):
        c0, c1 = _channels(cell // parts, across, dbias.size)
        call(differentiate, (g, x, length, cell // parts, cell % parts, numbers[:, c0:c1], streamed, dx))


# By running statistics: nothing waits for a sum.


@_elementwise
def _scale(g: Any, unused: Any, scale: Any, p1: Any, p2: Any, p3: Any) -> Any:
    return g * scale


@inlined
def _normalize_row(x: Any, mean: Any, scale: Any, shift: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = _normalize(x[i], mean[i], scale[i], shift[i])


def _batch_norm_inference(
    x: Any, length: Any, streamed: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: Any, y: Any
) -> None:
    # In the order of memory, as no element is needed twice. Streamed stores lose in this order: 5.1 instead of 3.7 ms
    # at 2^24 elements of float32, interleaved.
    rows, width = x.shape
    channels = mean.size
    numbers = np.empty((3, channels), y.dtype)
    for c in range(channels):
        numbers[0, c] = mean[c]
        numbers[1, c] = np.float64(weight[c]) / math.sqrt(np.float64(var[c]) + eps)
        numbers[2, c] = bias[c]
    if length >= LONG_RUN:
        # A channel of a row, or a piece of it; several where they are short.
        pieces = (length + fused.CHUNK - 1) // fused.CHUNK
        together = max(1, fused.CHUNK // length)
        runs = rows * channels * pieces
        for share in prange((runs + together - 1) // together):
            for run in range(share * together, min((share + 1) * together, runs)):
                n, c = run // pieces // channels, run // pieces % channels
                p0, p1, p2 = numbers[0, c], numbers[1, c], numbers[2, c]
                begin = c * length + run % pieces * fused.CHUNK
                # Unsigned: Numba compares what may be negative with 0 at each element.
                k = np.uint64(begin)
                for i in range(np.uint64(min(fused.CHUNK, (c + 1) * length - begin))):
                    y[n, k + i] = _normalize(x[n, k + i], p0, p1, p2)
    else:
        columns = np.empty((3, width), y.dtype)
        for which in range(3):
            for c in range(channels):
                for i in range(c * length, (c + 1) * length):
                    columns[which, i] = numbers[which, c]
        # A stripe of a row; several rows where they are short.
        stripes = (width + STRIPE - 1) // STRIPE
        together = max(1, STRIPE // width)
        for share in prange((rows + together - 1) // together * stripes):
            first = share % stripes * STRIPE
            last = min(first + STRIPE, width)
            p0, p1, p2 = columns[0, first:last], columns[1, first:last], columns[2, first:last]
            n0 = share // stripes * together
            for n in range(n0, min(n0 + together, rows)):
                _normalize_row(x[n, first:last], p0, p1, p2, y[n, first:last])


def _batch_norm_inference_backward(
    sum_gradients: int,
    scale: int,
    g: Any,
    x: Any,
    length: Any,
    streamed: Any,
    weight: Any,
    mean: Any,
    var: Any,
    eps: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    across, _, groups, parts = _grid(x.shape[0], dbias.size, length)
    invstd = np.empty_like(mean)
    scales = np.empty((4, mean.size), dx.dtype)
    for c in range(mean.size):
        inverse = 1.0 / math.sqrt(np.float64(var[c]) + eps)
        invstd[c] = inverse
        scales[0, c] = np.float64(weight[c]) * inverse
    statistics = _statistics_of(mean, invstd)
    sums = np.empty((parts, 2, mean.size))
    for cell in prange(groups * parts):
        c0, c1 = _channels(cell // parts, across, mean.size)
        part = cell % parts
        # The sums first: dx may be the memory of g or x. The cell is in the second-level cache then.
        call(sum_gradients, (g, x, length, cell // parts, part, statistics[:, c0:c1], sums[part, :, c0:c1]))
        call(scale, (g, g, length, cell // parts, part, scales[:, c0:c1], streamed, dx))
    _gradients(sums, 0, dweight, dbias)


# What a cell takes is compiled once, and called by each of the loops over cells.
_CELL_MOMENTS = Loop(_moments, "RiiiP", name="_batch_norm_moments")
_CELL_AFFINE = Loop(_apply_affine, "RRiiiNiW", name="_batch_norm_affine")
_CELL_SUMS = Loop(_sum_gradients, "RRiiiNP", name="_batch_norm_sums")
_CELL_GRADIENT = Loop(_differentiate, "RRiiiNiW", name="_batch_norm_gradient")
_CELL_SCALE = Loop(_scale, "RRiiiNiW", name="_batch_norm_scale")

_TRAINING = _Kernel(
    *[Loop(loop, "RiirrsWwwpp", _CELL_MOMENTS, _CELL_AFFINE) for loop in (_batch_norm_groups, _batch_norm_cells)]
)
_TRAINING_BACKWARD = _Kernel(
    *[
        Loop(loop, "RRiirrrWww", _CELL_SUMS, _CELL_GRADIENT)
        for loop in (_batch_norm_backward_groups, _batch_norm_backward_cells)
    ]
)
_INFERENCE = _Kernel(*[Loop(_batch_norm_inference, "RiirrrrsW")] * 2)
_INFERENCE_BACKWARD = _Kernel(*[Loop(_batch_norm_inference_backward, "RRiirrrsWww", _CELL_SUMS, _CELL_SCALE)] * 2)
