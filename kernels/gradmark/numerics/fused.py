"""One loop for every elementwise kernel: vectorized, serial below a measured size, parallel above it.

A kernel is a small function of scalars, `f(a, p)`, `f(a, b, p)` or `f(a, b, c, p)`: up to three array elements and
one parameter (0 where the operation has none). `Pointwise` runs it over whole arrays in a single pass. `Channelwise`
does so with one parameter per channel, and, for a function that returns a pair, sums the second result into the
gradient of that parameter in the same pass.

The order of every sum depends on the shape alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import prange, types

from gradmark.numerics.compile_cache import jit
from gradmark.numerics.elementary import Elementary, add_in_any_order, elementary, inlined

Kernel = Callable[..., Any]
Maker = Callable[[Elementary], Kernel]

CHUNK = 1 << 14
"""Elements that one thread handles at a time: inputs and output of a chunk stay in a core's own cache."""
PARALLEL_FROM = 1 << 15
"""Elements from which several threads pay.

Measured on two cores, float32, serial over parallel time: gelu 0.9 at 2^14 elements and 1.45 at 2^15, relu 0.93 at
2^15 and 1.1 at 2^16. The operations that lose at 2^15 lose 7 %.
"""
LONG_ROW = 32
"""Contiguous elements with one channel's parameter from which a loop over them alone is worth it."""
ROWS_PER_BLOCK = 64
"""Rows of the batch whose contributions to the channels' gradients are summed by one thread."""

# Numba's threading layers need not be safe for calls from several Python threads at once. A call that finds the
# threads busy runs serially: the bits are the same.
_threads = threading.Lock()
_threads_started = False


def _after_fork_in_child() -> None:
    """OpenMP's threads do not survive a fork, and using them kills the child: there the loops run serially."""
    global _threads
    _threads = threading.Lock()
    if _threads_started:
        _threads.acquire()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Pointwise:
    """out[i] = f(a[i], ..., p), elementwise over arrays of one shape and dtype.

    Parameters
    ----------
    name : str
        Unique among the kernels.
    arrays : int
        How many arrays f reads: 1, 2 or 3.
    make : callable
        Makes f from the elementary functions of a dtype.
    """

    def __init__(self, name: str, arrays: int, make: Maker) -> None:
        self.name = name
        self.arrays = arrays
        self._make = make
        # By dtype, not by its name: numpy.dtype.name is put together anew at every access, which takes microseconds.
        self._compiled: dict[Any, tuple[Kernel, Kernel]] = {}
        self._compiling = threading.Lock()

    def __call__(self, inputs: Sequence[Any], parameter: float, out: Any) -> Any:
        """Fill `out`, and return it."""
        loops = self._compiled.get(out.dtype) or self.compile(out.dtype)
        *flat, flat_out = flattened(*inputs, out)
        run(loops, flat_out.size, (*flat, out.dtype.type(parameter), flat_out))
        return delivered(out, flat_out)

    def compile(self, dtype: Any) -> tuple[Kernel, Kernel]:
        """The serial and the parallel loop of a dtype, compiled or loaded from the cache."""
        key = np.dtype(dtype)
        with self._compiling:
            if key not in self._compiled:
                f = self._make(elementary(key.name))
                self._compiled[key] = _pointwise_loops(self.name, self.arrays, key.name, f)
        return self._compiled[key]


