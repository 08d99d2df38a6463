"""From random integers to distributions, with equal bits in every backend.

Every function here is a fixed sequence of operations that IEEE 754 rounds correctly (+, -, ·, /, √), and of operations
on integers: no fused multiply-add, no library function. So NumPy, Numba, PyTorch on a CPU and on a GPU
get the same bits, whatever they vectorize. The specification stands here and nowhere else; a backend gives it an
`Arithmetic`. Polynomials are those of `philox_coefficients.py`, found by `philox_fit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradmark.numerics import philox_coefficients

Function = Callable[..., Any]


class Arithmetic(Protocol):
    """What a backend gives to evaluate the specification in one dtype, "float32" or "float64"."""

    dtype: str
    select: Function
    """select(condition, a, b) is a where the condition holds, b elsewhere."""
    sqrt: Function
    as_bits: Function
    """The bits of a real, as a signed integer of its width."""
    as_real: Function
    """The real that has these bits."""
    from_integer: Function
    """The real of the same value as an integer."""

    def real(self, value: float) -> Any:
        """A constant of the dtype."""

    def integer(self, value: int) -> Any:
        """A constant of the integer type that is as wide as the dtype."""

    def function(self, definition: Function) -> Function:
        """`definition`, made callable from the backend's loops, and inlined there."""


@dataclass(frozen=True)
class Transforms:
    """The functions of one dtype."""

    normal_pair: Function
    """(u, quadrant, t) -> two independent N(0, 1), by Box and Muller, for u in (0, 1] and the angle (quadrant + t) π/2.

    Box, Muller, Ann. Math. Stat. 29, 1958. The quadrant is 0 to 3, |t| <= 1/2. Errors: a few roundings of the radius.
    """
    truncated: Function
    """(u, v, low, high) -> z of N(0, 1) within two bounds, by the inverse of its distribution function.

    u in (0, 1) and v = 1 - u. `low` is the pair of what lies below and above the lower bound, Φ(α) and Φ(-α); `high`
    that of the upper bound. Both tails are formed, without cancellation, and the smaller one is inverted.
    """
    truncated_near: Function
    """The same where no tail is smaller than NEAR, in less time; in float32, that is the only one.

    float64: 3 ULP of z; float32: a few ULP of the larger of z and 1.
    """


NEAR = 2e-11
"""From here up √(-ln p) < 5 for a tail p, which is where Wichura's third pair of polynomials begins (1.4e-11)."""


@dataclass(frozen=True)
class _Format:
    """A binary floating-point format."""

    mantissa_bits: int
    root_half: int
    """The bits of √½: mantissas are taken from [√½, √2)."""
    log2_high: float
    """ln 2 as a sum. The high part has so few bits that its product with any exponent is exact."""
    log2_low: float


_FORMATS = {
    "float32": _Format(23, 0x3F3504F3, 355 / 512, -2.12194440054690583e-4),
    "float64": _Format(
        52, 0x3FE6A09E667F3BCD, float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
    ),
}


def transforms(m: Arithmetic) -> Transforms:
    """The transforms on the primitives of `m`."""
    if m.dtype == "float32":
        near = _truncated(m, _tail_quantile_single(m))
        return Transforms(_normal_pair(m), near, near)
    quantile, quantile_near = _tail_quantile(m, far=True), _tail_quantile(m, far=False)
    return Transforms(_normal_pair(m), _truncated(m, quantile), _truncated(m, quantile_near))


def _minus_log(m: Arithmetic) -> Function:
    """-ln(u) for normal u > 0: with u = 2^k (1 + f) and s = f / (2 + f), ln(1 + f) = 2 atanh(s) = f - s (f - r)."""
    form = _FORMATS[m.dtype]
    atanh_rest = _polynomial(m, "ATANH_REST")
    root_half, shift = m.integer(form.root_half), m.integer(form.mantissa_bits)
    mantissa = m.integer((1 << form.mantissa_bits) - 1)
    one, two, high, low = m.real(1.0), m.real(2.0), m.real(form.log2_high), m.real(form.log2_low)
    as_bits, as_real, from_integer = m.as_bits, m.as_real, m.from_integer

    @m.function
    def minus_log(u: Any) -> Any:
        bits = as_bits(u) - root_half
        k = from_integer(bits >> shift)
        f = as_real((bits & mantissa) + root_half) - one
        s = f / (two + f)
        z = s * s
        return ((s * (f - z * atanh_rest(z)) - k * low) - f) - k * high

    return minus_log


