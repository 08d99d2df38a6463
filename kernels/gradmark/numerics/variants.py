"""The compiled variants of one kernel: by dtype, by how it is run, and by which input is the output as well."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradmark.numerics import by_address
from gradmark.numerics.compile_cache import jit
from gradmark.numerics.fused import PARALLEL, PARALLEL_FROM, SERIAL, STREAM_FROM, STREAMING, run

Kernel = Callable[..., Any]

ALONE = "alone"
"""A shared loop by one thread."""


class Shared(NamedTuple):
    """A loop that calls the SERIAL variants of all kernels of a kind: by several threads, or ALONE."""

    name: str
    loop: Kernel
    """Its first argument is the address of the kernel, for `by_address.call`."""
    signature: Callable[[str], Any]
    """Of the loop's further arguments, for the name of a dtype."""


class Variants:
    """Kernels that are compiled, or loaded from the cache, at their first use.

    Parameters
    ----------
    name : str
        Unique among the kernels.
    build : callable
        (dtype, kind, aliased) -> the Python function of a variant and its signature. `dtype` is a name, `kind` is
        SERIAL, PARALLEL or STREAMING, `aliased` the input that is the output or None.
    shared : dict
        By kind, the loops that need no variant of their own. With an ALONE, one thread runs that, not SERIAL.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[str, str, int | None], tuple[Kernel, Any]],
        shared: Mapping[str, Shared] = types.MappingProxyType({}),
    ) -> None:
        self.name = name
        self._build = build
        self._shared = shared
        self._kernels = self
        self._serial = ALONE if ALONE in shared else SERIAL
        self._compiled: dict[tuple[Any, str, int | None], Kernel] = {}
        self._compiling = threading.RLock()

    def shared_by(self, shared: Mapping[str, Shared]) -> Variants:
        """The same kernels, called by other loops: an ALONE and those of several threads."""
        others = Variants(self.name, self._build, shared)
        others._kernels = self
        return others

    def __call__(
        self,
        size: int,
        out: Any,
        serial: tuple[Any, ...],
        shared: tuple[Any, ...],
        *,
        aliased: int | None = None,
        streamed: bool = True,
    ) -> None:
        """Run on `size` elements, with the arguments `serial` in one thread or `shared` in several.

        Several threads stream an `out` that is beyond the last-level cache, where `streamed` says that they may.
        """
        dtype = out.dtype
        if size < PARALLEL_FROM:
            (self._compiled.get((dtype, self._serial, aliased)) or self.get(dtype, self._serial, aliased))(*serial)
            return
        kind = STREAMING if streamed and aliased is None and out.nbytes >= STREAM_FROM else PARALLEL
        loops = (
            lambda: self.get(dtype, self._serial, aliased)(*serial),
            lambda: self.get(dtype, kind, aliased)(*shared),
        )
        run(loops, size, ())

    def get(self, dtype: Any, kind: str = SERIAL, aliased: int | None = None) -> Kernel:
        """One variant."""
        return self._compiled.get((dtype, kind, aliased)) or self._compile(np.dtype(dtype), kind, aliased)

    def _compile(self, dtype: Any, kind: str, aliased: int | None) -> Kernel:
        with self._compiling:
            if (dtype, kind, aliased) not in self._compiled:
                if kind in self._shared:
                    variant = self._bound(dtype, kind, self._kernels.get(dtype, SERIAL, aliased))
                else:
                    function, signature = self._build(dtype.name, kind, aliased)
                    name = f"{self.name}-{kind}-{dtype.name}" + ("" if aliased is None else f"-in-place-{aliased}")
                    variant = jit(function, signature, name=name, parallel=kind != SERIAL)
                self._compiled[dtype, kind, aliased] = variant
        return self._compiled[dtype, kind, aliased]

    def _bound(self, dtype: Any, kind: str, serial: Kernel) -> Kernel:
        name, loop, signature = self._shared[kind]
        return by_address.bound(f"{name}-{kind}", loop, signature(dtype.name), serial, parallel=kind != ALONE)
