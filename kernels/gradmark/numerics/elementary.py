"""Elementary functions for Numba that LLVM can vectorize, in float32 and in float64.

Numba's wheels carry no vector math library, so a call of exp, tanh or erfc in a loop is a call of scalar libm, and
the loop stays scalar. Everything here is straight-line arithmetic: fused multiply-adds, selections and bit casts.

Conventions: NaN passes through (a clamp selects with a comparison that NaN fails); subnormal results are produced;
no function reads memory. Errors are given in ULP of the result, for the functions used alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, register_jitable

from gradmark.numerics.coefficients import EXP_QUOTIENT, SCALED_TAIL, TAIL_SHIFT

Function = Callable[..., Any]


@dataclass(frozen=True)
class Elementary:
    """The functions of one dtype. Each is to be called from compiled code."""

    dtype: str
    real: Function
    """Converts a Python number to a constant of the dtype (outside of compiled code)."""
    fma: Function
    """fma(a, b, c) = a b + c with one rounding."""
    exp: Function
    """exp(x), 1 ULP; 0 and inf where it under- and overflows."""
    exp_sum: Function
    """exp(high + low) for a sum whose low part lies below half an ULP of the high one."""
    expm1: Function
    """exp(x) - 1 for x <= 0 and for small x > 0, 2 ULP."""
    tanh: Function
    """tanh(x), 2 ULP."""
    gaussian: Function
    """exp(-t²/2) for t >= 0, 1.5 ULP: the square is kept with its rounding error."""
    mills: Function
    """Q(t) exp(t²/2) for t >= 0, Q the upper tail of N(0, 1), 2 ULP."""
    tail_limit: Any
    """Beyond this t both exp(-t²/2) and Q(t) are 0 in the dtype; clamp t here before the calls above."""


@dataclass(frozen=True)
class _Format:
    """A binary floating-point format, as far as exp needs it."""

    float_type: Any
    int_type: Any
    float_numba: Any
    int_numba: Any
    mantissa_bits: int
    bias: int
    # exp(x) is inf above, 0 below.
    largest: float
    smallest: float
    # ln 2 as a sum; the high part has so few bits that its product with any exponent is exact.
    log2_high: float
    expm1_floor: float
    tail_limit: float


_FORMATS = {
    "float32": _Format(np.float32, np.int32, types.float32, types.int32, 23, 127, 89.0, -104.0, 355 / 512, -20.0, 15.0),
    "float64": _Format(
        np.float64,
        np.int64,
        types.float64,
        types.int64,
        52,
        1023,
        710.0,
        -746.0,
        float.fromhex("0x1.62e42fee00000p-1"),
        -40.0,
        40.0,
    ),
}


@functools.cache
def elementary(dtype: str) -> Elementary:
    """The elementary functions of "float32" or "float64"."""
    form = _FORMATS[dtype]
    real = form.float_type
    exp_parts = _exp_parts(dtype, form)
    exp, exp_sum = _exp(form, exp_parts)
    expm1 = _expm1(form, exp_parts)
    gaussian, mills = _gaussian(dtype, form, exp_sum)
    return Elementary(
        dtype=dtype,
        real=real,
        fma=fma,
        exp=exp,
        exp_sum=exp_sum,
        expm1=expm1,
        tanh=_tanh(form, expm1),
        gaussian=gaussian,
        mills=mills,
        tail_limit=real(form.tail_limit),
    )


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


def _bit_cast(source: Any, target: Any) -> Function:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return cast


def _polynomial(coefficients: tuple[Any, ...]) -> Function:
    """Horner's scheme, unrolled into nested closures so that the compiled code has no loop and no table."""
    *lower, last = coefficients
    if not lower:
        return inlined(lambda x: last)
    first = coefficients[0]
    rest = _polynomial(coefficients[1:])

    @inlined
    def evaluate(x: Any) -> Any:
        return fma(rest(x), x, first)

    return evaluate


