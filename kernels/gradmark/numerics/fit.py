"""Finds the polynomial coefficients of `coefficients.py`: `python -m gradmark.numerics.fit` prints that module.

Each polynomial interpolates its function at Chebyshev nodes in 60 digits, which is within a small factor of the
minimax error, and is then written as a sum of powers. Reference: L. N. Trefethen, Approximation Theory and
Approximation Practice, SIAM 2013, chapters 2 to 4.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import mpmath

# Degrees of the polynomials, by dtype. They are the smallest whose truncation error lies below a quarter of the
# dtype's rounding unit, relative to the function that the polynomial serves; SCALED_TAIL of float32 has one more, as
# with 10 the worst of all 2³² values of gelu was off by 2.01 ULP, with 11 by 1.97.
DEGREES = {
    "float32": {"EXP_QUOTIENT": 4, "SCALED_TAIL": 11, "TAIL_SLOPE": 8, "ATANH_QUOTIENT": 3, "TANHSHRINK": 12},
    "float64": {"EXP_QUOTIENT": 9, "SCALED_TAIL": 23, "TAIL_SLOPE": 21, "ATANH_QUOTIENT": 9, "TANHSHRINK": 26},
}
TAIL_SHIFT = 4
TAIL_LIMIT = {"float32": 15, "float64": 40}
TANHSHRINK_LIMIT = 2


def exp_quotient(r: Any) -> Any:
    """(exp(r) - 1 - r) / r²: what is left of exp on |r| <= ln(2) / 2 after its two exact terms."""
    if abs(r) < mpmath.mpf("1e-8"):
        return mpmath.mpf(1) / 2 + r / 6 + r * r / 24
    return (mpmath.expm1(r) - r) / (r * r)


def scaled_tail(u: Any) -> Any:
    """(t + a) exp(t²/2) Q(t) with t = a (1 + u) / (1 - u): smooth on [-1, 1], Q the upper tail of N(0, 1).

    The map from t to u and the factor t + a are those that Shepherd and Laframboise, Math. Comp. 36, 1981, use for
    (1 + 2x) exp(x²) erfc(x).
    """
    a = mpmath.mpf(TAIL_SHIFT)
    t = a * (1 + u) / (1 - u)
    return (t + a) * mpmath.exp(t * t / 2) * mpmath.erfc(t / mpmath.sqrt(2)) / 2


def tail_zero() -> Any:
    """The t at which Q(t) - t φ(t) is 0."""
    return mpmath.findroot(lambda t: _mills(t) - t / mpmath.sqrt(2 * mpmath.pi), mpmath.mpf("0.7518"))


def tail_slope(u: Any) -> Any:
    """(t φ(t) - Q(t)) exp(t²/2) / (t - t₀), with t = a (1 + u) / (1 - u) as in `scaled_tail`."""
    a = mpmath.mpf(TAIL_SHIFT)
    t = a * (1 + u) / (1 - u)
    return (t / mpmath.sqrt(2 * mpmath.pi) - _mills(t)) / (t - tail_zero())


def _mills(t: Any) -> Any:
    return mpmath.exp(t * t / 2) * mpmath.erfc(t / mpmath.sqrt(2)) / 2


def atanh_quotient(v: Any) -> Any:
    """(atanh(s) - s) / s³ with v = s²."""
    if v < mpmath.mpf("1e-12"):
        return mpmath.mpf(1) / 3 + v / 5 + v * v / 7
    s = mpmath.sqrt(v)
    return (mpmath.atanh(s) - s) / (v * s)


def tanhshrink(s: Any) -> Any:
    """(x - tanh(x)) / x³ with x² = 2 (1 + s)."""
    v = (1 + s) * mpmath.mpf(TANHSHRINK_LIMIT) ** 2 / 2
    x = mpmath.sqrt(v)
    return (x - mpmath.tanh(x)) / (v * x)


def interpolate(function: Callable[[Any], Any], low: Any, high: Any, degree: int) -> list[Any]:
    """Coefficients, by rising powers, of the interpolant at the Chebyshev nodes of [low, high]."""
    count = degree + 1
    angles = [mpmath.pi * (2 * k + 1) / (2 * count) for k in range(count)]
    values = [function((high - low) / 2 * mpmath.cos(angle) + (high + low) / 2) for angle in angles]
    series = []
    for j in range(count):
        total = mpmath.fsum(v * mpmath.cos(j * angle) for v, angle in zip(values, angles, strict=True))
        series.append((1 if j == 0 else 2) * total / count)
    return _powers(series, 2 / (high - low), -(high + low) / (high - low))


def _powers(series: list[Any], slope: Any, shift: Any) -> list[Any]:
    """Σ c_j T_j(slope x + shift) as powers of x, by Clenshaw's recurrence on polynomials."""
    current: list[Any] = [mpmath.mpf(0)]
    previous: list[Any] = [mpmath.mpf(0)]
    for c in reversed(series[1:]):
        current, previous = _combine(current, previous, 2 * slope, 2 * shift, c), current
    powers = _combine(current, previous, slope, shift, series[0])
    return powers[: len(series)]


