"""Loops over the stabilizers' arrays, compiled per dtype on first use, serially and with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from numba import types

from gradmark.numerics import by_address, fused
from gradmark.numerics.compile_cache import jit

Function = Callable[..., Any]


class Loop:
    """A function of arrays, and the machine code of it for each dtype.

    Parameters
    ----------
    body : function
        Threads share its `prange` loops.
    arguments : str
        A letter an argument. Of the dtype of the data: r, a 1-d array that is read; w, one that is written; R and W,
        2-d ones; N, one that is read, of any strides. Of float64: p, an array that is written; P, a 2-d one of any
        strides; s, a scalar. Of int64: a, an array that is read; i, a scalar.
    *stages : Loops
        Whose serial machine code the body calls. Their addresses, for `by_address.call`, are its first arguments.
    name : str, optional
        Of the machine code in the cache; that of the body by default.
    """

    def __init__(self, body: Function, arguments: str, *stages: Loop, name: str | None = None) -> None:
        self.name = name or body.__name__
        self.stages = stages
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
                self._compiled[key] = self._variant(dtype, signature, parallel)
        return self._compiled[key]

    def _variant(self, dtype: Any, signature: Any, parallel: bool) -> Function:
        if self.stages:
            stages = [stage.serial(dtype) for stage in self.stages]
            return by_address.bound(self.name, self._body, signature, *stages, parallel=parallel)
        name = f"{self.name}-{'parallel' if parallel else 'serial'}-{dtype.name}"
        return jit(self._body, signature, name=name, parallel=parallel)


def _numba_type(letter: str, dtype: str) -> Any:
    data, real, whole = getattr(types, dtype), types.float64, types.int64
    kinds: dict[str, Any] = {
        "r": types.Array(data, 1, "C", readonly=True),
        "w": types.Array(data, 1, "C"),
        "R": types.Array(data, 2, "C", readonly=True),
        "W": types.Array(data, 2, "C"),
        "N": types.Array(data, 2, "A", readonly=True),
        "p": types.Array(real, 1, "C"),
        "P": types.Array(real, 2, "A"),
        "s": real,
        "a": types.Array(whole, 1, "C", readonly=True),
        "i": whole,
    }
    return kinds[letter]
