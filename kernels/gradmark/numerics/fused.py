"""One loop for every elementwise kernel: vectorized, serial below a measured size, parallel above it.

A kernel is a small function of scalars, `f(a, p)`, `f(a, b, p)` or `f(a, b, c, p)`: up to three array elements and
the parameter (a tuple of two where there are two, 0 where there is none). `Pointwise` runs it over whole arrays in a
single pass. `Channelwise` does so with one parameter per channel, and, for a function that returns a pair, sums the
second result into the gradient of that parameter in the same pass.

The order of every sum depends on the shape alone, so results do not depend on the number of threads. (One exception:
where an input shares the output's memory but is another array object, LLVM leaves the vector loop, and the float64
gradient of a parameter may differ in its last bits.)

Three loops serve one kernel, with the same bits:
- plain: LLVM checks at run time that input and output do not overlap, and leaves the vector loop if they do;
- in place: so where the output is an input, that input is not a second array but the output itself;
- streaming: the output of a cheap kernel, if it is beyond the last-level cache, is computed into a small buffer and
  stored past the caches, which spares the memory the reading of what is about to be overwritten.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
from numba import prange, types

from gradmark.numerics import by_address
from gradmark.numerics.compile_cache import jit
from gradmark.numerics.elementary import add_in_any_order, elementary, inlined
from gradmark.numerics.functions import Elementary
from gradmark.numerics.layout import contiguous, delivered, flattened, is_copy
from gradmark.numerics.streaming import fence, last_level_cache, store_past_caches

Kernel = Callable[..., Any]
Maker = Callable[[Elementary], Kernel]

CHUNK = 1 << 13
"""Elements that one thread handles at a time: inputs and output of a chunk stay in a core's own cache."""
PARALLEL_FROM = 1 << 14
"""Elements from which several threads pay for a kernel that computes.

Measured on two cores, float32, serial over parallel time: gelu 0.85 at 2^13 elements and 1.5 at 2^14, sigmoid 0.7 and
1.3, exponential 0.6 and 1.0.
"""
CHEAP_PARALLEL_FROM = 1 << 16
"""The same for a kernel that only moves and compares: relu 0.95 at 2^15, 1.2 at 2^16."""
BLOCK = 1 << 10
"""Elements of the buffer that a streaming loop fills before it stores them."""
STREAM_FROM = last_level_cache()
"""Bytes of output from which it is streamed."""
SERIAL, PARALLEL, STREAMING = "serial", "parallel", "streaming"
LONG_ROW = 32
"""Contiguous elements with one channel's parameter from which a loop over them alone is worth it."""
ROWS_PER_BLOCK = 64
"""Rows of the batch whose contributions to the channels' gradients are summed by one thread."""

# Numba's threading layers need not be safe for calls from several Python threads at once. A call that finds the
# threads busy runs serially: the bits are the same.
_threads = threading.Lock()


