"""The upper tail of the normal distribution on blocks, for gelu: Q, and exp(-t²/2) with the digits of t² kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradmark.numerics.chains import horner
from gradmark.numerics.coefficients import TAIL_LIMIT, TAIL_SHIFT
from gradmark.numerics.coefficients_blocked import MILLS, MILLS_REST, MILLS_SHIFT
from gradmark.numerics.doubled import exp_parts, leading_bits, scaled


def tail_of(x: Any, work: Any) -> Any:
    """t Q(t), t = |x|: q V exp(-t²/2) with q = t / (t + b), V = (t + b) Q(t) exp(t²/2), which varies by 20 % only.

    q and V are kept as sums of two floats, so that what rounds is the last sum, and p and V a little.
    """
    t = work.double()
    np.minimum(np.abs(x, out=t), work.constant(TAIL_LIMIT["float64"], t.dtype), out=t)
    p, scale = gaussian(t, *leading_bits(t, work), work)
    q_high, q_low = tail_fraction(t, work)
    value, value_low = tail_polynomial(t, work)
    v_high, v_low = leading_bits(value, work)
    np.add(v_low, value_low, out=v_low)
    # (q_high + q_low) (v_high + v_low) = main + small, the first exact.
    main, small = value_low, v_low
    np.multiply(q_high, v_high, out=main)
    np.multiply(q_high, v_low, out=small)
    np.multiply(q_low, value, out=value)
    np.add(small, value, out=small)
    np.add(main, small, out=value)
    np.multiply(value, p, out=value)
    np.add(small, value, out=small)
    np.add(main, small, out=main)
    return scaled(main, scale)


def tail_fraction(t: Any, work: Any) -> tuple[Any, Any]:
    """t / (t + b) as a sum of two floats, the first with 24 bits, so that its product with those of t + b is exact."""
    d, q, less, back = (work.double() for _ in range(4))
    np.add(t, MILLS_SHIFT, out=d)
    np.divide(t, d, out=q)
    # What the sum d has too much, as in `two_sum`.
    np.subtract(d, t, out=back)
    np.subtract(back, MILLS_SHIFT, out=less)
    np.subtract(d, back, out=back)
    np.subtract(back, t, out=back)
    np.add(less, back, out=less)
    high, rest = leading_bits(q, work)
    d_high, d_low = leading_bits(d, work)
    np.subtract(d_low, less, out=d_low)
    np.multiply(high, d_high, out=d_high)
    np.subtract(t, d_high, out=rest)
    np.multiply(high, d_low, out=d_low)
    np.subtract(rest, d_low, out=rest)
    np.divide(rest, d, out=rest)
    return high, rest


def tail_polynomial(t: Any, work: Any) -> tuple[Any, Any]:
    """V as a sum of two floats: what the last addition and the first coefficient round away is kept."""
    first, *higher = MILLS
    d, u, h, value = (work.double() for _ in range(4))
    tail_variable(t, u, d, h)
    horner(higher, u, h)
    np.multiply(h, u, out=h)
    np.add(h, first, out=value)
    np.subtract(value, first, out=d)
    np.subtract(h, d, out=h)
    np.add(h, MILLS_REST, out=h)
    return value, h


def tail_variable(t: Any, u: Any, d: Any, less: Any) -> None:
    """u = (t - a) / (t + a) = 2 t / (t + a) - 1; `d` and `less` are temporaries."""
    np.add(t, TAIL_SHIFT, out=d)
    np.divide(t, d, out=u)
    # What d lacks.
    np.subtract(d, TAIL_SHIFT, out=less)
    np.subtract(t, less, out=less)
    np.divide(less, d, out=less)
    np.multiply(less, u, out=less)
    np.subtract(u, less, out=u)
    np.add(u, u, out=u)
    np.subtract(u, 1.0, out=u)


def gaussian(t: Any, high: Any, low: Any, work: Any) -> tuple[Any, Any]:
    """p and s with exp(-t²/2) = (1 + p) s 2^-200, as in `exp_parts`; t = high + low, the square of `high` is exact."""
    square, z, r = work.double(), work.double(), work.double()
    np.multiply(high, high, out=square)
    np.add(t, high, out=r)
    np.multiply(r, low, out=r)
    np.add(square, r, out=z)
    # What the sum lacks.
    np.subtract(z, square, out=square)
    np.subtract(r, square, out=square)
    np.multiply(z, -0.5, out=z)
    np.multiply(square, -0.5, out=square)
    return exp_parts(z, square, work)


def gaussian_of_single(x: Any, t: Any, g: Any, work: Any) -> None:
    """t = |x|, at most where the tail of float32 ends, and g = exp(-t²/2), in float64."""
    size = work.single()
    np.minimum(np.abs(x, out=size), work.constant(TAIL_LIMIT["float32"], size.dtype), out=size)
    np.copyto(t, size)
    np.multiply(t, t, out=g)
    np.multiply(g, -0.5, out=g)
    np.exp(g, out=g)


def horner_of_single(coefficients: Sequence[float], u: Any, out: Any, work: Any) -> None:
    """The polynomial as exact as a float32 result asks for: all but the first two terms, the largest, in float32."""
    first, second, *higher = coefficients
    u_single, rest = work.single(), work.single()
    np.copyto(u_single, u, casting="same_kind")
    horner(higher, u_single, rest)
    np.copyto(out, rest)
    np.multiply(out, u, out=out)
    np.add(out, second, out=out)
    np.multiply(out, u, out=out)
    np.add(out, first, out=out)
