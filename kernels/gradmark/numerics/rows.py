"""Loops for operations on whole rows (softmax and its kin): sums over a row, then a value of each of its elements.

Such an operation is a `Plan` of scalar functions; `Rows` runs it along any axis of arrays of any layout. The order of
every sum depends on the shape alone, so results do not depend on the number of threads.

The loops, by shape (outer, length, inner), where a row has `length` elements, `inner` apart:
- rows: contiguous ones, each by one thread;
- long: few contiguous rows, each in pieces by all threads;
- columns: rows side by side in vector lanes, a tile of them by one thread. Where there are few side by side, several
  pieces of a row are (and are joined at the end); where rows are short as well, those of several slabs are gathered.
Vectors are always full: what is left at the end of a row or a tile is padded with elements that add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types

from gradmark.numerics import columns
from gradmark.numerics.by_address import call
from gradmark.numerics.elementary import NumbaArithmetic, add_in_any_order, elementary, inlined
from gradmark.numerics.functions import Elementary
from gradmark.numerics.fused import BLOCK, CHUNK, PARALLEL, PARALLEL_FROM, STREAMING
from gradmark.numerics.plans import Plan, array_types, known_of, two_sum
from gradmark.numerics.slabs import deliver, slabs
from gradmark.numerics.streaming import fence, store_past_caches
from gradmark.numerics.variants import ALONE, Kernel, Shared, Variants

Function = Callable[..., Any]

LANES = 64
"""A multiple of the elements that LLVM's vector loops take at a time: full vectors, unrolled."""
SHORT_ROW = 32
"""Contiguous elements from which a row is worth a loop of its own."""
LONG_ROW = PARALLEL_FROM
FEW_ROWS = 8
"""Below this number, rows of LONG_ROW are shared by the threads."""
PIECE = 1 << 13
"""Elements of a long row that one thread handles at a time."""
SUM = 1 << 8
"""float64 elements that are summed in vector lanes; such sums are added with their rounding errors."""


