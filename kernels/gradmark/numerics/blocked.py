"""Chains of ufuncs, run over blocks of an array that stay in a core's own cache, from some size on in several threads.

A chain is a function of one block, `chain(*inputs, *parameters, out, work)`: contiguous 1-d arrays of one length and
dtype, which it reads, and one that it fills with its last operation, as `out` may be the memory of an input. Its
temporaries come from `work`, where they live as long as the thread: a block's arrays are in cache when the next block
needs them. `Pointwise` runs a chain over whole arrays, `Channelwise` does so with one parameter per channel.

No element's result depends on where a block begins, and the order of every sum depends on the shape alone. So the
number of threads changes no bit. NumPy releases the GIL inside a ufunc.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gradmark.numerics.layout import delivered, flattened

Chain = Callable[..., Any]

BLOCK = 1 << 14
"""Elements of a block. Smaller ones lose to the 0.4 µs of a ufunc call, larger ones leave the L2 cache."""
PARALLEL_FROM = 1 << 17
"""Elements from which several threads are asked."""
PARALLEL_FROM_CHEAP = 1 << 19
"""The same for chains of a few operations without exponentials."""
LONG_ROW = 1 << 11
"""Contiguous elements with one channel's parameter from which they are blocks of their own."""
BLOCKS_PER_SUM = 8
"""Blocks of short rows whose contributions to the channels' gradients are added before they are stored."""

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


class Work:
    """Temporaries of one thread, one block long each. They are not cleared.

    `single()` and `double()` give the next free one; all are free again when the next block begins.
    """

    def __init__(self) -> None:
        self.size = 0
        self._whole: dict[Any, list[Any]] = {_SINGLE: [], _DOUBLE: []}
        # The first `size` elements of each.
        self._parts: dict[Any, list[Any]] = {_SINGLE: [], _DOUBLE: []}
        self._used = {_SINGLE: 0, _DOUBLE: 0}

    def begin(self, size: int) -> None:
        """The next block has `size` elements."""
        if size != self.size:
            self.size = size
            for dtype, whole in self._whole.items():
                self._parts[dtype] = [array[:size] for array in whole]
        self._used[_SINGLE] = self._used[_DOUBLE] = 0

    def single(self) -> Any:
        """A float32 array."""
        return self.like(_SINGLE)

    def double(self) -> Any:
        """A float64 array."""
        return self.like(_DOUBLE)

    def like(self, dtype: Any) -> Any:
        """An array of `dtype`, float32 or float64."""
        parts, index = self._parts[dtype], self._used[dtype]
        self._used[dtype] = index + 1
        if index == len(parts):
            whole = np.empty(BLOCK, dtype)
            self._whole[dtype].append(whole)
            parts.append(whole[: self.size])
        return parts[index]

    def constant(self, value: float, dtype: Any) -> Any:
        """A read-only array of one number that the chain's source names: NumPy's minimum and maximum of an array and
        a number are not vectorized, those of two arrays are.
        """
        array = _constants.get((value, dtype))
        if array is None:
            array = np.full(BLOCK, value, dtype)
            array.flags.writeable = False
            _constants[value, dtype] = array
        return array if self.size == BLOCK else array[: self.size]


_constants: dict[tuple[float, Any], Any] = {}