def _combine(current: list[Any], previous: list[Any], slope: Any, shift: Any, constant: Any) -> list[Any]:
    result = [mpmath.mpf(0)] * (max(len(current), len(previous)) + 1)
    for power, c in enumerate(current):
        result[power] += shift * c
        result[power + 1] += slope * c
    for power, c in enumerate(previous):
        result[power] -= c
    result[0] += constant
    return result


def fit(dtype: str) -> dict[str, list[Any]]:
    """The coefficients of one dtype, unrounded, by rising powers."""
    with mpmath.workdps(60):
        limit = mpmath.mpf(TAIL_LIMIT[dtype])
        u_limit = (limit - TAIL_SHIFT) / (limit + TAIL_SHIFT)
        # The interval of r is a little wider than ln(2) / 2: the reduction itself rounds.
        edge = mpmath.log(2) / 2 * (1 + mpmath.mpf(2) ** -10)
        one = mpmath.mpf(1)
        intervals = {
            "EXP_QUOTIENT": (exp_quotient, -edge, edge),
            "SCALED_TAIL": (scaled_tail, -one, u_limit),
            "TAIL_SLOPE": (tail_slope, -one, u_limit),
            # log(1 + e) with 0 <= e <= 1 has s = e / (2 + e) <= 1/3; log has |s| < 0.18.
            "ATANH_QUOTIENT": (atanh_quotient, mpmath.mpf(0), one / 9),
            "TANHSHRINK": (tanhshrink, -one, one),
        }
        return {
            name: interpolate(function, low, high, DEGREES[dtype][name])
            for name, (function, low, high) in intervals.items()
        }


def rounded(value: Any, dtype: str) -> float:
    """`value` rounded to the dtype, as a Python float."""
    number = float(value)
    return struct.unpack("f", struct.pack("f", number))[0] if dtype == "float32" else number


def module_source() -> str:
    """The text of `coefficients.py`."""
    lines = [
        '"""Polynomial coefficients by rising powers; `python -m gradmark.numerics.fit` prints this file."""',
        "",
        "from __future__ import annotations",
        "",
        f"TAIL_SHIFT = {float(TAIL_SHIFT)}",
        f"TAIL_LIMIT = {{{', '.join(f'{dtype!r}: {float(t)}' for dtype, t in TAIL_LIMIT.items())}}}".replace("'", '"'),
        f"TAIL_ZERO = {_zero_in_two_parts()}",
    ]
    fits = {dtype: fit(dtype) for dtype in DEGREES}
    for name in DEGREES["float32"]:
        lines += ["", f"{name}: dict[str, tuple[float, ...]] = {{"]
        for dtype, found in fits.items():
            numbers = [f"        {rounded(c, dtype)!r}," for c in found[name]]
            lines += [f'    "{dtype}": (', *numbers, "    ),"]
        lines.append("}")
    lines += ["", "SCALED_TAIL_LOW: dict[str, tuple[float, float]] = {"]
    for dtype, found in fits.items():
        first, second = (rounded(c - mpmath.mpf(rounded(c, dtype)), dtype) for c in found["SCALED_TAIL"][:2])
        lines.append(f'    "{dtype}": ({first!r}, {second!r}),')
    lines += ["}", '"""What rounding has taken from the first two coefficients of SCALED_TAIL."""']
    return "\n".join(lines) + "\n"


def _zero_in_two_parts() -> tuple[float, float]:
    with mpmath.workdps(60):
        zero = tail_zero()
        return float(zero), float(zero - mpmath.mpf(float(zero)))


if __name__ == "__main__":
    print(module_source(), end="")  # noqa: T201
