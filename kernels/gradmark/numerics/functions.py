"""The elementary functions: one specification, evaluated by every backend that cannot call a good library.

Each function is straight-line arithmetic (fused multiply-adds, selections, bit casts) on the primitives of an
`Arithmetic`: range reduction, coefficients (`coefficients.py`, found by `fit.py`) and order of evaluation stand here
and nowhere else. `elementary.py` evaluates it in Numba, where LLVM turns it into vector instructions; `evaluate.py`
evaluates it in NumPy.

Conventions: NaN passes through (a clamp selects with a comparison that NaN fails); subnormal results are produced;
nothing is read from memory. Errors are given in ULP of the result.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gradmark.numerics import coefficients

Function = Callable[..., Any]


class Arithmetic(Protocol):
    """What a backend gives to evaluate the specification in one dtype, "float32" or "float64"."""

    dtype: str
    fma: Function
    """fma(a, b, c) = a b + c with one rounding."""
    select: Function
    """select(condition, a, b) is a where the condition holds, b elsewhere."""
    copysign: Function
    """copysign(a, b) is |a| with the sign of b."""
    as_bits: Function
    """The bits of a real, as a signed integer of its width."""
    as_real: Function
    """The real that has these bits."""
    from_integer: Function
    """The real of the same value as an integer."""
    scale: Function
    """scale(x, k) = x 2^k with one rounding, for integers k that may reach beyond the exponents of normal numbers."""

    def real(self, value: float) -> Any:
        """A constant of the dtype."""

    def integer(self, value: int) -> Any:
        """A constant of the integer type that is as wide as the dtype."""

    def function(self, definition: Function) -> Function:
        """`definition`, made callable from the backend's kernels, and inlined there."""


@dataclass(frozen=True)
class Elementary:
    """The functions of one dtype, to be called from a kernel of the backend that evaluates them."""

    dtype: str
    real: Function
    """Converts a Python number to a constant of the dtype (outside of compiled code)."""
    integer: Function
    """Converts one to a constant of the type of exponents."""
    nothing: Any
    """-0.0, which is the low part of a sum that has none: a compiler may drop x + -0.0, but not x + 0.0."""
    fma: Function
    """fma(a, b, c) = a b + c with one rounding."""
    scale: Function
    """scale(x, k) = x 2^k with one rounding."""
    exp: Function
    """exp(x), 1.05 ULP; 0 and inf where it under- and overflows."""
    exp_falling: Function
    """The same for x <= 0."""
    exp_parts: Function
    """x -> p, p_low, k with exp(x) = (1 + p + p_low) 2^k for x <= 0, |p| < 0.42.

    y exp(x) is scale(fma(y, p, y), k), which spares the rounding of 1 + p; also y = x comes out, down to its zero.
    """
    exp_parts_sum: Function
    """The same for a sum high + low, the low part below half an ULP of the high one."""
    exp_parts_within: Function
    """As exp_parts, for x of both signs, within bounds that the caller keeps: half of k is an exponent of the dtype."""
    expm1: Function
    """exp(x) - 1 for x <= 0 and for small x > 0, 1.1 ULP."""
    expm1_parts: Function
    """x -> expm1(x) as a sum of two floats, 0.6 ULP; the sign of a zero is lost."""
    expm1_sum_parts: Function
    """(high, low) -> exp(high + low) - 1, as expm1_parts."""
    log1p_unit_parts: Function
    """(e, e_low) -> log1p_unit as a sum of two floats, 0.85 ULP."""
    log1p_unit: Function
    """(e, e_low) -> log(1 + e + e_low) for 0 <= e <= 1, 1.35 ULP."""
    log: Function
    """log(x) for positive normal x, 1.5 ULP."""
    tanh: Function
    """tanh(x), 1.6 ULP."""
    tanh_squared: Function
    """tanh(x)², 2.5 ULP."""
    tanhshrink: Function
    """x - tanh(x), 1.6 ULP: a polynomial where the difference would cancel."""
    tail: Function
    """t Q(t) for t >= 0, Q the upper tail of N(0, 1), 1.6 ULP."""
    tail_slope: Function
    """t φ(t) - Q(t) for t >= 0, 3 ULP, also about its zero: minus the derivative of t Q(t)."""
    farthest: Any
    """From here on x exp(-x) is 0 in the dtype."""
    two_product: Function
    """(a, b) -> a b as a sum of two floats, exactly."""
    quotient: Function
    """(a, a_low, d, d_low) -> (a + a_low) / (d + d_low), about half an ULP; low parts are below an ULP."""


