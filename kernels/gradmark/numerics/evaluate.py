"""The elementary functions in NumPy: the specification without a compiler, to test it and to look at its errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics.functions import Elementary, functions

Function = Callable[..., Any]


@functools.cache
def evaluated(dtype: str) -> Elementary:
    """The elementary functions of "float32" or "float64", for arrays of that dtype."""
    return functions(NumpyArithmetic(dtype))


class NumpyArithmetic:
    """The primitives of the specification on arrays."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        real: Any = np.float32 if dtype == "float32" else np.float64
        integer: Any = np.int32 if dtype == "float32" else np.int64
        self._real, self._integer = real, integer
        self.fma: Function = _fma32 if dtype == "float32" else _fma64
        self.select: Function = np.where
        self.copysign: Function = np.copysign
        self.as_bits: Function = lambda x: np.asarray(x).view(integer)
        self.as_real: Function = lambda bits: np.asarray(bits, integer).view(real)
        self.scale: Function = np.ldexp
        self.from_integer: Function = lambda k: np.asarray(k).astype(real)

    def real(self, value: float) -> Any:
        """A constant of the dtype."""
        return self._real(value)

    def integer(self, value: int) -> Any:
        """A constant of the integer type that is as wide as the dtype."""
        return self._integer(value)

    def function(self, definition: Function) -> Function:
        """`definition` as it is."""
        return definition


def _fma32(a: Any, b: Any, c: Any) -> Any:
    """A b + c through float64, where the product is exact; the sum is rounded twice, which 2^-29 of all sums notice."""
    return (np.float64(1) * a * b + c).astype(np.float32)


def _fma64(a: Any, b: Any, c: Any) -> Any:
    """A b + c through the wider format of the C library; on x86-64 its 64 bits round the product first."""
    return (np.longdouble(1) * a * b + c).astype(np.float64)