def _after_fork_in_child() -> None:
    """OpenMP's threads do not survive a fork, and using them kills the child: there the loops run serially.

    Compiling or loading a parallel loop starts them already, whoever does it. This module must have been imported
    before the fork: of what others did earlier, nobody here knows.
    """
    global _threads
    _threads = threading.Lock()
    try:
        numba.threading_layer()
    except ValueError:
        return  # There are none.
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
    parameters : int
        0 (f is given p = 0), 1, or 2 (p is a tuple), of the dtype.
    cheap : bool
        f waits for memory even in the nearest cache: it takes more elements before threads pay, and its output is
        streamed. (Computation and streamed stores do not overlap: silu was 1.5 times slower with them.)
    """

    def __init__(self, name: str, arrays: int, make: Maker, parameters: int = 1, *, cheap: bool = False) -> None:
        self.name = name
        self.arrays = arrays
        self.parameters = parameters
        self.cheap = cheap
        self.parallel_from = CHEAP_PARALLEL_FROM if cheap else PARALLEL_FROM
        self._make = make
        self._compiled: dict[tuple[Any, str, int | None], Kernel] = {}
        # By dtype, not by its name: numpy.dtype.name is put together anew at every access, which takes microseconds.
        self._serial: dict[Any, Kernel] = {}
        self._parallel: dict[Any, Kernel] = {}
        self._compiling = threading.Lock()

    def __call__(self, inputs: Sequence[Any], parameters: tuple[float, ...], out: Any) -> Any:
        """Fill `out`, and return it. The parameters are Python's floats, which the loop rounds to the dtype."""
        # Below a thousand elements this takes as long as the loop: the common case comes first, and takes no detours.
        size = out.size
        loop = (self._serial if size < self.parallel_from else self._parallel).get(out.dtype)
        if loop is None or not out.flags.carray:
            return self._general(inputs, parameters, out)
        for array in inputs:
            if array is out or not array.flags.carray:
                return self._general(inputs, parameters, out)
        flat = out
        if out.ndim != 1:
            flat, inputs = out.reshape(-1), [array.reshape(-1) for array in inputs]
        if size < self.parallel_from:
            loop(*inputs, *parameters, flat)
        elif (self.cheap and out.nbytes >= STREAM_FROM) or not _threads.acquire(False):
            self._run((*inputs, *parameters), flat, None)
        else:
            try:
                loop(*inputs, *parameters, flat)
            finally:
                _threads.release()
        return out

    def _general(self, inputs: Sequence[Any], parameters: tuple[float, ...], out: Any) -> Any:
        """Any layout and size, and `out` may be one of the inputs."""
        *arguments, flat_out = flattened(*inputs, out)
        aliased = _drop_aliased(inputs, out, arguments, flat_out)
        self._run((*arguments, *parameters), flat_out, aliased)
        return delivered(out, flat_out)

    def _run(self, arguments: tuple[Any, ...], flat_out: Any, aliased: int | None) -> None:
        dtype = flat_out.dtype
        if flat_out.size < self.parallel_from or not _acquire():
            self.compile(dtype, SERIAL, aliased)(*arguments, flat_out)
            return
        try:
            streamed = self.cheap and aliased is None and flat_out.nbytes >= STREAM_FROM
            loop = self.compile(dtype, STREAMING if streamed else PARALLEL, aliased)
            if aliased is None and not streamed:
                self._parallel[dtype] = loop
            loop(*arguments, flat_out)
        finally:
            _threads.release()

    def compile(self, dtype: Any, kind: str = SERIAL, aliased: int | None = None) -> Kernel:
        """A loop of a dtype, compiled or loaded from the cache.

        Parameters
        ----------
        dtype : dtype
            float32 or float64.
        kind : str
            SERIAL, PARALLEL or STREAMING.
        aliased : int or None
            The input that is the output as well.
        """
        found = self._compiled.get((dtype, kind, aliased))
        if found is None:
            with self._compiling:
                found = self._compile(np.dtype(dtype), kind, aliased)
        return found

    def _compile(self, dtype: Any, kind: str, aliased: int | None) -> Kernel:
        key = dtype, kind, aliased
        if key not in self._compiled:
            suffix = f"{kind}-{dtype.name}" + ("" if aliased is None else f"-in-place-{aliased}")
            source = _SOURCES[kind](self.arrays, self.parameters, aliased)
            signature = _signature(dtype.name, self.arrays - (aliased is not None), self.parameters)
            if kind == SERIAL:
                function = _defined(source, {"f": inlined(self._make(elementary(dtype.name))), "real": dtype.type})
                self._compiled[key] = jit(function, signature, name=f"{self.name}-{suffix}")
            else:
                name = f"pointwise-{self.arrays}-{self.parameters}-{suffix}"
                serial = self._compile(dtype, SERIAL, aliased)
                self._compiled[key] = by_address.bound(name, _defined(source, {}), signature, serial)
            if (kind, aliased) == (SERIAL, None):
                self._serial[dtype] = self._compiled[key]
        return self._compiled[key]


