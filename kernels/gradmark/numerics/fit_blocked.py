"""Finds the coefficients of `coefficients_blocked.py`: `python -m gradmark.numerics.fit_blocked` prints that module.

The NumPy backend evaluates the tails of the normal distribution for float32 in float64. Their polynomials, those of
`fit.py`, need as many terms there as float32 asks for, but coefficients with the digits of float64. For float64, t Q(t)
takes a function that varies less than that of `fit.py`, as nothing there multiplies and adds with one rounding; and
x - tanh(x) a continued fraction. The constants of gelu's tanh form are kept as sums of two floats.
"""

from __future__ import annotations

import struct
from typing import Any

import mpmath

from gradmark.numerics.fit import TAIL_LIMIT, TAIL_SHIFT, interpolate, scaled_tail, tail_slope

# The truncation errors are 2^-28.4 and 2^-30.3, relative to the function: less than a tenth of a ULP of float32.
TAILS = {"SCALED_TAIL": (scaled_tail, 10), "TAIL_SLOPE_OF_SINGLE": (tail_slope, 9)}

# The truncation error is 2^-56.6.
MILLS_DEGREE = 23
MILLS_SHIFT = 0.8125

# The truncation error is 2^-52, relative to G; v G is at most a twelfth of what it is added to.
LAMBERT_DEGREE = 9
LAMBERT_LIMIT = 1.5


def scaled_mills(u: Any) -> Any:
    """(t + b) exp(t²/2) Q(t) with t = a (1 + u) / (1 - u): between 0.39 and 0.47, where `scaled_tail` falls from 2."""
    t = TAIL_SHIFT * (1 + u) / (1 - u)
    return scaled_tail(u) * (t + mpmath.mpf(MILLS_SHIFT)) / (t + TAIL_SHIFT)


def lambert(v: Any) -> Any:
    """G(v) = 1 / (5 + v / (7 + v / (9 + ...))), with v = x² that of x v / (x - tanh x) = 3 + v + v G(v)."""
    tail = mpmath.mpf(0)
    for odd in range(101, 3, -2):
        tail = 1 / (odd + v * tail)
    return tail


def module_source() -> str:
    """The text of `coefficients_blocked.py`."""
    lines = [
        '"""Coefficients of the NumPy backend by rising powers, all in float64; the first two serve float32.',
        "",
        "`python -m gradmark.numerics.fit_blocked` prints this file.",
        '"""',
        "",
        "from __future__ import annotations",
    ]
    with mpmath.workdps(60):
        limit = mpmath.mpf(TAIL_LIMIT["float32"])
        edge = (limit - TAIL_SHIFT) / (limit + TAIL_SHIFT)
        for name, (function, degree) in TAILS.items():
            found = interpolate(function, mpmath.mpf(-1), edge, degree)
            lines += ["", f"{name} = (", *(f"    {float(c)!r}," for c in found), ")"]
        far = mpmath.mpf(TAIL_LIMIT["float64"])
        found = interpolate(scaled_mills, mpmath.mpf(-1), (far - TAIL_SHIFT) / (far + TAIL_SHIFT), MILLS_DEGREE)
        lines += ["", f"MILLS_SHIFT = {MILLS_SHIFT}", "MILLS = (", *(f"    {float(c)!r}," for c in found), ")"]
        lines += [f"MILLS_REST = {_rest(found[0], float(found[0]))!r}"]
        square = mpmath.mpf(LAMBERT_LIMIT) ** 2
        found = interpolate(lambert, mpmath.mpf(0), square, LAMBERT_DEGREE)
        lines += ["", "LAMBERT = (", *(f"    {float(c)!r}," for c in found), ")"]
        lines += ["", *_gelu_tanh_constants()]
    return "\n".join(lines) + "\n"


def _gelu_tanh_constants() -> list[str]:
    """√(8/π) and 0.044715 √(8/π) as sums of two floats; the latter also with a float32 as its first part."""
    linear = mpmath.sqrt(8 / mpmath.pi)
    cubic = linear * mpmath.mpf("0.044715")
    single = struct.unpack("f", struct.pack("f", float(cubic)))[0]
    return [
        f"LINEAR = ({float(linear)!r}, {_rest(linear, float(linear))!r})",
        f"CUBIC = ({float(cubic)!r}, {_rest(cubic, float(cubic))!r})",
        f"CUBIC_PARTS = ({single!r}, {_rest(cubic, single)!r})",
    ]


def _rest(value: Any, first: float) -> float:
    return float(value - mpmath.mpf(first))


if __name__ == "__main__":
    print(module_source(), end="")  # noqa: T201
