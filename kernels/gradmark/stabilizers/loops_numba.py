"""Loops over the stabilizers' arrays, compiled per dtype on first use, serially and with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from numba import types

from gradmark.numerics import fused
from gradmark.numerics.compile_cache import jit

Function = Callable[..., Any]


class Loop:
    """A function of arrays, and the machine code of it for each dtype.

    Parameters
    ----------
    body : function
        Its name is that of the machine code in the cache. Threads share its `prange` loops.
    arguments : str
        A letter an argument. Of the dtype of the data: r, a 1-d array that is read; w, one that is written; R and W,
        2-d ones. Of float64: p, an array that is written; s, a scalar. Of int64: a, an array that is read; i, a
        scalar.
    """

    def __init__(self, body: Function, arguments: str) -> None:
        self.name = body.__name__
        self._body = body
        self._arguments = arguments
        self._compiled: dict[tuple[Any, bool], Function] = {}
        self._compiling = threading.Lock()

    def run(self, dtype: Any, size: int, arguments: tuple[Any, ...], parallel: Loop | None = None) -> None:
        """Run over `size` elements; with threads where they pay, by another loop if one is given for them."""
        serial = self.serial(dtype)
        # Compiling or loading a parallel loop starts the threads, which would be the end of a forked child.
        if size < fused.PARALLEL_FROM:
            serial(*arguments)
        else:
            fused.run((serial, (parallel or self).parallel(dtype)), size, arguments)

    def serial(self, dtype: Any) -> Function:
        """The loop of one thread."""
        return self._compiled.get((dtype, False)) or self._compile(dtype, False)

    def parallel(self, dtype: Any) -> Function:
        """The loop of all threads."""
        return self._compiled.get((dtype, True)) or self._compile(dtype, True)

    def _compile(self, dtype: Any, parallel: bool) -> Function:
        key = dtype, parallel
        with self._compiling:
            if key not in self._compiled:
                signature = types.void(*(_numba_type(letter, dtype.name) for letter in self._arguments))
                name = f"{self.name}-{'parallel' if parallel else 'serial'}-{dtype.name}"
                self._compiled[key] = jit(self._body, signature, name=name, parallel=parallel)
        return self._compiled[key]


def _numba_type(letter: str, dtype: str) -> Any:
    data, real, whole = getattr(types, dtype), types.float64, types.int64
    kinds: dict[str, Any] = {
        "r": types.Array(data, 1, "C", readonly=True),
        "w": types.Array(data, 1, "C"),
        "R": types.Array(data, 2, "C", readonly=True),
        "W": types.Array(data, 2, "C"),
        "p": types.Array(real, 1, "C"),
        "s": real,
        "a": types.Array(whole, 1, "C", readonly=True),
        "i": whole,
    }
    return kinds[letter]
