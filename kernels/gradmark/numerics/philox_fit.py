"""Finds the coefficients of `philox_coefficients.py`: `python -m gradmark.numerics.philox_fit` prints that module."""

from __future__ import annotations

from typing import Any

import mpmath

from gradmark.numerics.fit import atanh_quotient, interpolate, rounded

# The smallest degrees whose truncation error lies below a quarter of the dtype's rounding unit, relative to the
# function that the polynomial serves.
DEGREES: dict[str, dict[str, int]] = {
    "float32": {"ATANH_REST": 2, "SINE": 3, "COSINE": 4, "QUANTILE_CENTRE": 9, "QUANTILE_TAIL": 12},
    "float64": {"ATANH_REST": 6, "SINE": 6, "COSINE": 7},
}
CENTRE_SHIFT, CENTRE_LIMIT, TAIL_SHIFT, TAIL_LIMIT = 2.5, 5.0, 3.5, 23.5
"""Of w = -ln(1 - x²), and of its root in the tail: the middles of the intervals; where the tail's polynomial takes
over, and where it ends (a probability of 1.6e-11)."""


def atanh_rest(z: Any) -> Any:
    """2 (atanh(s) - s) / s³ with z = s²."""
    return 2 * atanh_quotient(z)


def sine(z: Any) -> Any:
    """sin(π t / 2) / t with z = t²."""
    t = mpmath.sqrt(z)
    return mpmath.sin(mpmath.pi * t / 2) / t if t else mpmath.pi / 2


def cosine(z: Any) -> Any:
    """cos(π t / 2) with z = t²."""
    return mpmath.cos(mpmath.pi * mpmath.sqrt(z) / 2)


def quantile_ratio(w: Any) -> Any:
    """√2 erfinv(x) / x with 1 - x² = exp(-w), the quantile of N(0, 1) at (1 + x) / 2 over x.

    The variable, and √w in the tail, are those of Giles, GPU Computing Gems Jade, 2011, chapter 10.
    """
    x = mpmath.sqrt(-mpmath.expm1(-w))
    return mpmath.sqrt(2) * mpmath.erfinv(x) / x if x else mpmath.sqrt(mpmath.pi / 2)


def fit(dtype: str) -> dict[str, list[Any]]:
    """The coefficients of one dtype, unrounded, by rising powers."""
    with mpmath.workdps(60):
        zero, quarter = mpmath.mpf(0), mpmath.mpf(1) / 4
        # s of a mantissa in [√½, √2), with room for the rounding of √½.
        s = (mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1) * (1 + mpmath.mpf(2) ** -10)
        intervals = {
            "ATANH_REST": (atanh_rest, zero, s * s),
            "SINE": (sine, zero, quarter),
            "COSINE": (cosine, zero, quarter),
            "QUANTILE_CENTRE": (lambda w: quantile_ratio(w + CENTRE_SHIFT), -CENTRE_SHIFT, CENTRE_LIMIT - CENTRE_SHIFT),
            "QUANTILE_TAIL": (
                lambda r: quantile_ratio((r + TAIL_SHIFT) ** 2),
                mpmath.sqrt(CENTRE_LIMIT) - TAIL_SHIFT,
                mpmath.sqrt(TAIL_LIMIT) - TAIL_SHIFT,
            ),
        }
        return {name: interpolate(*intervals[name], degree) for name, degree in DEGREES[dtype].items()}


# Wichura, Algorithm AS 241, Applied Statistics 37, 1988, PPND16: the quantile of N(0, 1) to 1e-16 as ratios of
# polynomials, by falling powers as printed there. With q = p - 1/2: q a(r)/b(r), r = 0.180625 - q², for |q| <= 0.425;
# else with s = √(-ln(min(p, 1 - p))): c(r)/d(r), r = s - 1.6, for s <= 5; e(r)/f(r), r = s - 5, beyond.
PPND16 = (
    (
        "2509.0809287301226727 33430.575583588128105 67265.770927008700853 45921.953931549871457"
        " 13731.693765509461125 1971.5909503065514427 133.14166789178437745 3.387132872796366608",
        "5226.495278852545925 28729.085735721942674 39307.89580009271061 21213.794301586595867"
        " 5394.1960214247511077 687.1870074920579083 42.313330701600911252 1",
    ),
    (
        "7.7454501427834140764e-4 .0227238449892691845833 .24178072517745061177 1.27045825245236838258"
        " 3.64784832476320460504 5.7694972214606914055 4.6303378461565452959 1.42343711074968357734",
        "1.05075007164441684324e-9 5.475938084995344946e-4 .0151986665636164571966 .14810397642748007459"
        " .68976733498510000455 1.6763848301838038494 2.05319162663775882187 1",
    ),
    (
        "2.01033439929228813265e-7 2.71155556874348757815e-5 .0012426609473880784386 .026532189526576123093"
        " .29656057182850489123 1.7848265399172913358 5.4637849111641143699 6.6579046435011037772",
        "2.04426310338993978564e-15 1.4215117583164458887e-7 1.8463183175100546818e-5 7.868691311456132591e-4"
        " .0148753612908506148525 .13692988092273580531 .59983220655588793769 1",
    ),
)


def module_source() -> str:
    """The text of `philox_coefficients.py`."""
    lines = [
        '"""Polynomial coefficients by rising powers; `python -m gradmark.numerics.philox_fit` prints this file."""',
        "",
        "from __future__ import annotations",
        "",
        f"CENTRE_SHIFT, CENTRE_LIMIT, TAIL_SHIFT = {CENTRE_SHIFT}, {CENTRE_LIMIT}, {TAIL_SHIFT}",
    ]
    fits = {dtype: fit(dtype) for dtype in DEGREES}
    for name in DEGREES["float32"]:
        lines += ["", f"{name}: dict[str, tuple[float, ...]] = {{"]
        for dtype, found in fits.items():
            if name not in found:
                continue
            numbers = [f"        {rounded(c, dtype)!r}," for c in found[name]]
            lines += [f'    "{dtype}": (', *numbers, "    ),"]
        lines.append("}")
    for k, ratio in enumerate(PPND16):
        lines += ["", f"QUANTILE_{k}: tuple[tuple[float, ...], tuple[float, ...]] = ("]
        for powers in ratio:
            lines += ["    (", *(f"        {float(c)!r}," for c in reversed(powers.split())), "    ),"]
        lines.append(")")
    lines += ['"""Numerators and denominators of the normal quantile: Wichura, Algorithm AS 241, 1988."""']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(module_source(), end="")  # noqa: T201