class Rows:
    """out[row] = the plan's result for the row, for all rows along an axis.

    Parameters
    ----------
    name : str
        Unique among the kernels.
    make : callable
        Makes the plan from the elementary functions of a dtype.
    """

    def __init__(self, name: str, make: Callable[[Elementary], Plan]) -> None:
        self.name = name

        def variants(layout: str, build: Callable[..., tuple[Kernel, Any]], shared: dict[str, Shared]) -> Variants:
            return Variants(
                f"{name}-{layout}",
                lambda dtype, *variant: build(make(elementary(dtype)), dtype, *variant),
                shared,
            )

        self._rows = variants("rows", _rows, _SHARED)
        self._long = variants("long", _long, _SHARED_LONG)
        self._columns = variants("columns", columns.build, columns.SHARED)
        self._gathered = self._columns.shared_by(columns.SHARED_GATHERED)

    def __call__(self, inputs: Sequence[Any], axis: int, out: Any) -> Any:
        """Fill `out`, and return it."""
        if out.size == 0:
            return out
        flat, outer, inner, scattered = slabs(axis, *inputs, out)
        length = out.shape[axis]
        aliased = None
        for index, array in enumerate(inputs):
            if array is out and scattered is None:
                aliased = index
        # Two arrays in any case: one of a forward pass stands for both.
        a, b, target = flat[0], flat[-2], flat[-1]
        shared: tuple[Any, ...]
        if inner > 1 or length < SHORT_ROW:
            if columns.is_gathered(length, inner):
                shared = a, b, len(inputs) == 2, length, inner, target
                self._gathered(out.size, target, shared, shared, streamed=False)
            else:
                groups, span = columns.tiling(length, inner)
                tasks = outer * -(-inner // span)
                shared = a, b, outer, length, inner, groups, span, aliased is not None, target
                self._columns(out.size, target, (*shared, 0, tasks), shared, streamed=False)
        elif length < LONG_ROW or outer >= FEW_ROWS:
            shared = a, b, length, target
            self._rows(out.size, target, (*shared, 0, outer), shared, aliased=aliased)
        else:
            shared = a, b, length, target
            self._long(out.size, target, shared, shared, aliased=aliased, streamed=False)
        deliver(flat, scattered)
        return out


class _Pieces(NamedTuple):
    """The loops over one contiguous run of elements that the kernels are put together from."""

    peaked: bool
    largest: Function
    """a -> the key of its largest logit."""
    from_key: Function
    sums: Function
    """(a, b, e, peak, high, low) -> total, rest, count; fills e with what is kept."""
    known: Function
    """(total, rest, count, peak) -> high, low."""
    values: Function
    """(a, b, out, peak, high, low): fills out, which holds what was kept."""
    start: Any
    repeats: bool
    padding: Any


def _pieces(plan: Plan, dtype: str) -> _Pieces:
    m = elementary(dtype)
    largest, from_key = _largest(plan.logit, dtype)
    return _Pieces(
        plan.logit is not None,
        largest,
        from_key,
        _sums_of(plan, m),
        known_of(plan, m),
        _values(plan, m),
        m.real(plan.start),
        plan.repeats,
        m.real(plan.padding),
    )


def _largest(logit: Function | None, dtype: str) -> tuple[Function, Function]:
    """The bits of floats, as integers, in the order of the floats; integers have a maximum in any order.

    NaN with a plus sign is the largest. One with a minus sign, the smallest, reaches the result through the sums.
    """
    arithmetic = NumbaArithmetic(dtype)
    as_bits, as_real, integer = arithmetic.as_bits, arithmetic.as_real, arithmetic.integer
    narrow = np.int32 if dtype == "float32" else np.int64
    sign, mask = integer(31 if dtype == "float32" else 63), integer(2**31 - 1 if dtype == "float32" else 2**63 - 1)
    lowest = integer(-(2**31) if dtype == "float32" else -(2**63))
    logit = inlined(logit or (lambda a: a))

    @inlined
    def swapped(bits: Any) -> Any:
        # Numba widens integers as it computes with them, and LLVM narrows what is cut off at once.
        return narrow(bits ^ narrow(narrow(bits >> sign) & mask))

    @inlined
    def largest(a: Any) -> Any:
        top = lowest
        for i in range(a.size):
            key = swapped(as_bits(logit(a[i])))
            top = key if key > top else top
        return top

    @inlined
    def from_key(key: Any) -> Any:
        return as_real(swapped(key))

    return largest, from_key


def _sums_of(plan: Plan, m: Elementary) -> Function:
    if m.dtype == "float32":
        return _sums(plan, m)
    return _sums_in_blocks(_sums(plan, m)) if plan.largest_term is None else _sums_on_grid(plan, m)


def _sums(plan: Plan, m: Elementary) -> Function:
    keeps, counts, zero = plan.kept is not None, plan.counted is not None, m.real(0)
    kept = inlined(plan.kept or (lambda a, b, peak: zero))
    term = inlined(plan.term)
    counted = inlined(plan.counted or (lambda a, b, peak, high, low: False))

    @inlined
    def sums(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        total = 0.0
        count = 0
        for i in range(a.size):
            value = kept(a[i], b[i], peak)
            total = add_in_any_order(total, term(a[i], b[i], value, peak, high, low))
            if keeps:
                e[i] = value
            if counts:
                count += 1 if counted(a[i], b[i], peak, high, low) else 0
        return total, 0.0, count

    return sums


def _sums_on_grid(plan: Plan, m: Elementary) -> Function:
    """The terms' multiples of 2^-30 of the largest, of which 2^22 sum up exactly, and what is left of them.

    Rump, Ogita, Oishi, SIAM J. Sci. Comput. 31, 2008, algorithm 3.2.
    """
    keeps, counts, zero = plan.kept is not None, plan.counted is not None, m.real(0)
    kept = inlined(plan.kept or (lambda a, b, peak: zero))
    term = inlined(plan.term)
    counted = inlined(plan.counted or (lambda a, b, peak, high, low: False))
    assert plan.largest_term is not None
    grid = 1.5 * 2.0**22 * plan.largest_term

    @inlined
    def sums(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        total, rest = 0.0, 0.0
        count = 0
        for i in range(a.size):
            value = kept(a[i], b[i], peak)
            part = term(a[i], b[i], value, peak, high, low)
            coarse = (part + grid) - grid
            total = add_in_any_order(total, coarse)
            rest = add_in_any_order(rest, part - coarse)
            if keeps:
                e[i] = value
            if counts:
                count += 1 if counted(a[i], b[i], peak, high, low) else 0
        # Where all terms are small, the rest is the larger part.
        total, rest = two_sum(total, 0.0, rest)
        return total, rest, count

    return sums


def _sums_in_blocks(sums: Function) -> Function:
    """Sums of float64, in blocks; the sum of blocks keeps its rounding errors (Knuth's two-sum, TAOCP 2, 4.2.2)."""

    @inlined
    def in_blocks(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        total, rest = 0.0, 0.0
        count = 0
        for begin in range(0, a.size, SUM):
            end = min(begin + SUM, a.size)
            part, _, counted = sums(a[begin:end], b[begin:end], e[begin:end], peak, high, low)
            total, rest = two_sum(total, rest, part)
            count += counted
        return total, rest, count

    return in_blocks


def _values(plan: Plan, m: Elementary) -> Function:
    keeps, zero, value = plan.kept is not None, m.real(0), inlined(plan.value)

    @inlined
    def values(a: Any, b: Any, out: Any, peak: Any, high: Any, low: Any) -> None:
        for i in range(out.size):
            out[i] = value(a[i], b[i], out[i] if keeps else zero, peak, high, low)

    return values


def _row(pieces: _Pieces) -> Function:
    """One row: its whole vectors where they are, its last elements in padded arrays x, w and t of LANES elements."""
    peaked, largest, from_key, sums, known, values, start, repeats, padding = pieces

    @inlined
    def row(a: Any, b: Any, out: Any, x: Any, w: Any, t: Any) -> None:
        whole = out.size - out.size % LANES
        if whole < out.size:
            for i in range(LANES):
                x[i] = padding
                w[i] = padding
            for i in range(out.size - whole):
                x[i] = a[whole + i]
                w[i] = b[whole + i]
        last = LANES if whole < out.size else 0
        peak = padding
        if peaked:
            peak = from_key(max(largest(a[:whole]), largest(x[:last])))
        high, low = start, start - start
        before = out.size + 1
        while True:
            total, rest, count = sums(a[:whole], b[:whole], out[:whole], peak, high, low)
            total_of_last, rest_of_last, count_of_last = sums(x[:last], w[:last], t[:last], peak, high, low)
            total, rest = two_sum(total, rest + rest_of_last, total_of_last)
            count += count_of_last
            high, low = known(total, rest, np.float64(count), peak)
            if not repeats or count >= before:
                break
            before = count
        values(a[:whole], b[:whole], out[:whole], peak, high, low)
        values(x[:last], w[:last], t[:last], peak, high, low)
        for i in range(out.size - whole):
            out[whole + i] = t[i]

    return row


def _inputs(aliased: int | None) -> Function:
    """(a, b, out) -> the inputs; where one is the output, to LLVM as well, which else leaves the vector loop there."""
    return inlined(
        {None: lambda a, b, out: (a, b), 0: lambda a, b, out: (out, b), 1: lambda a, b, out: (a, out)}[aliased]
    )


def _rows(plan: Plan, dtype: str, kind: str, aliased: int | None) -> tuple[Kernel, Any]:
    row, inputs = _row(_pieces(plan, dtype)), _inputs(aliased)

    def kernel(a: Any, b: Any, length: int, out: Any, first: int, last: int) -> None:
        padded = np.empty((3, LANES), out.dtype)
        for r in range(first, last):
            low, high = r * length, (r + 1) * length
            x, w = inputs(a[low:high], b[low:high], out[low:high])
            row(x, w, out[low:high], padded[0], padded[1], padded[2])

    return kernel, _rows_type(dtype, part=True)


def _rows_type(dtype: str, *, part: bool = False) -> Any:
    source, target = array_types(dtype)
    return types.void(source, source, types.int64, target, *[types.int64] * (2 * part))


def _rows_in_chunks(address: int, a: Any, b: Any, length: int, out: Any) -> None:
    rows = out.size // length
    each = max(1, CHUNK // length)
    for chunk in prange((rows + each - 1) // each):
        call(address, (a, b, length, out, chunk * each, min((chunk + 1) * each, rows)))


def _rows_streamed(address: int, a: Any, b: Any, length: int, out: Any) -> None:
    rows = out.size // length
    each, together = max(1, CHUNK // length), max(1, BLOCK // length)
    for chunk in prange((rows + each - 1) // each):
        block = np.empty(together * length, out.dtype)
        last = min((chunk + 1) * each, rows)
        for first in range(chunk * each, last, together):
            count = min(together, last - first)
            low, high = first * length, (first + count) * length
            call(address, (a[low:high], b[low:high], length, block, 0, count))
            store_past_caches(block[: high - low], out[low:high])
        fence()


_SHARED = {
    PARALLEL: Shared("rows", _rows_in_chunks, _rows_type),
    STREAMING: Shared("rows", _rows_streamed, _rows_type),
}


def _long(plan: Plan, dtype: str, kind: str, aliased: int | None) -> tuple[Kernel, Any]:
    """One step of the work on a long row, on one piece of it or on what its pieces have found."""
    peaked, largest, from_key, sums, known, values, start, repeats, padding = _pieces(plan, dtype)
    inputs = _inputs(aliased)
    integer = np.int32 if dtype == "float32" else np.int64

    def kernel(
        a: Any, b: Any, length: int, out: Any, row: int, step: int, i: int, numbers: Any, tops: Any, partial: Any
    ) -> None:
        low, high = row * length + i * PIECE, min(row * length + (i + 1) * PIECE, (row + 1) * length)
        x, w = inputs(a[low:high], b[low:high], out[low:high])
        target = out[low:high]
        if step == _BEGIN:
            numbers[0], numbers[1], numbers[2] = padding, start, start - start
            partial[_COUNT, -1] = np.inf
            tops[-1] = peaked
        elif step == _LARGEST:
            tops[i] = largest(x)
        elif step == _PEAK:
            numbers[0] = from_key(integer(tops[:-1].max()))
        elif step == _SUM:
            total, rest, count = sums(x, w, target, numbers[0], numbers[1], numbers[2])
            partial[0, i], partial[1, i], partial[_COUNT, i] = total, rest, count
        elif step == _TOTAL:
            total, rest, count = 0.0, 0.0, 0.0
            for j in range(tops.size - 1):
                total, rest = two_sum(total, rest + partial[1, j], partial[0, j])
                count += partial[_COUNT, j]
            numbers[1], numbers[2] = known(total, rest, count, numbers[0])
            tops[-1] = repeats and count < partial[_COUNT, -1]
            partial[_COUNT, -1] = count
        else:
            values(x, w, target, numbers[0], numbers[1], numbers[2])

    return kernel, _long_type(dtype, part=True)


_BEGIN, _LARGEST, _PEAK, _SUM, _TOTAL, _VALUE = range(6)
_COUNT = 2
"""Of what is known of each piece, the place of the count; the others are the total and its rest."""


def _long_type(dtype: str, *, part: bool = False) -> Any:
    source, target = array_types(dtype)
    found = [target, types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")]
    return types.void(source, source, types.int64, target, *([types.int64] * 3 + found if part else []))


def _long_in_pieces(address: int, a: Any, b: Any, length: int, out: Any) -> None:
    parts = (length + PIECE - 1) // PIECE
    # The last of each: of the row. What `tops` has there is whether the kernel asks for more.
    numbers, tops, partial = np.empty(3, out.dtype), np.empty(parts + 1, np.int64), np.empty((3, parts + 1))
    for row in range(out.size // length):
        call(address, (a, b, length, out, row, _BEGIN, 0, numbers, tops, partial))
        if tops[-1]:
            for i in prange(parts):
                call(address, (a, b, length, out, row, _LARGEST, i, numbers, tops, partial))
            call(address, (a, b, length, out, row, _PEAK, 0, numbers, tops, partial))
        again = True
        while again:
            for i in prange(parts):
                call(address, (a, b, length, out, row, _SUM, i, numbers, tops, partial))
            call(address, (a, b, length, out, row, _TOTAL, 0, numbers, tops, partial))
            again = tops[-1] != 0
        for i in prange(parts):
            call(address, (a, b, length, out, row, _VALUE, i, numbers, tops, partial))


_SHARED_LONG = {kind: Shared("long", _long_in_pieces, _long_type) for kind in (ALONE, PARALLEL)}