@dataclass(frozen=True)
class _Format:
    """A binary floating-point format, as far as the functions need it."""

    mantissa_bits: int
    bias: int
    # exp(x) is inf above, and |x| exp(x) is 0 below.
    largest: float
    smallest: float
    # ln 2 as a sum; the high part has so few bits that its product with any exponent is exact.
    log2_high: float
    log2_low: float
    # exp(x) - 1 is -1 below.
    expm1_floor: float


_FORMATS = {
    "float32": _Format(23, 127, 89.0, -120.0, 355 / 512, -2.12194440054690583e-4, -20.0),
    "float64": _Format(
        52, 1023, 710.0, -760.0, float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33"), -40.0
    ),
}


def functions(m: Arithmetic) -> Elementary:
    """The elementary functions on the primitives of `m`."""
    form = _FORMATS[m.dtype]
    two_product, quotient = _two_product(m), _quotient(m)
    exp, exp_falling, exp_parts, exp_parts_sum, exp_parts_within = _exp(m, form)
    expm1_pair, expm1, expm1_sum_parts = _expm1(m, form)
    tanh, tanh_squared = _tanh(m, expm1_pair)
    tail, tail_slope = _tails(m, exp_parts_sum)
    log1p_unit_parts, log1p_unit, log = _logarithms(m, form)
    return Elementary(
        dtype=m.dtype,
        real=m.real,
        integer=m.integer,
        nothing=m.real(-0.0),
        fma=m.fma,
        scale=m.scale,
        exp=exp,
        exp_falling=exp_falling,
        exp_parts=exp_parts,
        exp_parts_sum=exp_parts_sum,
        exp_parts_within=exp_parts_within,
        expm1=expm1,
        expm1_parts=expm1_pair,
        expm1_sum_parts=expm1_sum_parts,
        log1p_unit_parts=log1p_unit_parts,
        log1p_unit=log1p_unit,
        log=log,
        tanh=tanh,
        tanh_squared=tanh_squared,
        tanhshrink=_tanhshrink(m, tanh),
        tail=tail,
        tail_slope=tail_slope,
        farthest=m.real(-form.smallest),
        two_product=two_product,
        quotient=quotient,
    )


def _polynomial(m: Arithmetic, name: str) -> Function:
    """The polynomial with the coefficients called `name`."""
    return _evaluation(m, getattr(coefficients, name)[m.dtype])


def _evaluation(m: Arithmetic, powers: tuple[float, ...]) -> Function:
    """x -> Σ c_k x^k, unrolled: compiled code has no loop and no table.

    By Horner's scheme; from degree 7 on, by two of them in x², for the even and for the odd powers: half as many
    multiply-adds wait for one another.
    """
    if len(powers) < 8:
        return _horner(m, powers)
    fma, even, odd = m.fma, _horner(m, powers[::2]), _horner(m, powers[1::2])

    @m.function
    def evaluate(x: Any) -> Any:
        square = x * x
        return fma(x, odd(square), even(square))

    return evaluate


def _constant_and_rest(m: Arithmetic, name: str) -> tuple[Any, Function]:
    """A polynomial as c + x rest(x), for who keeps what the last step of Horner's scheme rounds away."""
    constant, *higher = getattr(coefficients, name)[m.dtype]
    return m.real(constant), _evaluation(m, tuple(higher))


def _horner(m: Arithmetic, powers: tuple[float, ...]) -> Function:
    fma, first = m.fma, m.real(powers[0])
    if len(powers) == 1:
        return m.function(lambda x: first)
    rest = _horner(m, powers[1:])

    @m.function
    def evaluate(x: Any) -> Any:
        return fma(rest(x), x, first)

    return evaluate


def _two_product(m: Arithmetic) -> Function:
    fma = m.fma

    @m.function
    def two_product(a: Any, b: Any) -> Any:
        product = a * b
        return product, fma(a, b, -product)

    return two_product


