"""Exponentials of a row relative to its largest, as softmax needs them, for Numba.

exp(x - peak) is not formed from a rounded difference, whose error it would enlarge: with x about -100 below the peak,
by a factor of 100. Either the difference keeps its rounding error (`difference`), or the exponentials of a row have a
power of two in common instead (`scaled_exp`), which is exact and takes less. All are times 2^LIFT, so that what
becomes subnormal in a ratio is rounded once, in that ratio.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics.coefficients import EXP_QUOTIENT
from gradmark.numerics.elementary import NumbaArithmetic, inlined

Function = Callable[..., Any]

LIFT = {"float32": 64, "float64": 512}
"""The smallest exponential, exp(-REACH), is a normal number with it."""
REACH = {"float32": 110.0, "float64": 750.0}
"""So far below the peak, a ratio is 0 in the dtype."""
LIMIT = {"float32": 512.0, "float64": 4096.0}
"""Peaks beyond are subtracted: x - peak is exact where it is within REACH (Sterbenz 1974: x is within a factor of 2).

Below, x is small enough for the reduction of exp's argument to lose nothing.
"""


@functools.cache
def difference(dtype: str) -> Function:
    """(x, peak) -> x - peak as a sum of two floats (Knuth's two-sum, TAOCP 2, 4.2.2)."""
    real = NumbaArithmetic(dtype).real
    zero, far = real(0), real(-1e4)

    @inlined
    def difference_of(x: Any, peak: Any) -> Any:
        d = x - peak
        back = d - x
        rest = (x - (d - back)) - (peak + back)
        # Far below, exp(d) is 0; and the rest of an infinite difference is NaN.
        return d, rest if d > far else zero

    return difference_of


@functools.cache
def lifted_exp(dtype: str) -> Function:
    """(d, rest) -> exp(d + rest) 2^LIFT for d <= 0, the rest below half an ULP of d; 1 ULP."""
    m = NumbaArithmetic(dtype)
    argument, expm1, power = _argument(m), _expm1(m), _power_of_two(m)
    one, floor, lift = m.real(1), m.real(-REACH[dtype]), m.integer(LIFT[dtype])

    @inlined
    def exp(d: Any, rest: Any) -> Any:
        k, r = argument(floor if d < floor else d)
        return (one + expm1(r + rest)) * power(k + lift)

    return exp


@functools.cache
def scaled_exp(dtype: str) -> Function:
    """(x, peak) -> exp(x) 2^LIFT times a factor that depends on the peak alone, for x <= peak; 1 ULP.

    NaN where x or the peak is, and where the difference of infinities is.
    """
    m = NumbaArithmetic(dtype)
    argument, expm1, power = _argument(m), _expm1(m), _power_of_two(m)
    zero, one, lift = m.real(0), m.real(1), m.integer(LIFT[dtype])
    limit, reach = m.real(LIMIT[dtype]), m.real(REACH[dtype])

    @inlined
    def exp(x: Any, peak: Any) -> Any:
        origin = zero if abs(peak) < limit else peak
        top = peak - origin
        floor = top - reach
        d = x - origin
        k, r = argument(floor if d < floor else d)
        k_of_top, _ = argument(top)
        return (one + expm1(r)) * power((k - k_of_top) + lift)

    return exp


@functools.cache
def scaled_exp_of_peak(dtype: str) -> Function:
    """Peak -> scaled_exp(peak, peak) in float64, whatever the dtype."""
    m, wide = NumbaArithmetic(dtype), NumbaArithmetic("float64")
    argument, wide_argument, expm1, power = _argument(m), _argument(wide), _expm1(wide), _power_of_two(wide)
    zero, limit, lift = m.real(0), m.real(LIMIT[dtype]), np.int64(LIFT[dtype])

    @inlined
    def exp(peak: Any) -> Any:
        top = peak - (zero if abs(peak) < limit else peak)
        k_of_top, _ = argument(top)
        k, r = wide_argument(np.float64(top))
        return (1.0 + expm1(r)) * power((k - np.int64(k_of_top)) + lift)

    return exp


_LOG2 = {
    "float32": (355 / 512, -2.1219444005469058e-4),
    "float64": (float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")),
}
"""ln 2 as a sum, the first part with so few bits that its product with any exponent is exact."""
_MANTISSA_BITS = {"float32": 23, "float64": 52}


def _argument(m: NumbaArithmetic) -> Function:
    """X -> (k, r) with x = k ln 2 + r, |r| <= ln(2) / 2.

    k is found by adding 1.5 2^mantissa_bits, which rounds to an integer and leaves it in the low bits: a conversion
    to an integer would be undefined for NaN.
    """
    fma, as_bits, bits = m.fma, m.as_bits, _MANTISSA_BITS[m.dtype]
    shift, inverse_log2 = m.real(1.5 * 2.0**bits), m.real(1.0 / math.log(2.0))
    minus_high, minus_low = (m.real(-part) for part in _LOG2[m.dtype])
    bits_of_shift = m.integer(int(np.dtype(m.dtype).type(1.5 * 2.0**bits).view(f"i{4 if bits == 23 else 8}")))

    @inlined
    def argument(x: Any) -> Any:
        shifted = fma(x, inverse_log2, shift)
        k = shifted - shift
        return as_bits(shifted) - bits_of_shift, fma(k, minus_low, fma(k, minus_high, x))

    return argument


def _expm1(m: NumbaArithmetic) -> Function:
    """R -> exp(r) - 1 for |r| <= ln(2) / 2."""
    fma, quotient = m.fma, _horner(m, EXP_QUOTIENT[m.dtype])

    @inlined
    def expm1(r: Any) -> Any:
        return fma(r * r, quotient(r), r)

    return expm1


def _horner(m: NumbaArithmetic, powers: tuple[float, ...]) -> Function:
    fma, first = m.fma, m.real(powers[0])
    if len(powers) == 1:
        return inlined(lambda x: first)
    rest = _horner(m, powers[1:])

    @inlined
    def evaluate(x: Any) -> Any:
        return fma(rest(x), x, first)

    return evaluate


def _power_of_two(m: NumbaArithmetic) -> Function:
    as_real, bits = m.as_real, m.integer(_MANTISSA_BITS[m.dtype])
    bias = m.integer(127 if m.dtype == "float32" else 1023)

    @inlined
    def power(k: Any) -> Any:
        return as_real((k + bias) << bits)

    return power
