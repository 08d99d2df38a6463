"""The elementary functions in Numba, in a form that LLVM can vectorize.

Numba's wheels carry no vector math library, so a call of exp, tanh or erfc in a loop is a call of scalar libm, and
the loop stays scalar. Here the specification of `functions.py` is inlined instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from gradmark.numerics.functions import Elementary, functions

Function = Callable[..., Any]


@functools.cache
def elementary(dtype: str) -> Elementary:
    """The elementary functions of "float32" or "float64"."""
    return functions(NumbaArithmetic(dtype))


def inlined(function: Function) -> Function:
    """Make a function callable from compiled code, always inlined there: a call left in a loop keeps it scalar."""
    decorated: Function = register_jitable(forceinline=True)(function)
    return decorated


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), generate


@intrinsic
def add_in_any_order(typing_context: Any, a: Any, b: Any) -> Any:
    """A + b, which LLVM may reassociate: so a sum over a loop runs in vector lanes, without fast-math elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc",))

    return a(a, a), generate


@inlined
def _select(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


@inlined
def _copysign(a: Any, b: Any) -> Any:
    return math.copysign(a, b)


class NumbaArithmetic:
    """The primitives of the specification, as Numba compiles them."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.fma: Function = fma
        self.select: Function = _select
        self.copysign: Function = _copysign
        self._real: Any = np.float32 if dtype == "float32" else np.float64
        self._integer: Any = np.int32 if dtype == "float32" else np.int64
        real, integer = getattr(types, dtype), types.int32 if dtype == "float32" else types.int64
        self.as_bits: Function = _bit_cast(real, integer)
        self.as_real: Function = _bit_cast(integer, real)
        self.scale: Function = _ldexp if _has_scalef() else _two_products(self)
        self.from_integer: Function = inlined(self._converter())

    def real(self, value: float) -> Any:
        """A constant of the dtype."""
        return self._real(value)

    def integer(self, value: int) -> Any:
        """A constant of the integer type that is as wide as the dtype."""
        return self._integer(value)

    def _converter(self) -> Function:
        # Numba widens integers as it computes with them; LLVM converts vectors of the narrow ones.
        real, integer = self._real, self._integer
        return lambda k: real(integer(k))

    def function(self, definition: Function) -> Function:
        """`definition`, inlined where it is called."""
        return inlined(definition)


@intrinsic
def _ldexp(typing_context: Any, x: Any, k: Any) -> Any:
    """X 2^k as one instruction (vscalef)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        real, integer = context.get_value_type(x), ir.IntType(32)
        kind = ir.FunctionType(real, [real, integer])
        return builder.call(builder.module.declare_intrinsic("llvm.ldexp", [real, integer], kind), arguments)

    return x(x, types.int32), generate


def _has_scalef() -> bool:
    """Whether the processor has it in vectors; elsewhere LLVM may call the C library's ldexp, lane by lane."""
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


def _two_products(m: NumbaArithmetic) -> Function:
    """X 2^k as x 2^(k/2) 2^(k - k/2): k reaches beyond the exponents of normal numbers at both ends."""
    as_real, one = m.as_real, m.integer(1)
    bias, shift = (m.integer(127), m.integer(23)) if m.dtype == "float32" else (m.integer(1023), m.integer(52))

    @inlined
    def scale(x: Any, k: Any) -> Any:
        half = k >> one
        return x * as_real((half + bias) << shift) * as_real((k - half + bias) << shift)

    return scale


def _bit_cast(source: Any, target: Any) -> Function:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return cast
