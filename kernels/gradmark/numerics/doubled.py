"""Sums of two floats on blocks: products, quotients and exponentials that keep what float64 rounds away.

There is no wider format for float64, and NumPy has no fused multiply-add. So factors are split into halves whose
products are exact (Dekker 1971, Veltkamp 1968), and what a sum lacks is found by more sums (Knuth). `work`
(`numerics.blocked`) has the temporaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradmark.numerics.chains import bits


def two_sum(a: Any, b: Any, out: Any, temporary: Any) -> Any:
    """The sum of a and b; what it lacks goes into a, and b is overwritten (Knuth, TAOCP 2, 4.2.2)."""
    np.add(a, b, out=out)
    np.subtract(out, a, out=temporary)
    np.subtract(b, temporary, out=b)
    np.subtract(out, temporary, out=temporary)
    np.subtract(a, temporary, out=a)
    np.add(a, b, out=a)
    return out


def product_and_rest(x: Any, factor: Any, parts: tuple[float, float] | None, work: Any) -> tuple[Any, Any]:
    """x · factor as a sum of two floats; the second is None where the first is exact. `parts` add up to the factor.

    exp turns an absolute error of its argument into a relative one, so products in its argument keep their rest. The
    product of two halves is exact.
    """
    z = work.double()
    np.multiply(x, factor, out=z)
    if isinstance(factor, np.ndarray):
        first, second = halved_bits(factor, work)
    elif parts is None and is_power_of_two(factor):
        return z, None
    else:
        first, second = parts or split(float(factor))
    high, low = halved_bits(x, work)
    rest = work.double()
    np.multiply(high, first, out=rest)
    np.subtract(rest, z, out=rest)
    np.multiply(high, second, out=high)
    np.add(rest, high, out=rest)
    np.multiply(low, factor, out=low)
    np.add(rest, low, out=rest)
    if not (np.minimum.reduce(z) > -1e4 and np.maximum.reduce(z) < 1e4):
        # Beyond, the rest has no say, and is NaN where the parts of x overflow.
        rest[~(np.abs(z) < 1e4) | ~np.isfinite(rest)] = 0.0
    return z, rest


def quotient_and_rest(x: Any, divisor: float, work: Any) -> tuple[Any, Any]:
    """x / divisor, x <= 0, as a sum of two floats; the second is None where the first is exact."""
    z = work.double()
    np.divide(x, divisor, out=z)
    if is_power_of_two(divisor):
        return z, None
    # Beyond, exp(z) is 0 and the rest has no say.
    np.maximum(z, work.constant(-1e4, z.dtype), out=z)
    first, second = split(divisor)
    high, low = leading_bits(z, work)
    rest = work.double()
    np.multiply(high, first, out=rest)
    np.subtract(x, rest, out=rest)
    np.multiply(high, second, out=high)
    np.subtract(rest, high, out=rest)
    np.multiply(low, divisor, out=low)
    np.subtract(rest, low, out=rest)
    np.divide(rest, divisor, out=rest)
    # z is at most -1e4 where x is not to be trusted.
    np.maximum(rest, work.constant(-1.0, z.dtype), out=rest)
    return z, rest


def divide_pair(y: Any, low: Any, divisor: float, work: Any) -> None:
    """(y + low) / divisor in place: what the quotient q of y rounds away is exact by halves."""
    q = work.double()
    np.divide(y, divisor, out=q)
    first, second = split(divisor)
    high, rest = halved_bits(q, work)
    product = work.double()
    np.multiply(high, first, out=product)
    np.subtract(y, product, out=y)
    np.multiply(high, second, out=high)
    np.subtract(y, high, out=y)
    np.multiply(rest, divisor, out=rest)
    np.subtract(y, rest, out=y)
    np.add(y, low, out=y)
    np.divide(y, divisor, out=y)
    np.add(q, y, out=y)


def square_and_rest(x: Any, v: Any, v_low: Any, work: Any) -> None:
    """x² as v + v_low, with |x| < 1e150 (Dekker 1971)."""
    high, low = halved_bits(x, work)
    np.multiply(x, x, out=v)
    np.add(x, high, out=v_low)
    np.multiply(v_low, low, out=v_low)
    np.multiply(high, high, out=high)
    np.subtract(high, v, out=high)
    np.add(v_low, high, out=v_low)


def exp_pair(z: Any, rest: Any, work: Any) -> tuple[Any, Any]:
    """exp(z + rest) as a sum of two floats, for z from -800 to 0, which is overwritten."""
    p, scale = exp_parts(z, rest, work)
    e = work.double()
    np.add(p, 1.0, out=e)
    # 1 has more bits than p.
    low = np.subtract(e, 1.0, out=work.double())
    np.subtract(p, low, out=low)
    return scaled(e, scale), scaled(low, scale)


def exp_parts(z: Any, rest: Any, work: Any) -> tuple[Any, Any]:
    """p and s with exp(z + rest) = (1 + p) s 2^-200: s a power of two, p between -0.3 and 0.42, for z from -800 to 0.

    exp(z) = 2^k exp(r), and exp(r) - 1 is more exact than NumPy's exp. z is overwritten; the rest may be None.
    """
    k, r, scale = work.double(), work.double(), bits(work.double())
    np.multiply(z, INVERSE_LN2, out=k)
    np.add(k, _INTEGER, out=k)
    np.add(bits(k), 1023 + 200, out=scale)
    np.left_shift(scale, 52, out=scale)
    np.subtract(k, _INTEGER, out=k)
    np.multiply(k, LN2_HIGH, out=r)
    np.subtract(z, r, out=z)
    np.multiply(k, LN2_LOW, out=k)
    if rest is not None:
        np.subtract(k, rest, out=k)
    np.subtract(z, k, out=z)
    return np.expm1(z, out=z), scale.view(np.float64)


def scaled(y: Any, scale: Any) -> Any:
    """y times scale 2^-200, in two steps, as the whole power of two may be subnormal."""
    np.multiply(y, scale, out=y)
    return np.multiply(y, 2.0**-200, out=y)


def excess_over_two(e: Any, d: Any, out: Any, temporary: Any) -> None:
    """What the sum d = e + 2 has too much, as in `two_sum`."""
    np.subtract(d, e, out=temporary)
    np.subtract(temporary, 2.0, out=out)
    np.subtract(d, temporary, out=temporary)
    np.subtract(temporary, e, out=temporary)
    np.add(out, temporary, out=out)


def halved_bits(x: Any, work: Any) -> tuple[Any, Any]:
    """High and low with x = high + low exactly, 26 bits each, for float64 below 1e300: Veltkamp's splitting."""
    high, low = work.double(), work.double()
    np.multiply(x, _SPLITTER, out=high)
    np.subtract(high, x, out=low)
    np.subtract(high, low, out=high)
    np.subtract(x, high, out=low)
    return high, low


def leading_bits(x: Any, work: Any) -> tuple[Any, Any]:
    """The same with 24 bits and the rest, for numbers well within the range of float32: an operation less."""
    rounded, high, low = work.single(), work.double(), work.double()
    np.copyto(rounded, x, casting="same_kind")
    np.copyto(high, rounded)
    np.subtract(x, high, out=low)
    return high, low


def split(number: float) -> tuple[float, float]:
    """`halved_bits` of one number."""
    scaled = number * _SPLITTER
    high = scaled - (scaled - number)
    return high, number - high


def is_power_of_two(number: float) -> bool:
    """Whether a product with the number is exact."""
    return abs(np.frexp(number)[0]) == 0.5


_SPLITTER = 2.0**27 + 1.0
INVERSE_LN2 = 1.4426950408889634
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
"""The high part has so few bits that its product with any exponent is exact."""
_INTEGER = 1.5 * 2.0**52
"""Added to a number, it leaves the nearest integer in the low bits."""
FARTHEST = 760.0
"""From here on x exp(-x) is 0."""