class Channelwise:
    """out[n, c, ...] = f(a[n, c, ...], ..., p[c]); where f returns a pair, its second part is summed into dp[c].

    A single parameter is the case of one channel.

    Parameters
    ----------
    name, arrays, make, cheap
        As for `Pointwise`.
    sums : bool
        Whether f returns the pair (value, contribution to the gradient of p).
    """

    def __init__(self, name: str, arrays: int, make: Maker, *, sums: bool, cheap: bool = False) -> None:
        self.name = name
        self.arrays = arrays
        self.sums = sums
        self.cheap = cheap
        self._make = make
        self._compiled: dict[tuple[Any, str, str, int | None], Kernel] = {}
        self._compiling = threading.Lock()

    def __call__(self, inputs: Sequence[Any], parameter: Any, out: Any) -> Any:
        """Fill `out` and return it; where f gives a pair, return `out` and the parameter's gradient."""
        *arguments, flat_out = flattened(*inputs, out, order="C")
        aliased = _drop_aliased(inputs, out, arguments, flat_out)
        channels = parameter.size
        if channels == 1 and self.sums:
            gradient = np.empty(1, out.dtype)
            self._run("single", flat_out, aliased, (*arguments, parameter.item(), flat_out, gradient))
            return delivered(out, flat_out), gradient
        length = flat_out.size // max(1, out.shape[0] * channels)
        along = self._rows if length >= LONG_ROW else self._columns
        with np.errstate(all="ignore"):
            sums = along(arguments, parameter, length, flat_out, aliased)
            result = delivered(out, flat_out)
            return (result, sums.astype(out.dtype)) if self.sums else result

    def compile(self, dtype: Any, layout: str = "rows", kind: str = SERIAL, aliased: int | None = None) -> Kernel:
        """A loop of a dtype, compiled or loaded from the cache.

        Parameters
        ----------
        dtype, kind, aliased
            As for `Pointwise.compile`.
        layout : str
            A "single" parameter (where there are sums), "rows" of elements with one parameter, or "columns" with one
            each.
        """
        found = self._compiled.get((dtype, layout, kind, aliased))
        if found is None:
            key = np.dtype(dtype), layout, kind, aliased
            with self._compiling:
                if key not in self._compiled:
                    self._compiled[key] = self._compile(*key)
                found = self._compiled[key]
        return found

    def _compile(self, dtype: Any, layout: str, kind: str, aliased: int | None) -> Kernel:
        f = inlined(self._make(elementary(dtype.name)))
        columns = layout == "columns"
        row = inlined(_defined(_row_source(self.arrays, aliased, per_element=columns, sums=self.sums), {"f": f}))
        _, source, target = _types(dtype.name)
        arrays = [source] * (self.arrays - (aliased is not None))
        if layout == "single":
            text = _single_source(self.arrays, aliased, streaming=kind == STREAMING)
            signature = types.void(*arrays, types.float64, target, target)
        elif columns:
            text = _columns_source(self.arrays, aliased, sums=self.sums)
            signature = types.void(*arrays, source, target, types.Array(types.float64, 2, "C"))
        else:
            text = _rows_source(self.arrays, aliased, sums=self.sums, streaming=kind == STREAMING)
            signature = types.void(*arrays, source, types.int64, target, types.Array(types.float64, 1, "C"))
        name = f"{self.name}-{layout}-{kind}-{dtype.name}" + ("" if aliased is None else f"-in-place-{aliased}")
        names = {"row": row, "real": np.dtype(dtype).type}
        return jit(_defined(text, names), signature, name=name, parallel=kind != SERIAL)

    def _run(self, layout: str, flat_out: Any, aliased: int | None, arguments: tuple[Any, ...]) -> None:
        if flat_out.size < (CHEAP_PARALLEL_FROM if self.cheap else PARALLEL_FROM) or not _acquire():
            self.compile(flat_out.dtype, layout, SERIAL, aliased)(*arguments)
            return
        try:
            streamed = self.cheap and layout != "columns" and aliased is None and flat_out.nbytes >= STREAM_FROM
            self.compile(flat_out.dtype, layout, STREAMING if streamed else PARALLEL, aliased)(*arguments)
        finally:
            _threads.release()

    def _rows(self, flat: list[Any], parameter: Any, length: int, flat_out: Any, aliased: int | None) -> Any:
        """Each run of `length` contiguous elements has one parameter; its contribution is one number."""
        rows = -(-flat_out.size // length)
        partial = np.empty(rows if self.sums else 0)
        self._run("rows", flat_out, aliased, (*flat, contiguous(parameter), length, flat_out, partial))
        return partial.reshape(-1, parameter.size).sum(axis=0) if self.sums else None

    def _columns(self, flat: list[Any], parameter: Any, length: int, flat_out: Any, aliased: int | None) -> Any:
        """Short runs: the parameters are spread along a row of the batch, and so are their contributions."""
        spread = np.repeat(parameter, length)
        batch = flat_out.size // max(1, spread.size)
        blocks = -(-batch // ROWS_PER_BLOCK)
        partial = np.zeros((blocks if self.sums else 1, spread.size))
        self._run("columns", flat_out, aliased, (*flat, spread, flat_out, partial))
        return partial.sum(axis=0).reshape(parameter.size, length).sum(axis=1) if self.sums else None


def run(loops: tuple[Kernel, Kernel], size: int, arguments: tuple[Any, ...]) -> None:
    """Run the serial loop, or for at least PARALLEL_FROM elements the parallel one, unless the threads are busy."""
    serial, parallel = loops
    if size < PARALLEL_FROM or not _acquire():
        serial(*arguments)
        return
    try:
        parallel(*arguments)
    finally:
        _threads.release()


@contextlib.contextmanager
def serially() -> Iterator[None]:
    """A context in which loops run on one thread: between products of BLAS, whose threads wait busily on the others."""
    taken = _acquire()
    try:
        yield
    finally:
        if taken:
            _threads.release()


def _acquire() -> bool:
    """Take the threads; False where another call has them."""
    return _threads.acquire(blocking=False)


def _drop_aliased(inputs: Sequence[Any], out: Any, flat: list[Any], flat_out: Any) -> int | None:
    """The index of the input that is the output as well; it is taken from the flat ones."""
    for index, array in enumerate(inputs):
        if array is out and not is_copy(out, flat_out):
            del flat[index]
            return index
    return None


def _signature(dtype: str, arrays: int, parameters: int) -> Any:
    # Python's own floats: of what a call takes, a scalar or tuple of NumPy's would take the most.
    _, source, target = _types(dtype)
    return types.void(*[source] * arrays, *[types.float64] * parameters, target)


def _types(dtype: str) -> tuple[Any, Any, Any]:
    """The scalar, a read-only array (a writeable one is accepted too) and a writeable array."""
    scalar = getattr(types, dtype)
    return scalar, types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")


# The loops differ in how many arrays and parameters they take, and in which of the arrays is the output. Their source
# is put together, which for every one of them is shorter than what it is put together from.


def _serial_source(arrays: int, parameters: int, aliased: int | None) -> str:
    names = "abc"[:arrays]
    elements = ", ".join("out[i]" if index == aliased else f"{name}[i]" for index, name in enumerate(names))
    rounded = [f"real({p})" for p in _parameter_names(parameters)]
    return f"""
def kernel({_declared(names, parameters, aliased)}):
    p = {rounded[0] if parameters == 1 else f"({', '.join(rounded)})" if rounded else "0"}
    for i in range(out.size):
        out[i] = f({elements}, p)
"""


def _parallel_source(arrays: int, parameters: int, aliased: int | None) -> str:
    names = "abc"[:arrays]
    return f"""
def kernel(address, {_declared(names, parameters, aliased)}):
    for chunk in prange((out.size + {CHUNK - 1}) // {CHUNK}):
        low = chunk * {CHUNK}
        high = min(low + {CHUNK}, out.size)
        call(address, ({_slices(names, parameters, aliased, "low:high")}out[low:high],))
"""


def _streaming_source(arrays: int, parameters: int, aliased: int | None) -> str:
    names = "abc"[:arrays]
    return f"""
def kernel(address, {_declared(names, parameters, aliased)}):
    for chunk in prange((out.size + {CHUNK - 1}) // {CHUNK}):
        buffer = np.empty({BLOCK}, out.dtype)
        for low in range(chunk * {CHUNK}, min((chunk + 1) * {CHUNK}, out.size), {BLOCK}):
            high = min(low + {BLOCK}, out.size)
            call(address, ({_slices(names, parameters, aliased, "low:high")}buffer[:high - low],))
            store_past_caches(buffer[:high - low], out[low:high])
        fence()
"""


def _declared(names: str, parameters: int, aliased: int | None) -> str:
    arrays = [name for index, name in enumerate(names) if index != aliased]
    return ", ".join([*arrays, *_parameter_names(parameters), "out"])


def _parameter_names(parameters: int) -> list[str]:
    return [f"p{index}" for index in range(parameters)]


def _slices(names: str, parameters: int, aliased: int | None, span: str) -> str:
    arrays = [f"{name}[{span}]" for index, name in enumerate(names) if index != aliased]
    return "".join(f"{argument}, " for argument in [*arrays, *_parameter_names(parameters)])


_SOURCES = {SERIAL: _serial_source, PARALLEL: _parallel_source, STREAMING: _streaming_source}


def _row_source(arrays: int, aliased: int | None, *, per_element: bool, sums: bool) -> str:
    """One row: out = f(a, ..., p), and the sum of f's second results, or their addition to `total` by element."""
    names = "abc"[:arrays]
    elements = ", ".join("out[i]" if index == aliased else f"{name}[i]" for index, name in enumerate(names))
    p = "p[i]" if per_element else "p"
    declared = ", ".join([*(name for index, name in enumerate(names) if index != aliased), "p", "out"])
    if not sums:
        return f"""
def kernel({declared}{", total" if per_element else ""}):
    for i in range(out.size):
        out[i] = f({elements}, {p})
    return 0.0
"""
    if per_element:
        return f"""
def kernel({declared}, total):
    for i in range(out.size):
        value, contribution = f({elements}, {p})
        out[i] = value
        total[i] += np.float64(contribution)
"""
    return f"""
def kernel({declared}):
    total = 0.0
    for i in range(out.size):
        value, contribution = f({elements}, {p})
        out[i] = value
        total = add_in_any_order(total, np.float64(contribution))
    return total
"""


def _rows_source(arrays: int, aliased: int | None, *, sums: bool, streaming: bool) -> str:
    """Runs of `length` elements with one parameter. They are summed block by block, streamed or not."""
    given = _given(arrays, aliased)
    return f"""
def kernel({", ".join([*given, "parameter", "length", "out", "partial"])}):
    for r in prange((out.size + length - 1) // length):
        low = r * length
        high = min(low + length, out.size)
        p = parameter[r % parameter.size]
        {_blocks(given, streaming)}
        {"partial[r] = total" if sums else ""}
"""


def _single_source(arrays: int, aliased: int | None, *, streaming: bool) -> str:
    """One parameter: the sums of the chunks are added here, in their order, whichever thread formed them."""
    given = _given(arrays, aliased)
    return f"""
def kernel({", ".join([*given, "p0", "out", "gradient"])}):
    p = real(p0)
    chunks = (out.size + {CHUNK - 1}) // {CHUNK}
    partial = np.empty(chunks)
    for r in prange(chunks):
        low = r * {CHUNK}
        high = min(low + {CHUNK}, out.size)
        {_blocks(given, streaming)}
        partial[r] = total
    total = 0.0
    for r in range(chunks):
        total += partial[r]
    gradient[0] = real(total)
"""


def _given(arrays: int, aliased: int | None) -> list[str]:
    return [name for index, name in enumerate("abc"[:arrays]) if index != aliased]


def _blocks(given: list[str], streaming: bool) -> str:
    """The elements from `low` to `high` in blocks; their contributions are summed in `total`. Indented by 8."""
    slices = "".join(f"{name}[start:stop], " for name in given)
    target = "buffer[:stop - start]" if streaming else "out[start:stop]"
    return f"""{f"buffer = np.empty({BLOCK}, out.dtype)" if streaming else ""}
        total = 0.0
        for start in range(low, high, {BLOCK}):
            stop = min(start + {BLOCK}, high)
            total += row({slices}p, {target})
            {"store_past_caches(buffer[:stop - start], out[start:stop])" if streaming else ""}
        {"fence()" if streaming else ""}"""


def _columns_source(arrays: int, aliased: int | None, *, sums: bool) -> str:
    """Rows of the batch with a parameter per element."""
    given = _given(arrays, aliased)
    slices = "".join(f"{name}[low:high], " for name in given)
    return f"""
def kernel({", ".join([*given, "parameter", "out", "partial"])}):
    width = parameter.size
    batch = out.size // max(width, 1)
    for block in prange((batch + {ROWS_PER_BLOCK - 1}) // {ROWS_PER_BLOCK}):
        for n in range(block * {ROWS_PER_BLOCK}, min((block + 1) * {ROWS_PER_BLOCK}, batch)):
            low, high = n * width, (n + 1) * width
            row({slices}parameter, out[low:high], partial[{"block" if sums else "0"}])
"""


def _defined(source: str, names: dict[str, Any]) -> Kernel:
    """The function `kernel` of a source that sees these names."""
    namespace: dict[str, Any] = {
        # Machine code from the cache asks for the module that it came from.
        "__name__": __name__,
        "prange": prange,
        "np": np,
        "add_in_any_order": add_in_any_order,
        "store_past_caches": store_past_caches,
        "fence": fence,
        "call": by_address.call,
        **names,
    }
    exec(source, namespace)
    kernel: Kernel = namespace["kernel"]
    return kernel