def _normal_pair(m: Arithmetic) -> Function:
    minus_log, sqrt, as_bits, as_real = _minus_log(m), m.sqrt, m.as_bits, m.as_real
    sine, cosine = _polynomial(m, "SINE"), _polynomial(m, "COSINE")
    zero, one, two = m.integer(0), m.integer(1), m.integer(2)
    to_sign = m.integer(8 * {"float32": 4, "float64": 8}[m.dtype] - 2)

    @m.function
    def normal_pair(u: Any, quadrant: Any, t: Any) -> Any:
        v = minus_log(u)
        radius = sqrt(v + v)
        z = t * t
        x = as_bits(radius * cosine(z))
        y = as_bits(radius * (t * sine(z)))
        # Swapped in odd quadrants; then the first is negative in quadrants 1 and 2, the second in 2 and 3.
        swap = (x ^ y) & (zero - (quadrant & one))
        first = x ^ swap ^ (((quadrant + one) & two) << to_sign)
        second = y ^ swap ^ ((quadrant & two) << to_sign)
        return as_real(first), as_real(second)

    return normal_pair


def _truncated(m: Arithmetic, tail_quantile: Function) -> Function:
    as_bits, as_real, select = m.as_bits, m.as_real, m.select
    sign = m.integer(-(2**63) if m.dtype == "float64" else -(2**31))

    @m.function
    def truncated(u: Any, v: Any, low: Any, high: Any) -> Any:
        below = low[0] * v + high[0] * u
        above = low[1] * v + high[1] * u
        z = tail_quantile(select(below < above, below, above))
        return select(below < above, as_real(as_bits(z) ^ sign), z)

    return truncated


def _tail_quantile(m: Arithmetic, *, far: bool) -> Function:
    """The z >= 0 that N(0, 1) exceeds with probability p <= 1/2; for p >= NEAR only, unless `far`."""
    minus_log, select, sqrt = _minus_log(m), m.select, m.sqrt
    half, edge, shift = m.real(0.5), m.real(0.425), m.real(0.180625)
    central, middle, outer = (_ratio(m, *getattr(philox_coefficients, f"QUANTILE_{k}")) for k in ("0", "1", "2"))
    first, second, five = m.real(1.6), m.real(5.0), m.real(5.0)

    @m.function
    def near(p: Any) -> Any:
        q = half - p
        r = sqrt(minus_log(p))
        return select(q <= edge, q * central(shift - q * q), middle(r - first))

    @m.function
    def everywhere(p: Any) -> Any:
        q = half - p
        r = sqrt(minus_log(p))
        return select(q <= edge, q * central(shift - q * q), select(r <= five, middle(r - first), outer(r - second)))

    return everywhere if far else near


def _tail_quantile_single(m: Arithmetic) -> Function:
    """The same in float32, by two polynomials of w = -ln(1 - x²) or its root, where x = 1 - 2p (Giles 2011)."""
    minus_log, select, sqrt = _minus_log(m), m.select, m.sqrt
    centre, tail = _polynomial(m, "QUANTILE_CENTRE"), _polynomial(m, "QUANTILE_TAIL")
    one, four = m.real(1.0), m.real(4.0)
    centre_shift, limit = m.real(philox_coefficients.CENTRE_SHIFT), m.real(philox_coefficients.CENTRE_LIMIT)
    tail_shift = m.real(philox_coefficients.TAIL_SHIFT)

    @m.function
    def quantile(p: Any) -> Any:
        w = minus_log(four * p * (one - p))
        factor = select(w < limit, centre(w - centre_shift), tail(sqrt(w) - tail_shift))
        return (one - (p + p)) * factor

    return quantile


def _ratio(m: Arithmetic, numerator: Sequence[float], denominator: Sequence[float]) -> Function:
    above, below = _by_powers(m, numerator), _by_powers(m, denominator)

    @m.function
    def ratio(x: Any) -> Any:
        x2 = x * x
        powers = x, x2, x2 * x2
        return above(powers) / below(powers)

    return ratio


def _polynomial(m: Arithmetic, name: str) -> Function:
    """The polynomial with the coefficients called `name`, of degree 2 to 15."""
    coefficients = getattr(philox_coefficients, name)[m.dtype]
    value = _by_powers(m, coefficients)

    @m.function
    def cubic(x: Any) -> Any:
        return value((x, x * x))

    @m.function
    def septic(x: Any) -> Any:
        x2 = x * x
        return value((x, x2, x2 * x2))

    @m.function
    def any_degree(x: Any) -> Any:
        x2 = x * x
        x4 = x2 * x2
        return value((x, x2, x4, x4 * x4))

    return cubic if len(coefficients) <= 4 else septic if len(coefficients) <= 8 else any_degree


def _by_powers(m: Arithmetic, coefficients: Sequence[float]) -> Function:
    """(x, x², x⁴, …) -> Σ c_k x^k, by Estrin's scheme: fewer operations wait for one another than in Horner's.

    Estrin, Proc. Western Joint Computer Conf., 1960.
    """
    if len(coefficients) == 1:
        constant = m.real(coefficients[0])
        return m.function(lambda powers: constant)
    which = (len(coefficients) - 1).bit_length() - 1
    low, high = _by_powers(m, coefficients[: 1 << which]), _by_powers(m, coefficients[1 << which :])

    @m.function
    def add(powers: Any) -> Any:
        return low(powers) + powers[which] * high(powers)

    return add