def _quotient(m: Arithmetic) -> Function:
    """One Newton step on the residual, which a fused multiply-add gives exactly (Markstein 1990)."""
    fma, one = m.fma, m.real(1)

    @m.function
    def quotient(a: Any, a_low: Any, d: Any, d_low: Any) -> Any:
        inverse = one / d
        q = a * inverse
        rest = fma(-q, d_low, fma(-q, d, a) + a_low)
        return fma(rest, inverse, q)

    return quotient


def _reduction(m: Arithmetic, form: _Format) -> tuple[Function, Function]:
    """x -> (k, p, p_low) with x = k ln 2 + r, |r| <= ln(2) / 2 and p + p_low = exp(r) - 1; and for a sum high + low.

    k is found by adding 1.5 2^mantissa_bits, which rounds to an integer and leaves it in the low bits: a conversion
    to an integer would be undefined for NaN. p alone is good to 0.75 ULP; who does not use p_low does not pay for it.
    """
    fma, as_bits = m.fma, m.as_bits
    magic = m.real(1.5 * 2.0**form.mantissa_bits)
    magic_bits = m.integer(((form.bias + form.mantissa_bits) << form.mantissa_bits) | (1 << (form.mantissa_bits - 1)))
    inverse_log2 = m.real(1.0 / math.log(2.0))
    minus_high, minus_low = m.real(-form.log2_high), m.real(-form.log2_low)
    quotient = _polynomial(m, "EXP_QUOTIENT")

    @m.function
    def expm1_of(r: Any, r_low: Any) -> Any:
        square, q = r * r, quotient(r)
        p = fma(square, q, r)
        return p, fma(square, q, r - p) + r_low

    @m.function
    def reduce(x: Any) -> Any:
        shifted = fma(x, inverse_log2, magic)
        k_real = shifted - magic
        exact = fma(k_real, minus_high, x)
        r = fma(k_real, minus_low, exact)
        p, p_low = expm1_of(r, fma(k_real, minus_low, exact - r))
        return as_bits(shifted) - magic_bits, p, p_low

    @m.function
    def reduce_sum(high: Any, low: Any) -> Any:
        shifted = fma(high, inverse_log2, magic)
        k_real = shifted - magic
        exact = fma(k_real, minus_high, high)
        rest = fma(k_real, minus_low, low)
        r = exact + rest
        p, p_low = expm1_of(r, (exact - r) + rest)
        return as_bits(shifted) - magic_bits, p, p_low

    return reduce, reduce_sum


def _power_of_two(m: Arithmetic, form: _Format) -> Function:
    as_real, bias, shift = m.as_real, m.integer(form.bias), m.integer(form.mantissa_bits)

    @m.function
    def power(k: Any) -> Any:
        return as_real((k + bias) << shift)

    return power


def _exp(m: Arithmetic, form: _Format) -> tuple[Function, Function, Function, Function, Function]:
    """exp(x) of any x and of x <= 0; and of x <= 0 and of a sum high + low <= 0 as (1 + p + p_low) 2^k."""
    select, scale, (reduce, reduce_sum) = m.select, m.scale, _reduction(m, form)
    one, largest, smallest = m.real(1), m.real(form.largest), m.real(form.smallest)

    @m.function
    def parts(x: Any) -> Any:
        k, p, p_low = reduce(select(x < smallest, smallest, x))
        return p, p_low, k

    @m.function
    def parts_sum(high: Any, low: Any) -> Any:
        k, p, p_low = reduce_sum(select(high < smallest, smallest, high), low)
        return p, p_low, k

    @m.function
    def exp_falling(x: Any) -> Any:
        p, _, k = parts(x)
        return scale(one + p, k)

    @m.function
    def exp(x: Any) -> Any:
        return exp_falling(select(x > largest, largest, x))

    @m.function
    def parts_within(x: Any) -> Any:
        k, p, p_low = reduce(x)
        return p, p_low, k

    return exp, exp_falling, parts, parts_sum, parts_within


