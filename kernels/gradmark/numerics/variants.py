"""The compiled variants of one kernel: by dtype, by how it is run, and by which input is the output as well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics.compile_cache import jit
from gradmark.numerics.fused import PARALLEL, PARALLEL_FROM, SERIAL, STREAM_FROM, STREAMING, run

Kernel = Callable[..., Any]


class Variants:
    """Kernels that are compiled, or loaded from the cache, at their first use.

    Parameters
    ----------
    name : str
        Unique among the kernels.
    build : callable
        (dtype, kind, aliased, serial) -> the Python function of a variant and its signature. `dtype` is a name,
        `kind` is SERIAL, PARALLEL or STREAMING, `aliased` the input that is the output or None; `serial` is the
        compiled SERIAL variant where another kind is built.
    """

    def __init__(self, name: str, build: Callable[[str, str, int | None, Kernel | None], tuple[Kernel, Any]]) -> None:
        self.name = name
        self._build = build
        self._compiled: dict[tuple[Any, str, int | None], Kernel] = {}
        self._compiling = threading.RLock()

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
            (self._compiled.get((dtype, SERIAL, aliased)) or self.get(dtype, SERIAL, aliased))(*serial)
            return
        kind = STREAMING if streamed and aliased is None and out.nbytes >= STREAM_FROM else PARALLEL
        loops = (
            lambda: self.get(dtype, SERIAL, aliased)(*serial),
            lambda: self.get(dtype, kind, aliased)(*shared),
        )
        run(loops, size, ())

    def get(self, dtype: Any, kind: str = SERIAL, aliased: int | None = None) -> Kernel:
        """One variant."""
        return self._compiled.get((dtype, kind, aliased)) or self._compile(np.dtype(dtype), kind, aliased)

    def _compile(self, dtype: Any, kind: str, aliased: int | None) -> Kernel:
        with self._compiling:
            if (dtype, kind, aliased) not in self._compiled:
                serial = None if kind == SERIAL else self.get(dtype, SERIAL, aliased)
                function, signature = self._build(dtype.name, kind, aliased, serial)
                name = f"{self.name}-{kind}-{dtype.name}" + ("" if aliased is None else f"-in-place-{aliased}")
                self._compiled[dtype, kind, aliased] = jit(function, signature, name=name, parallel=kind != SERIAL)
        return self._compiled[dtype, kind, aliased]