def _exp_parts(dtype: str, form: _Format) -> Function:
    """x -> (k, r, q) with x + low = k ln 2 + r, |r| <= ln(2) / 2 and q = (exp(r) - 1 - r) / r².

    k is found by adding 1.5 2^mantissa_bits, which rounds to an integer and leaves it in the low bits: a conversion
    to an integer would be undefined for NaN.
    """
    real = form.float_type
    as_int = _bit_cast(form.float_numba, form.int_numba)
    magic = real(1.5 * 2.0**form.mantissa_bits)
    magic_bits = magic.view(form.int_type)
    inverse_log2 = real(1.0 / math.log(2.0))
    high = real(form.log2_high)
    low = real(_log2_low(form.log2_high))
    quotient = _polynomial(tuple(real(c) for c in EXP_QUOTIENT[dtype]))

    @inlined
    def parts(x: Any, correction: Any) -> Any:
        shifted = fma(x, inverse_log2, magic)
        k = as_int(shifted) - magic_bits
        k_real = shifted - magic
        r = fma(-k_real, high, x)
        r = fma(-k_real, low, r) + correction
        return k, r, quotient(r)

    return parts


def _log2_low(high: float) -> float:
    import mpmath

    with mpmath.workdps(60):
        return float(mpmath.log(2) - mpmath.mpf(high))


def _power_of_two(form: _Format) -> Function:
    as_float = _bit_cast(form.int_numba, form.float_numba)
    bias = form.int_type(form.bias)
    shift = form.int_type(form.mantissa_bits)

    @inlined
    def power(k: Any) -> Any:
        return as_float((k + bias) << shift)

    return power


def _exp(form: _Format, parts: Function) -> tuple[Function, Function]:
    real = form.float_type
    power = _power_of_two(form)
    one, zero = real(1), real(0)
    largest, smallest = real(form.largest), real(form.smallest)
    int_one = form.int_type(1)

    @inlined
    def exp_sum(x: Any, correction: Any) -> Any:
        x = largest if x > largest else x
        x = smallest if x < smallest else x
        k, r, q = parts(x, correction)
        value = fma(r * r, q, r) + one
        # 2^k in two factors: k reaches beyond the exponents of normal numbers at both ends.
        half = k >> int_one
        return value * power(half) * power(k - half)

    @inlined
    def exp(x: Any) -> Any:
        return exp_sum(x, zero)

    return exp, exp_sum


def _expm1(form: _Format, parts: Function) -> Function:
    """2^k (1 + p) - 1 = 2^k p + (2^k - 1) with p = exp(r) - 1; both terms are exact to half an ULP."""
    real = form.float_type
    power = _power_of_two(form)
    one, zero = real(1), real(0)
    floor = real(form.expm1_floor)

    @inlined
    def expm1(x: Any) -> Any:
        clamped = floor if x < floor else x
        k, r, q = parts(clamped, zero)
        p = fma(r * r, q, r)
        scale = power(k)
        value = fma(scale, p, scale - one)
        # r loses the sign of a zero.
        return x if x == zero else value

    return expm1


def _tanh(form: _Format, expm1: Function) -> Function:
    """tanh |x| = e / (e + 2) with e = expm1(2 |x|) = -e' / (1 + e'), so -expm1(-2|x|) / (2 + expm1(-2|x|))."""
    real = form.float_type
    two = real(2)
    minus_two = real(-2)

    @inlined
    def tanh(x: Any) -> Any:
        e = expm1(minus_two * abs(x))
        return math.copysign(e / (two + e), x)

    return tanh


def _gaussian(dtype: str, form: _Format, exp_sum: Function) -> tuple[Function, Function]:
    real = form.float_type
    half, one = real(0.5), real(1)
    shift = real(TAIL_SHIFT)
    twice_shift = real(-2 * TAIL_SHIFT)
    polynomial = _polynomial(tuple(real(c) for c in SCALED_TAIL[dtype]))

    @inlined
    def gaussian(t: Any) -> Any:
        square = t * t
        rest = fma(t, t, -square)
        return exp_sum(-half * square, -half * rest)

    @inlined
    def mills(t: Any) -> Any:
        w = one / (t + shift)
        # u = (t - a) / (t + a), without the rounding of t - a.
        u = fma(twice_shift, w, one)
        return polynomial(u) * w

    return gaussian, mills
