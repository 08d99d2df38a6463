"""The loops of `rows` over rows side by side: runs of WIDTH columns, of which each vector lane has its own.

Whole runs are read and written where they are. Shorter ones, and those that are input and output at once (LLVM would
leave the vector loop there), go through a stage, which is a run of its own. Rows of few elements that are contiguous,
or nearly so, are gathered: an element of many rows is a run then.

All is inlined into one function: slices that are passed on count references, with an atomic instruction each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from gradmark.numerics.by_address import call
from gradmark.numerics.elementary import elementary, inlined
from gradmark.numerics.fused import CHUNK, PARALLEL
from gradmark.numerics.plans import Plan, array_types, known_of, two_sum
from gradmark.numerics.variants import ALONE, Kernel, Shared

Function = Callable[..., Any]

WIDTH = 128
"""Columns of a run: whole vectors."""
CACHED = 1 << 14
"""Elements of a task: they stay in the second-level cache."""
JOINED_FROM = 1 << 10
"""Elements of a slab from which pieces of its few rows are set side by side; slabs of fewer are gathered."""

# Places of a run's numbers, WIDTH of each: those of the dtype are one array and those of float64 another, since LLVM
# tells apart by itself only what lies at known distances.
PEAK, HIGH, LOW = (WIDTH * i for i in range(3))
NUMBERS = 3 * WIDTH
TOTAL, REST, COUNT, BEFORE = (WIDTH * i for i in range(4))
SUMS = 4 * WIDTH


class Tiling(NamedTuple):
    """How columns are cut into tasks."""

    groups: int
    """Pieces of a row side by side."""
    span: int
    """Columns of a slab that a task has, in as many runs as they fill."""


def is_gathered(length: int, inner: int) -> bool:
    """Whether slabs of `inner` rows of `length` elements are gathered."""
    return length * inner < JOINED_FROM and inner < WIDTH // 2


def tiling(length: int, inner: int) -> Tiling:
    """How slabs of `inner` rows of `length` elements are cut, where they are not gathered."""
    if inner < WIDTH // 2:
        return Tiling(WIDTH // inner, inner)
    # Wide, so that memory is read in long runs: but no more than stays in cache.
    return Tiling(1, WIDTH * min(-(-inner // WIDTH), max(1, CACHED // (length * WIDTH))))


def build(plan: Plan, dtype: str, kind: str, aliased: int | None) -> tuple[Kernel, Any]:
    """The kernel for wide or long slabs, and its signature."""
    task = _task(plan, dtype)

    def kernel(
        a: Any,
        b: Any,
        outer: int,
        length: int,
        inner: int,
        groups: int,
        span: int,
        staged: bool,
        out: Any,
        first: int,
        last: int,
    ) -> None:
        slab, cuts = length * inner, (inner + span - 1) // span
        runs, lines = (span * groups + WIDTH - 1) // WIDTH, (length + groups - 1) // groups
        s, t, stage = np.empty(runs * NUMBERS, out.dtype), np.empty(runs * SUMS), np.empty((3, WIDTH), out.dtype)
        for index in range(first, last):
            left = index % cuts * span
            width = min(span, inner - left) * groups
            start, end = index // cuts * slab + left, (index // cuts + 1) * slab
            task(a, b, out, start, end, inner * groups, width, lines, groups, inner, staged, s, t, stage)

    return kernel, _type(dtype, part=True)


def _type(dtype: str, *, part: bool = False) -> Any:
    source, target = array_types(dtype)
    interval = [types.int64] * (2 * part)
    return types.void(source, source, *[types.int64] * 5, types.boolean, target, *interval)


def _in_chunks(
    address: int,
    a: Any,
    b: Any,
    outer: int,
    length: int,
    inner: int,
    groups: int,
    span: int,
    staged: bool,
    out: Any,
) -> None:
    count = outer * ((inner + span - 1) // span)
    each = max(1, count * CHUNK // out.size)
    for chunk in prange((count + each - 1) // each):
        low, high = chunk * each, min((chunk + 1) * each, count)
        call(address, (a, b, outer, length, inner, groups, span, staged, out, low, high))


SHARED = {PARALLEL: Shared("columns", _in_chunks, _type)}


def _gathered_type(dtype: str) -> Any:
    source, target = array_types(dtype)
    return types.void(source, source, types.boolean, types.int64, types.int64, target)


def _gathered_in_batches(address: int, a: Any, b: Any, two: bool, length: int, inner: int, out: Any) -> None:
    """Blocks of lines for the kernel of wide slabs: each a slab of WIDTH columns, which small slabs fill side by side.

    What is left of a block holds zeros: it is computed, and no part of the result.
    """
    slab, block = length * inner, length * WIDTH
    # Slabs of a block, and of one call of the kernel.
    each = WIDTH // inner
    together = each * max(1, CHUNK // block)
    count = out.size // slab
    for batch in prange((count + together - 1) // together):
        first, last = batch * together, min((batch + 1) * together, count)
        blocks = (last - first + each - 1) // each
        x, y, places = np.empty(blocks * block, out.dtype), np.empty(blocks * block, out.dtype), _places(length, inner)
        w = x
        if two:
            w = np.empty(blocks * block, out.dtype)
        if WIDTH % inner or (last - first) % each:
            x[:] = 0.0
            if two:
                w[:] = 0.0
        for i in range(blocks):
            low, high = (first + i * each) * slab, min(first + (i + 1) * each, last) * slab
            _gather(a[low:high], places, inner, x[i * block :])
            if two:
                _gather(b[low:high], places, inner, w[i * block :])
        call(address, (x, w, blocks, length, WIDTH, 1, WIDTH, False, y, 0, blocks))
        for i in range(blocks):
            low, high = (first + i * each) * slab, min(first + (i + 1) * each, last) * slab
            _scatter(y[i * block :], places, inner, out[low:high])


SHARED_GATHERED = {kind: Shared("gathered", _gathered_in_batches, _gathered_type) for kind in (ALONE, PARALLEL)}


def _task(plan: Plan, dtype: str) -> Function:
    """The rows of one task.

    They are lines of `width` elements, `stride` apart, the first at `start`, the last not beyond `end`. Columns
    `inner` apart are pieces of one row, `groups` of them.
    """
    m = elementary(dtype)
    peaks, sums, values = _peaks(plan), _sums(plan, dtype), _values(plan, dtype)
    known, peaked, repeats, keeps = known_of(plan, m), plan.logit is not None, plan.repeats, plan.kept is not None
    two, lowest, begin, padding = plan.logit is None, m.real(-np.inf), m.real(plan.start), m.real(plan.padding)

    @inlined
    def staged_in(array: Any, place: int, count: int, stage: Any) -> None:
        for j in range(WIDTH):
            stage[j] = padding
        _copy(array, place, stage, 0, count)

    @inlined
    def largest(a: Any, start: int, end: int, stride: int, width: int, lines: int, s: Any, stage: Any) -> None:
        for line in range(lines):
            low = start + line * stride
            for run in range((width + WIDTH - 1) // WIDTH):
                place = low + run * WIDTH
                count = min(min(low + width, end) - place, WIDTH)
                numbers = s[run * NUMBERS : (run + 1) * NUMBERS]
                if count == WIDTH:
                    peaks(a[place : place + WIDTH], numbers)
                elif count > 0:
                    staged_in(a, place, count, stage[0])
                    peaks(stage[0], numbers)

    @inlined
    def add(
        a: Any,
        b: Any,
        out: Any,
        start: int,
        end: int,
        stride: int,
        width: int,
        lines: int,
        staged: bool,
        s: Any,
        t: Any,
        stage: Any,
    ) -> None:
        for line in range(lines):
            low = start + line * stride
            for run in range((width + WIDTH - 1) // WIDTH):
                place = low + run * WIDTH
                count = min(min(low + width, end) - place, WIDTH)
                numbers, totals = s[run * NUMBERS : (run + 1) * NUMBERS], t[run * SUMS : (run + 1) * SUMS]
                if count == WIDTH and not staged:
                    stop = place + WIDTH
                    sums(a[place:stop], b[place:stop], out[place:stop], numbers, totals)
                elif count > 0:
                    staged_in(a, place, count, stage[0])
                    if two:
                        staged_in(b, place, count, stage[1])
                    sums(stage[0], stage[1], stage[2], numbers, totals)
                    if keeps:
                        _copy(stage[2], 0, out, place, count)

    @inlined
    def fill(
        a: Any,
        b: Any,
        out: Any,
        start: int,
        end: int,
        stride: int,
        width: int,
        lines: int,
        staged: bool,
        s: Any,
        stage: Any,
    ) -> None:
        for line in range(lines):
            low = start + line * stride
            for run in range((width + WIDTH - 1) // WIDTH):
                place = low + run * WIDTH
                count = min(min(low + width, end) - place, WIDTH)
                numbers = s[run * NUMBERS : (run + 1) * NUMBERS]
                if count == WIDTH and not staged:
                    stop = place + WIDTH
                    values(a[place:stop], b[place:stop], out[place:stop], numbers)
                elif count > 0:
                    if keeps:
                        staged_in(out, place, count, stage[2])
                    else:
                        staged_in(a, place, count, stage[0])
                    if two:
                        staged_in(b, place, count, stage[1])
                    values(stage[0], stage[1], stage[2], numbers)
                    _copy(stage[2], 0, out, place, count)

    @inlined
    def task(
        a: Any,
        b: Any,
        out: Any,
        start: int,
        end: int,
        stride: int,
        width: int,
        lines: int,
        groups: int,
        inner: int,
        staged: bool,
        s: Any,
        t: Any,
        stage: Any,
    ) -> None:
        runs = (width + WIDTH - 1) // WIDTH
        for run in range(runs):
            numbers, totals = s[run * NUMBERS : (run + 1) * NUMBERS], t[run * SUMS : (run + 1) * SUMS]
            for j in range(WIDTH):
                numbers[PEAK + j] = lowest
                numbers[HIGH + j] = begin
                numbers[LOW + j] = begin - begin
                totals[BEFORE + j] = np.inf
        if peaked:
            largest(a, start, end, stride, width, lines, s, stage)
            _join_peaks(s, groups, inner)
        again = True
        while again:
            for run in range(runs):
                totals = t[run * SUMS : (run + 1) * SUMS]
                for j in range(BEFORE):
                    totals[j] = 0.0
            add(a, b, out, start, end, stride, width, lines, staged, s, t, stage)
            _join_sums(t, groups, inner)
            again = False
            for run in range(runs):
                numbers, totals = s[run * NUMBERS : (run + 1) * NUMBERS], t[run * SUMS : (run + 1) * SUMS]
                for j in range(WIDTH):
                    numbers[HIGH + j], numbers[LOW + j] = known(
                        totals[TOTAL + j], totals[REST + j], totals[COUNT + j], numbers[PEAK + j]
                    )
                if repeats:
                    again = _fell(totals, min(width - run * WIDTH, inner)) or again
            _spread(s, HIGH, groups, inner)
            _spread(s, LOW, groups, inner)
        fill(a, b, out, start, end, stride, width, lines, staged, s, stage)

    return task


def _peaks(plan: Plan) -> Function:
    logit = inlined(plan.logit or (lambda a: a))

    @inlined
    def peaks(a: Any, s: Any) -> None:
        for j in range(WIDTH):
            z = logit(a[j])
            # NaN, which is passed over here, reaches the result through the sums.
            s[PEAK + j] = z if z > s[PEAK + j] else s[PEAK + j]

    return peaks


def _sums(plan: Plan, dtype: str) -> Function:
    keeps, counts, double = plan.kept is not None, plan.counted is not None, dtype == "float64"
    zero = elementary(dtype).real(0)
    kept = inlined(plan.kept or (lambda a, b, peak: zero))
    term = inlined(plan.term)
    counted = inlined(plan.counted or (lambda a, b, peak, high, low: False))

    @inlined
    def sums(a: Any, b: Any, e: Any, s: Any, t: Any) -> None:
        for j in range(WIDTH):
            value = kept(a[j], b[j], s[PEAK + j])
            part = term(a[j], b[j], value, s[PEAK + j], s[HIGH + j], s[LOW + j])
            if keeps:
                e[j] = value
            if double:
                t[TOTAL + j], t[REST + j] = two_sum(t[TOTAL + j], t[REST + j], part)
            else:
                t[TOTAL + j] += part
            if counts:
                t[COUNT + j] += 1.0 if counted(a[j], b[j], s[PEAK + j], s[HIGH + j], s[LOW + j]) else 0.0

    return sums


def _values(plan: Plan, dtype: str) -> Function:
    keeps, zero, value = plan.kept is not None, elementary(dtype).real(0), inlined(plan.value)

    @inlined
    def values(a: Any, b: Any, out: Any, s: Any) -> None:
        for j in range(WIDTH):
            e = out[j] if keeps else zero
            out[j] = value(a[j], b[j], e, s[PEAK + j], s[HIGH + j], s[LOW + j])

    return values


@register_jitable
def _join_peaks(s: Any, groups: int, inner: int) -> None:
    """The largest logit of all pieces of a row, in each of its columns."""
    for g in range(1, groups):
        for j in range(inner):
            other = s[PEAK + g * inner + j]
            s[PEAK + j] = other if other > s[PEAK + j] else s[PEAK + j]
    _spread(s, PEAK, groups, inner)


@register_jitable
def _join_sums(t: Any, groups: int, inner: int) -> None:
    """The sums of all pieces of a row, in the first of its columns."""
    for g in range(1, groups):
        for j in range(inner):
            k = g * inner + j
            t[TOTAL + j], t[REST + j] = two_sum(t[TOTAL + j], t[REST + j] + t[REST + k], t[TOTAL + k])
            t[COUNT + j] += t[COUNT + k]


@register_jitable
def _spread(s: Any, place: int, groups: int, inner: int) -> None:
    for g in range(1, groups):
        for j in range(inner):
            s[place + g * inner + j] = s[place + j]


@register_jitable
def _fell(t: Any, columns: int) -> bool:
    """Whether the count of a column is below what it was before; remembers the counts."""
    some = False
    for j in range(min(columns, WIDTH)):
        some = some or t[COUNT + j] < t[BEFORE + j]
        t[BEFORE + j] = t[COUNT + j]
    return some


@intrinsic
def _copy(typing_context: Any, source: Any, start: Any, target: Any, place: Any, count: Any) -> Any:
    """`count` elements from source[start:] to target[place:]: one call of memcpy."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = []
        for kind, array, index in ((source, 0, 1), (target, 2, 3)):
            data = context.make_array(kind)(context, builder, arguments[array]).data
            pointers.append(builder.gep(data, [arguments[index]]))
        cgutils.raw_memcpy(builder, pointers[1], pointers[0], arguments[4], source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@register_jitable
def _places(length: int, inner: int) -> Any:
    """Where the elements of a slab go in a block of lines, but for the slab's own columns."""
    places = np.empty(length * inner, np.int64)
    for k in range(length):
        for j in range(inner):
            places[k * inner + j] = k * WIDTH + j
    return places


@register_jitable
def _gather(slabs: Any, places: Any, inner: int, x: Any) -> None:
    """Slabs of few elements, side by side in a block of lines."""
    for o in range(slabs.size // places.size):
        slab, columns = slabs[o * places.size : (o + 1) * places.size], x[o * inner :]
        for i in range(places.size):
            columns[places[i]] = slab[i]


@register_jitable
def _scatter(x: Any, places: Any, inner: int, slabs: Any) -> None:
    """The reverse of `_gather`."""
    for o in range(slabs.size // places.size):
        slab, columns = slabs[o * places.size : (o + 1) * places.size], x[o * inner :]
        for i in range(places.size):
            slab[i] = columns[places[i]]
