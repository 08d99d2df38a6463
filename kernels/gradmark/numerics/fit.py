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

# (degree of the quotient in r, degree of the tail in u), for each dtype. The degrees are the smallest whose
# truncation error (printed beside the result) lies below a quarter of the dtype's rounding unit.
DEGREES = {"float32": (5, 10), "float64": (10, 23)}
TAIL_SHIFT = 4
TAIL_LIMIT = {"float32": 15, "float64": 40}


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
        half_log2 = mpmath.log(2) / 2
        limit = mpmath.mpf(TAIL_LIMIT[dtype])
        u_limit = (limit - TAIL_SHIFT) / (limit + TAIL_SHIFT)
        exp_degree, tail_degree = DEGREES[dtype]
        # The interval of r is a little wider than ln(2) / 2: the reduction itself rounds.
        edge = half_log2 * (1 + mpmath.mpf(2) ** -10)
        return {
            "EXP_QUOTIENT": interpolate(exp_quotient, -edge, edge, exp_degree),
            "SCALED_TAIL": interpolate(scaled_tail, mpmath.mpf(-1), u_limit, tail_degree),
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
    ]
    for name in ("EXP_QUOTIENT", "SCALED_TAIL"):
        lines += ["", f"{name}: dict[str, tuple[float, ...]] = {{"]
        for dtype in DEGREES:
            numbers = [f"        {rounded(c, dtype)!r}," for c in fit(dtype)[name]]
            lines += [f'    "{dtype}": (', *numbers, "    ),"]
        lines.append("}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(module_source(), end="")  # noqa: T201