def _expm1(m: Arithmetic, form: _Format) -> tuple[Function, Function, Function]:
    """2^k (1 + p) - 1 = 2^k p + (2^k - 1) with p = exp(r) - 1; as a sum of two floats, and rounded."""
    fma, select, power, (reduce, reduce_sum) = m.fma, m.select, _power_of_two(m, form), _reduction(m, form)
    zero, one, floor = m.real(0), m.real(1), m.real(form.expm1_floor)

    @m.function
    def combine(k: Any, p: Any, p_low: Any) -> Any:
        scale = power(k)
        rest = scale - one
        high = fma(scale, p, rest)
        return high, fma(scale, p, rest - high) + scale * p_low

    @m.function
    def pair(x: Any) -> Any:
        return combine(*reduce(select(x < floor, floor, x)))

    @m.function
    def expm1(x: Any) -> Any:
        high, _ = pair(x)
        # The reduction loses the sign of a zero.
        return select(x == zero, x, high)

    @m.function
    def sum_pair(x: Any, low: Any) -> Any:
        return combine(*reduce_sum(select(x < floor, floor, x), low))

    return pair, expm1, sum_pair


def _tanh(m: Arithmetic, expm1_pair: Function) -> tuple[Function, Function]:
    """tanh |x| = -e / (2 + e) with e = expm1(-2 |x|), kept as a sum of two floats."""
    copysign, quotient, fma = m.copysign, _quotient(m), m.fma
    two, minus_two = m.real(2), m.real(-2)

    @m.function
    def tanh(x: Any) -> Any:
        e, e_low = expm1_pair(minus_two * abs(x))
        d = two + e
        return copysign(quotient(e, e_low, d, (two - d) + e), x)

    @m.function
    def tanh_squared(x: Any) -> Any:
        e, e_low = expm1_pair(minus_two * abs(x))
        d = two + e
        y = e / d
        y_low = (fma(-y, d, e) + fma(-y, (two - d) + e, e_low)) / d
        return fma(y, y, two * (y * y_low))

    return tanh, tanh_squared


def _tanhshrink(m: Arithmetic, tanh: Function) -> Function:
    """x³ T(x²) up to |x| = 2, where T(v) = (x - tanh x) / x³ is a polynomial in v / 2 - 1."""
    fma, select = m.fma, m.select
    half, minus_one, two = m.real(0.5), m.real(-1), m.real(2)
    first, rest = _constant_and_rest(m, "TANHSHRINK")

    @m.function
    def tanhshrink(x: Any) -> Any:
        v = x * x
        v_low = fma(x, x, -v)
        s = fma(half, v, minus_one)
        slope = rest(s)
        t = fma(s, slope, first)
        t_low = fma(s, slope, first - t)
        product = v * t
        product_low = fma(v, t, -product) + fma(v_low, t, v * t_low)
        near = fma(x, product, x * product_low)
        return select(abs(x) < two, near, x - tanh(x))

    return tanhshrink


def _logarithms(m: Arithmetic, form: _Format) -> tuple[Function, Function, Function]:
    """Both through 2 atanh(s) = 2 s + 2 s³ A(s²): log(1 + e) with s = e / (2 + e), since 2 s = e - s e."""
    fma, as_bits, as_real = m.fma, m.as_bits, m.as_real
    two, one = m.real(2), m.real(1)
    series = _polynomial(m, "ATANH_QUOTIENT")
    shift = m.integer(form.mantissa_bits)
    # The bits of √½: from there to √2 the exponent k is 0.
    lowest = m.integer(_bits_of_root_half(m.dtype))
    high, low = m.real(form.log2_high), m.real(form.log2_low)
    from_integer = m.from_integer

    @m.function
    def log1p_unit_parts(e: Any, e_low: Any) -> Any:
        s = e / (two + e)
        square = s * s
        # d log(1 + e) / de = (1 - s) / (1 + s), within 12 % of 1 - 2 s + 2 s²: enough for the low part.
        slope = fma(two, square - s, one)
        rest = fma(s, fma(-two * square, series(square), e), -(e_low * slope))
        y = e - rest
        return y, (e - y) - rest

    @m.function
    def log1p_unit(e: Any, e_low: Any) -> Any:
        y, _ = log1p_unit_parts(e, e_low)
        return y

    @m.function
    def log(x: Any) -> Any:
        k = (as_bits(x) - lowest) >> shift
        f = as_real(as_bits(x) - (k << shift)) - one
        s = f / (two + f)
        square = s * s
        k_real = from_integer(k)
        rest = fma(s, fma(two * square, series(square), -f), k_real * low)
        return fma(k_real, high, f + rest)

    return log1p_unit_parts, log1p_unit, log