class Channelwise:
    """out[n, c, ...] = f(a[n, c, ...], ..., p[c]); where f returns a pair, its second part is summed into dp[c].

    A single parameter is the case of one channel.

    Parameters
    ----------
    name, arrays, make
        As for `Pointwise`.
    sums : bool
        Whether f returns the pair (value, contribution to the gradient of p).
    """

    def __init__(self, name: str, arrays: int, make: Maker, *, sums: bool) -> None:
        self.name = name
        self.arrays = arrays
        self.sums = sums
        self._make = make
        self._compiled: dict[tuple[str, Any], tuple[Kernel, Kernel]] = {}
        self._compiling = threading.Lock()

    def __call__(self, inputs: Sequence[Any], parameter: Any, out: Any) -> Any:
        """Fill `out` and return it; where f gives a pair, return `out` and the parameter's gradient."""
        *flat, flat_out = flattened(*inputs, out, order="C")
        channels = parameter.size
        length = CHUNK if channels == 1 else flat_out.size // max(1, out.shape[0] * channels)
        if length >= LONG_ROW:
            sums = self._rows(flat, parameter, length, flat_out)
        else:
            sums = self._columns(flat, parameter, length, flat_out)
        result = delivered(out, flat_out)
        return (result, sums.astype(out.dtype)) if self.sums else result

    def compile(self, layout: str, dtype: Any) -> tuple[Kernel, Kernel]:
        """The serial and the parallel loop of a layout and dtype, compiled or loaded from the cache."""
        key = layout, np.dtype(dtype)
        if key in self._compiled:
            return self._compiled[key]
        with self._compiling:
            if key not in self._compiled:
                name = key[1].name
                f = self._make(elementary(name))
                self._compiled[key] = _channelwise_loops(self.name, layout, self.arrays, name, f, sums=self.sums)
        return self._compiled[key]

    def _rows(self, flat: list[Any], parameter: Any, length: int, flat_out: Any) -> Any:
        """Each run of `length` contiguous elements has one parameter; its contribution is one number."""
        rows = -(-flat_out.size // length)
        partial = np.empty(rows if self.sums else 0)
        loops = self.compile("rows", flat_out.dtype)
        run(loops, flat_out.size, (*flat, _contiguous(parameter), length, flat_out, partial))
        channels = parameter.size
        return partial.reshape(-1, channels).sum(axis=0) if self.sums else None

    def _columns(self, flat: list[Any], parameter: Any, length: int, flat_out: Any) -> Any:
        """Short runs: the parameters are spread along a row of the batch, and so are their contributions."""
        spread = np.repeat(parameter, length)
        batch = flat_out.size // max(1, spread.size)
        blocks = -(-batch // ROWS_PER_BLOCK)
        partial = np.zeros((blocks if self.sums else 0, spread.size))
        loops = self.compile("columns", flat_out.dtype)
        run(loops, flat_out.size, (*flat, spread, flat_out, partial))
        return partial.sum(axis=0).reshape(parameter.size, length).sum(axis=1) if self.sums else None


def run(loops: tuple[Kernel, Kernel], size: int, arguments: tuple[Any, ...]) -> None:
    """Run the serial loop, or for at least PARALLEL_FROM elements the parallel one, unless the threads are busy."""
    global _threads_started
    serial, parallel = loops
    if size < PARALLEL_FROM or not _threads.acquire(blocking=False):
        serial(*arguments)
        return
    try:
        _threads_started = True
        parallel(*arguments)
    finally:
        _threads.release()


def flattened(*arrays: Any, order: str = "any") -> list[Any]:
    """The arrays as contiguous 1-d ones, elements in the same order; without a copy where all of them are dense."""
    # A list, not a generator: this runs in every call, and a generator costs more than the checks.
    if all([a.flags.carray or _is_dense(a) for a in arrays]):  # noqa: C419
        return [a.reshape(-1) for a in arrays]
    if order == "any" and all(a.flags.f_contiguous and a.flags.aligned for a in arrays):
        return [a.T.reshape(-1) for a in arrays]
    # A strided input costs a copy. The output is last: what it held does not matter.
    *inputs, out = arrays
    direct = out.flags.c_contiguous and out.flags.aligned
    return [*(_contiguous(a).reshape(-1) for a in inputs), out.reshape(-1) if direct else np.empty(out.size, out.dtype)]


def _is_dense(array: Any) -> bool:
    """C-contiguous and aligned; `flags.carray` asks for writeable as well, in one access."""
    return bool(array.flags.c_contiguous and array.flags.aligned)


def _contiguous(array: Any) -> Any:
    return np.require(array, requirements=["C", "A"])


def delivered(out: Any, flat_out: Any) -> Any:
    """Copy the result into an `out` that is not dense."""
    if flat_out.base is None and flat_out is not out:
        out[...] = flat_out.reshape(out.shape)
    return out


def _pointwise_loops(name: str, arrays: int, dtype: str, f: Kernel) -> tuple[Kernel, Kernel]:
    f = inlined(f)
    body, chunked = (
        (_loop_1, _chunks_1) if arrays == 1 else (_loop_2, _chunks_2) if arrays == 2 else (_loop_3, _chunks_3)
    )
    scalar, source, target = _types(dtype)
    signature = types.void(*[source] * arrays, scalar, target)
    serial = jit(body(f), signature, name=f"{name}-serial-{dtype}")
    parallel = jit(chunked(serial), signature, name=f"{name}-parallel-{dtype}", parallel=True)
    return serial, parallel


def _types(dtype: str) -> tuple[Any, Any, Any]:
    """The scalar, a read-only array (a writeable one is accepted too) and a writeable array."""
    scalar = getattr(types, dtype)
    return scalar, types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")


def _loop_1(f: Kernel) -> Kernel:
    def loop(a: Any, p: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = f(a[i], p)

    return loop


def _loop_2(f: Kernel) -> Kernel:
    def loop(a: Any, b: Any, p: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = f(a[i], b[i], p)

    return loop


def _loop_3(f: Kernel) -> Kernel:
    def loop(a: Any, b: Any, c: Any, p: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = f(a[i], b[i], c[i], p)

    return loop


def _chunks_1(loop: Kernel) -> Kernel:
    def chunks(a: Any, p: Any, out: Any) -> None:
        for chunk in prange((out.size + CHUNK - 1) // CHUNK):
            low = chunk * CHUNK
            high = min(low + CHUNK, out.size)
            loop(a[low:high], p, out[low:high])

    return chunks


def _chunks_2(loop: Kernel) -> Kernel:
    def chunks(a: Any, b: Any, p: Any, out: Any) -> None:
        for chunk in prange((out.size + CHUNK - 1) // CHUNK):
            low = chunk * CHUNK
            high = min(low + CHUNK, out.size)
            loop(a[low:high], b[low:high], p, out[low:high])

    return chunks


def _chunks_3(loop: Kernel) -> Kernel:
    def chunks(a: Any, b: Any, c: Any, p: Any, out: Any) -> None:
        for chunk in prange((out.size + CHUNK - 1) // CHUNK):
            low = chunk * CHUNK
            high = min(low + CHUNK, out.size)
            loop(a[low:high], b[low:high], c[low:high], p, out[low:high])

    return chunks


def _channelwise_loops(
    name: str, layout: str, arrays: int, dtype: str, f: Kernel, *, sums: bool
) -> tuple[Kernel, Kernel]:
    """Forward functions read one array and give a value; backward functions read two and give a pair."""
    if (arrays, sums) not in ((1, False), (2, True)):
        raise ValueError(f"a channelwise kernel reads x, or grad and x with a sum; got {arrays} arrays, sums={sums}")
    f = inlined(f)
    _, source, target = _types(dtype)
    if layout == "rows":
        make = _rows_with_sums(f) if sums else _rows(f)
        signature = types.void(*[source] * arrays, source, types.int64, target, types.Array(types.float64, 1, "C"))
    else:
        make = _columns_with_sums(f) if sums else _columns(f)
        signature = types.void(*[source] * arrays, source, target, types.Array(types.float64, 2, "C"))
    serial = jit(make, signature, name=f"{name}-{layout}-serial-{dtype}")
    parallel = jit(make, signature, name=f"{name}-{layout}-parallel-{dtype}", parallel=True)
    return serial, parallel


def _rows(f: Kernel) -> Kernel:
    @inlined
    def row(a: Any, p: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = f(a[i], p)

    def rows(a: Any, parameter: Any, length: int, out: Any, partial: Any) -> None:
        for r in prange((out.size + length - 1) // length):
            low = r * length
            high = min(low + length, out.size)
            row(a[low:high], parameter[r % parameter.size], out[low:high])

    return rows


def _rows_with_sums(f: Kernel) -> Kernel:
    @inlined
    def row(a: Any, b: Any, p: Any, out: Any) -> Any:
        total = 0.0
        for i in range(out.size):
            value, contribution = f(a[i], b[i], p)
            out[i] = value
            total = add_in_any_order(total, np.float64(contribution))
        return total

    def rows(a: Any, b: Any, parameter: Any, length: int, out: Any, partial: Any) -> None:
        for r in prange((out.size + length - 1) // length):
            low = r * length
            high = min(low + length, out.size)
            partial[r] = row(a[low:high], b[low:high], parameter[r % parameter.size], out[low:high])

    return rows


def _columns(f: Kernel) -> Kernel:
    @inlined
    def row(a: Any, parameter: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = f(a[i], parameter[i])

    def columns(a: Any, parameter: Any, out: Any, partial: Any) -> None:
        width = parameter.size
        for n in prange(out.size // max(width, 1)):
            row(a[n * width : (n + 1) * width], parameter, out[n * width : (n + 1) * width])

    return columns


def _columns_with_sums(f: Kernel) -> Kernel:
    @inlined
    def row(a: Any, b: Any, parameter: Any, out: Any, total: Any) -> None:
        for i in range(out.size):
            value, contribution = f(a[i], b[i], parameter[i])
            out[i] = value
            total[i] += np.float64(contribution)

    def columns(a: Any, b: Any, parameter: Any, out: Any, partial: Any) -> None:
        width = parameter.size
        batch = out.size // max(width, 1)
        for block in prange(partial.shape[0]):
            for n in range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, batch)):
                low, high = n * width, (n + 1) * width
                row(a[low:high], b[low:high], parameter, out[low:high], partial[block])

    return columns