class Pointwise:
    """out[i] = f(inputs[i], parameters), elementwise over arrays of one shape and dtype.

    Parameters
    ----------
    double : callable
        The chain for float64.
    single : callable, optional
        The chain for float32. Default: that of float64 on inputs converted to it, so that rounding `out` to float32 is
        nearly all of the error.
    parallel_from : int
        Elements from which it asks for helper threads.

    float16 is computed in float32 and rounded once.
    """

    def __init__(self, double: Chain, single: Chain | None = None, *, parallel_from: int = PARALLEL_FROM) -> None:
        self.double = double
        self.single = widened(double) if single is None else single
        self.parallel_from = parallel_from

    def __call__(self, inputs: Sequence[Any], parameters: Sequence[Any], out: Any) -> Any:
        """Fill `out`, and return it."""
        *flat, flat_out = flattened(*inputs, out)
        chain = self.chain(out.dtype)
        size = flat_out.size
        if size == 0:
            return out
        if size <= BLOCK:
            work = _work()
            work.begin(size)
            chain(*flat, *parameters, flat_out, work)
        else:

            def block(index: int, work: Work) -> None:
                part = slice(index * BLOCK, (index + 1) * BLOCK)
                target = flat_out[part]
                work.begin(target.size)
                chain(*[a[part] for a in flat], *parameters, target, work)

            spread(-(-size // BLOCK), block, parallel=size >= self.parallel_from)
        return delivered(out, flat_out)

    def chain(self, dtype: Any) -> Chain:
        """The chain for arrays of `dtype`."""
        if dtype == _DOUBLE:
            return self.double
        return self.single if dtype == _SINGLE else _halved(self.single)


class Channelwise:
    """out[n, c, ...] = f(inputs[n, c, ...], p[c]), where p is one number or one per channel.

    Parameters
    ----------
    double, single
        As for `Pointwise`; the parameter of a block is a number or an array of its length, in the dtype of the chain.
    sums : bool
        Whether a chain returns its contributions to the gradient of p, a float64 array, to be summed by channel.
    """

    def __init__(self, double: Chain, single: Chain | None = None, *, sums: bool) -> None:
        self._pointwise = Pointwise(double, single)
        self.sums = sums

    def __call__(self, inputs: Sequence[Any], parameter: Any, out: Any) -> Any:
        """Fill `out` and return it; where there are sums, return `out` and the parameter's gradient."""
        *flat, flat_out = flattened(*inputs, out, order="C")
        chain = self._pointwise.chain(out.dtype)
        p = parameter if parameter.dtype == _DOUBLE else parameter.astype(np.float32)
        channels = parameter.size
        length = flat_out.size if channels == 1 else flat_out.size // max(1, out.shape[0] * channels)
        run = self._rows if channels == 1 or length >= LONG_ROW else self._columns
        sums = run(chain, flat, p, length, flat_out)
        result = delivered(out, flat_out)
        return (result, sums.astype(out.dtype)) if self.sums else result

    def _rows(self, chain: Chain, flat: list[Any], p: Any, length: int, out: Any) -> Any:
        """Runs of `length` elements with one parameter, in blocks; a block's contribution is one number."""
        pieces = max(1, -(-length // BLOCK))
        rows = out.size // max(1, length)
        partial = np.zeros(rows * pieces if self.sums else 0)

        def block(index: int, work: Work) -> None:
            row, piece = divmod(index, pieces)
            part = slice(row * length + piece * BLOCK, min((row + 1) * length, row * length + (piece + 1) * BLOCK))
            target = out[part]
            work.begin(target.size)
            terms = chain(*[a[part] for a in flat], p[row % p.size], target, work)
            if self.sums:
                partial[index] = np.add.reduce(terms)

        spread(rows * pieces, block, parallel=out.size >= PARALLEL_FROM)
        return partial.reshape(-1, p.size, pieces).sum(axis=(0, 2)) if self.sums else None

    def _columns(self, chain: Chain, flat: list[Any], p: Any, length: int, out: Any) -> Any:
        """Short runs: the parameters are spread along a row of the batch, and so are their contributions."""
        along = np.repeat(p, length)
        width = along.size
        batch = out.size // max(1, width)
        at_once = max(1, BLOCK // max(1, width))
        tiled = np.tile(along, at_once) if at_once > 1 else along
        pieces = max(1, -(-width // BLOCK))
        groups = -(-batch // (at_once * BLOCKS_PER_SUM))
        partial = np.zeros((groups if self.sums else 0, width))

        def group(index: int, work: Work) -> None:
            first, piece = divmod(index, pieces)
            first *= at_once * BLOCKS_PER_SUM
            low, high = piece * BLOCK, min(width, (piece + 1) * BLOCK)
            for row in range(first, min(batch, first + at_once * BLOCKS_PER_SUM), at_once):
                rows = min(at_once, batch - row)
                part = slice(row * width + low, (row + rows - 1) * width + high)
                target = out[part]
                work.begin(target.size)
                terms = chain(*[a[part] for a in flat], tiled[low : low + target.size], target, work)
                if self.sums:
                    partial[index // pieces, low:high] += terms.reshape(rows, high - low).sum(axis=0)

        spread(groups * pieces, group, parallel=out.size >= PARALLEL_FROM)
        return partial.sum(axis=0).reshape(p.size, length).sum(axis=1) if self.sums else None


def widened(chain: Chain) -> Chain:
    """The chain of float64 for float32 blocks: inputs and result are copies in float64."""

    def single(*arguments: Any) -> Any:
        *arrays, out, work = arguments
        inputs = [_as_double(a, work) if isinstance(a, np.ndarray) else a for a in arrays]
        wide = work.double()
        result = chain(*inputs, wide, work)
        np.copyto(out, wide, casting="same_kind")
        return result

    return single


def _as_double(array: Any, work: Work) -> Any:
    copy = work.double()
    np.copyto(copy, array)
    return copy


def _halved(chain: Chain) -> Chain:
    """The chain of float32 for float16 blocks."""

    def half(*arguments: Any) -> Any:
        *arrays, out, work = arguments
        inputs = [_as_single(a, work) if isinstance(a, np.ndarray) and a.dtype == np.float16 else a for a in arrays]
        wide = work.single()
        result = chain(*inputs, wide, work)
        np.copyto(out, wide, casting="same_kind")
        return result

    return half


def _as_single(array: Any, work: Work) -> Any:
    copy = work.single()
    np.copyto(copy, array)
    return copy


# --- threads ----------------------------------------------------------------------------------------------------------

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_local = threading.local()


def spread(count: int, task: Callable[[int, Work], None], *, parallel: bool) -> None:
    """Run task(0, work), ..., task(count - 1, work), each once; in parallel, in any order.

    The calling thread works as well, and never waits for a helper that has not begun.
    """
    take = itertools.count().__next__

    def work_through() -> None:
        work = _work()
        while (index := take()) < count:
            task(index, work)

    def help_out() -> None:
        # NumPy's error state belongs to the thread.
        with np.errstate(all="ignore"):
            work_through()

    helpers = min(threads(), count) - 1 if parallel else 0
    futures = _submitted(help_out, helpers) if helpers > 0 else []
    try:
        work_through()
    finally:
        for future in futures:
            if not future.cancel():
                future.result()


def threads() -> int:
    """How many threads a large array is shared by: the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _submitted(task: Callable[[], None], count: int) -> list[Any]:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(count, threads() - 1), thread_name_prefix="gradmark")
        pool = _pool
    try:
        return [pool.submit(task) for _ in range(count)]
    except RuntimeError:
        # The interpreter is shutting down: the calling thread does everything.
        return []


def _work() -> Work:
    work: Work | None = getattr(_local, "work", None)
    if work is None:
        work = _local.work = Work()
    return work


def _after_fork_in_child() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