def _bits_of_root_half(dtype: str) -> int:
    kinds = ("<f", "<i") if dtype == "float32" else ("<d", "<q")
    bits: int = struct.unpack(kinds[1], struct.pack(kinds[0], math.sqrt(0.5)))[0]
    return bits


def _scaled_tail(m: Arithmetic) -> tuple[Any, Function]:
    """SCALED_TAIL as c + u rest(u): (u, u_low) -> rest, and what u_low and rounding move c + u rest by.

    In float64, u comes so near to 1 that the terms are several times their sum: there rest keeps what its last step
    rounds away, and what rounding has taken from its first coefficient.
    """
    fma = m.fma
    first, second, *powers = coefficients.SCALED_TAIL[m.dtype]
    first_low, second_low = map(m.real, coefficients.SCALED_TAIL_LOW[m.dtype])
    if m.dtype == "float32":
        narrow = _evaluation(m, (second, *powers))

        @m.function
        def rest(u: Any, u_low: Any) -> Any:
            # Nearly the slope.
            value = narrow(u)
            return value, fma(u_low, value, first_low)
    else:
        constant, wide = m.real(second), _horner(m, tuple(powers))

        @m.function
        def rest(u: Any, u_low: Any) -> Any:
            higher = wide(u)
            value = fma(u, higher, constant)
            low = fma(u, higher, constant - value) + second_low
            return value, fma(u_low, value, fma(u, low, first_low))

    return m.real(first), rest


def _tails(m: Arithmetic, exp_parts_sum: Function) -> tuple[Function, Function]:
    """t Q(t) and its slope, through q = t / (t + a), u = 2 q - 1 and exp(-t²/2).

    (t + a) Q(t) exp(t²/2) is the polynomial SCALED_TAIL in u. The slope Q - t φ has its only zero at t₀: with the
    factor t - t₀ taken out, what is left of it, divided by exp(-t²/2), is the polynomial TAIL_SLOPE in u.
    """
    fma, scale, select = m.fma, m.scale, m.select
    one, two, minus_one, minus_half = m.real(1), m.real(2), m.real(-1), m.real(-0.5)
    shift, limit = m.real(coefficients.TAIL_SHIFT), m.real(coefficients.TAIL_LIMIT[m.dtype])
    zero_high = m.real(coefficients.TAIL_ZERO[0])
    zero_low = m.real((coefficients.TAIL_ZERO[0] - float(zero_high)) + coefficients.TAIL_ZERO[1])
    first, rest = _scaled_tail(m)
    slope_first, slope = _constant_and_rest(m, "TAIL_SLOPE")

    @m.function
    def times_gaussian(y: Any, y_low: Any, t: Any) -> Any:
        square = t * t
        p, p_low, k = exp_parts_sum(minus_half * square, minus_half * fma(t, t, -square))
        return scale(y + fma(y, p, fma(y, p_low, fma(y_low, p, y_low))), k)

    @m.function
    def tail(t: Any) -> Any:
        # Both exp(-t²/2) and Q are 0 beyond the limit.
        t = select(t > limit, limit, t)
        d = t + shift
        d_low = t - (d - shift)
        inverse = one / d
        q = t * inverse
        q_low = (fma(-q, d, t) - q * d_low) * inverse
        exact = fma(two, q, minus_one)
        u = fma(two, q_low, exact)
        u_low = fma(two, q_low, exact - u)
        higher, moved = rest(u, u_low)
        value = fma(u, higher, first)
        value_low = fma(u, higher, first - value) + moved
        y = q * value
        y_low = fma(q, value, -y) + fma(q_low, value, q * value_low)
        return times_gaussian(y, y_low, t)

    @m.function
    def tail_slope(t: Any) -> Any:
        t = select(t > limit, limit, t)
        u = fma(two * t, one / (t + shift), minus_one)
        higher = slope(u)
        value = fma(u, higher, slope_first)
        d = t - zero_high
        d_low = ((t - d) - zero_high) - zero_low
        y = d * value
        y_low = fma(d, value, -y) + fma(d_low, value, d * fma(u, higher, slope_first - value))
        return times_gaussian(y, y_low, t)

    return tail, tail_slope
