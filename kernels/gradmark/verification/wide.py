"""The catalog's formulas over whole arrays, in a format wider than the one that is judged.

`gradmark.reference` evaluates a formula in mpmath, at some 50 µs a number: too slow for 2³² of them. Here each formula
is NumPy, in float64 to judge float32 and in x87's 64-bit mantissa to judge float64, rearranged so that nothing
cancels. No code is shared with the backends. A test compares every entry with `gradmark.reference` (to 2⁻⁵⁸ of the
value in the extended format), and so does each sweep, on points of its own.

A reference is a function of the arithmetic `m`, which gives the pair (value, slope); both take x and the parameters
in the wide format. Infinite x need no care there: `evaluate` takes the limit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np

from gradmark.catalog import FORWARD, Activation, Pass
from gradmark.reference import function_of

Function = Callable[..., Any]
Reference = Callable[["Wide"], tuple[Function, Function]]
Sum = tuple[Any, Any]
"""A number as high + low, the low part below an ULP of the high one; None stands for a low part of no importance."""

EXTENDED_BITS = 63
"""Stored bits of the mantissa that the reference of float64 needs: x87's long double, and anything wider."""


class Wide:
    """Arithmetic of the wide format: float64 for results in float32, long double for results in float64.

    In float64 products and constants have 29 bits more than a float32 result shows, so their low parts are None. The
    extended format has only 11 bits more, and exp turns an absolute error of its argument into a relative one.
    """

    def __init__(self, dtype: Any) -> None:
        self.real = np.dtype(dtype).type
        self.extended = bool(np.finfo(self.real).nmant > np.finfo(np.float64).nmant)

    def constant(self, expression: str) -> Sum:
        """A constant, written as in the catalog's formulas."""
        with mpmath.workdps(60):
            exact = function_of(expression, ())()
            high = self.rounded(exact)
            return high, self.rounded(exact - exactly(high)) if self.extended else None

    def rounded(self, number: Any) -> Any:
        """An mpmath number in the format."""
        high = float(number)
        return self.real(high) + self.real(float(number - mpmath.mpf(high)))

    def times(self, a: Any, b: Any) -> Sum:
        """A b, in the extended format with its rounding error (Dekker, Numer. Math. 18, 1971)."""
        product = a * b
        if not self.extended:
            return product, None
        a_high, a_low = self._split(a)
        b_high, b_low = self._split(b)
        return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low

    def over(self, a: Any, b: Any) -> Sum:
        """A / b, in the extended format with its rounding error."""
        quotient = a / b
        if not self.extended:
            return quotient, None
        product, rest = self.times(quotient, b)
        return quotient, ((a - product) - rest) / b

    def scaled(self, constant: Sum, x: Any) -> Sum:
        """The product of a constant and x."""
        high, low = self.times(constant[0], x)
        return high, None if low is None else low + constant[1] * x

    def _split(self, a: Any) -> tuple[Any, Any]:
        # Veltkamp: halves of 32 bits, whose products are exact.
        factor = self.real(2.0**32 + 1) * a
        high = factor - (factor - a)
        return high, a - high


def exactly(number: Any) -> Any:
    """A finite number of the wide format as an mpmath one."""
    mantissa, exponent = np.frexp(number)
    high = float(mantissa)
    return mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(float(mantissa - high)), int(exponent))


@functools.cache
def wide(dtype: str) -> Wide:
    """The arithmetic in which results in `dtype` are judged.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".

    Raises
    ------
    ValueError
        Another dtype.
    RuntimeError
        float64, where the platform's long double is no wider.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"no wider format to judge {dtype!r} in; accepted: float32, float64")
    if dtype == "float32":
        return Wide(np.float64)
    bits = np.finfo(np.longdouble).nmant
    if bits < EXTENDED_BITS:
        raise RuntimeError(f"float64 is judged in a long double of 64 bits; this platform's has {bits + 1}")
    return Wide(np.longdouble)


def evaluate(row: Activation, operation_pass: Pass, x: Any, parameters: Sequence[float]) -> Any:
    """f(x), or for the backward pass f'(x), in the wide format of x's dtype; the limit for an infinite x.

    Parameters
    ----------
    row : Activation
    operation_pass : str
        "forward" or "backward".
    x : numpy.ndarray
        float32 or float64.
    parameters : sequence of float
        One for each of the row's parameters, as the dtype represents it.

    Raises
    ------
    LookupError
        No reference is written for this row.
    """
    if row.name not in REFERENCES:
        raise LookupError(f"{row.name} has no wide reference; add one to gradmark.verification.wide.REFERENCES")
    m = wide(x.dtype.name)
    function = _function(row.name, operation_pass, m)
    given = [m.real(p) for p in parameters]
    with np.errstate(all="ignore"):
        result = function(x.astype(m.real), *given)
        infinite = np.isinf(x)
        if infinite.any():
            for sign in (-1.0, 1.0):
                result[x == sign * np.inf] = _limit(function, sign, given, m)
    return result


@functools.cache
def _function(name: str, operation_pass: Pass, m: Wide) -> Function:
    value, slope = REFERENCES[name](m)
    return value if operation_pass == FORWARD else slope


def _limit(function: Function, sign: float, parameters: Sequence[Any], m: Wide) -> Any:
    """The limit at infinity: what grows from 2¹⁰⁰ to 2¹⁰¹ goes on to do so, and what is tiny there is 0."""
    near, far = function(np.array([sign * 2.0**100, sign * 2.0**101], dtype=m.real), *parameters)
    if abs(far) < 2.0**-50:
        return np.copysign(m.real(0), far)
    return np.copysign(m.real(np.inf), far) if abs(far) > abs(near) else far


def _exp(argument: Sum) -> Any:
    """Exp of a sum; where |high| is so large that low is no longer small, the result is 0 or inf anyway."""
    high, low = argument
    return np.exp(high) if low is None else np.exp(high) * (1 + np.clip(low, -0.5, 0.5))


def _negative(argument: Sum) -> Sum:
    high, low = argument
    return -high, None if low is None else -low


def _towards_zero(argument: Sum) -> Sum:
    """-|z|, as a sum."""
    high, low = argument
    return -np.abs(high), None if low is None else np.where(high < 0, low, -low)


# --- mills ------------------------------------------------------------------------------------------------------------

_CELLS_PER_UNIT = 16
_MILLS_LIMIT = 40
"""exp(-t²/2) is far below the smallest subnormal of float64 here."""


def _gaussian(m: Wide, t: Any) -> Any:
    """exp(-t²/2)."""
    high, low = m.times(t, t)
    return _exp((high * -0.5, None if low is None else low * -0.5))


def _mills(m: Wide, t: Any) -> Any:
    """Q(t) exp(t²/2) for 0 <= t <= 40, Q the upper tail of N(0, 1): Taylor's series about the middle of t's cell."""
    table = _mills_table(m)
    cell = np.fmin(t * _CELLS_PER_UNIT, _MILLS_LIMIT * _CELLS_PER_UNIT - 1).astype(np.intp)
    first = cell.flat[0] if cell.size else 0
    if (cell == first).all():
        # So it is in a sweep over all bit patterns, and then nothing is gathered.
        cell = first
    d = t - (cell + m.real(0.5)) / _CELLS_PER_UNIT
    *lower, total = (coefficient[cell] for coefficient in table)
    for coefficient in reversed(lower):
        total = total * d + coefficient
    return total


@functools.cache
def _mills_table(m: Wide) -> tuple[Any, ...]:
    """Taylor coefficients, an array over the cells for each power.

    |d| <= 1/32: the first term that is left out is below 2⁻⁷⁰ of the sum with 12 of them, 2⁻⁴⁷ with 8.
    From m' = t m - φ(0): (j + 1) a[j + 1] = c a[j] + a[j - 1], less φ(0) for j = 0.
    """
    terms = 12 if m.extended else 8
    columns = []
    # The recurrence loses some 45 digits at t = 40.
    with mpmath.workdps(120):
        density = 1 / mpmath.sqrt(2 * mpmath.pi)
        for cell in range(_MILLS_LIMIT * _CELLS_PER_UNIT):
            centre = (cell + mpmath.mpf("0.5")) / _CELLS_PER_UNIT
            a = [mpmath.erfc(centre / mpmath.sqrt(2)) / 2 * mpmath.exp(centre * centre / 2)]
            a.append(centre * a[0] - density)
            for j in range(1, terms - 1):
                a.append((centre * a[j] + a[j - 1]) / (j + 1))
            columns.append([m.rounded(number) for number in a])
    return tuple(np.array(columns).T.copy())


# --- the references ---------------------------------------------------------------------------------------------------


def _where(condition: Any, chosen: Any, other: Any, m: Wide) -> Any:
    """numpy.where, with numbers of Python's in the wide format."""
    return np.where(condition, *(m.real(v) if isinstance(v, int | float) else v for v in (chosen, other)))


def _sigmoid(m: Wide) -> tuple[Function, Function]:
    return lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (2 + np.exp(x) + np.exp(-x))


def _tanh(m: Wide) -> tuple[Function, Function]:
    return np.tanh, lambda x: (1 / np.cosh(x)) ** 2


def _relu(m: Wide) -> tuple[Function, Function]:
    return lambda x: _where(x < 0, 0, x, m), lambda x: _where(x <= 0, 0, 1, m)


def _leaky_relu(m: Wide) -> tuple[Function, Function]:
    return lambda x, p: np.where(x > 0, x, p * x), lambda x, p: _where(x > 0, 1, p, m)


def _at_most_zero(x: Any) -> Any:
    """min(x, 0), of -0 itself: np.minimum(-0.0, 0) may give either zero."""
    return np.where(x > 0, 0, x)


def _elu(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, alpha: Any) -> Any:
        return np.where(x > 0, x, alpha * np.expm1(_at_most_zero(x)))

    def slope(x: Any, alpha: Any) -> Any:
        return _where(x <= 0, alpha * np.exp(np.minimum(x, 0)), 1, m)

    return value, slope


def _gelu(m: Wide) -> tuple[Function, Function]:
    density, _ = m.constant("1 / sqrt(2 * pi)")

    def value(x: Any) -> Any:
        t = np.minimum(np.abs(x), _MILLS_LIMIT)
        tail = _gaussian(m, t) * _mills(m, t)
        return np.where(x < 0, -t * tail, x * (1 - tail))

    def slope(x: Any) -> Any:
        # Φ(x) + x φ(x): below 0 it is Q(t) - t φ(t), above 0 one minus that.
        t = np.minimum(np.abs(x), _MILLS_LIMIT)
        tail = _gaussian(m, t) * (_mills(m, t) - density * t)
        return np.where(x < 0, tail, 1 - tail)

    return value, slope


def _gelu_tanh(m: Wide) -> tuple[Function, Function]:
    constant, cubic = m.constant("sqrt(8 / pi)"), m.constant("0.044715 * sqrt(8 / pi)")

    def argument(x: Any) -> Sum:
        """z = x (√(8/π) + 0.044715 √(8/π) x²)."""
        square, square_rest = m.times(x, x)
        term, term_rest = m.scaled(cubic, square)
        total = constant[0] + term
        if term_rest is None:
            return x * total, None
        back = total - constant[0]
        rest = (constant[0] - (total - back)) + (term - back)  # Two-sum (Knuth, TAOCP 2, 4.2.2).
        high, low = m.times(x, total)
        return high, low + x * (rest + term_rest + cubic[0] * square_rest + constant[1])

    def value(x: Any) -> Any:
        # At ±50 z is beyond ±8000.
        return x / (1 + _exp(_negative(argument(np.clip(x, -50, 50)))))

    def slope(x: Any) -> Any:
        e = _exp(_negative(argument(np.clip(x, -50, 50))))
        return 1 / (1 + e) + x * (constant[0] + 3 * cubic[0] * x * x) / (2 + e + 1 / e)

    return value, slope


def _gated(m: Wide, argument: Function) -> tuple[Function, Function]:
    """X σ(z) and σ(z) + z σ(z) (1 - σ(z)), with z = argument(x, *parameters)."""

    def value(x: Any, *parameters: Any) -> Any:
        return x / (1 + _exp(_negative(argument(x, *parameters))))

    def slope(x: Any, *parameters: Any) -> Any:
        z = argument(x, *parameters)
        e = _exp(_negative(z))
        return 1 / (1 + e) + z[0] / (2 + e + 1 / e)

    return value, slope


def _swish(m: Wide) -> tuple[Function, Function]:
    return _gated(m, lambda x, beta: m.times(beta, x))


def _silu(m: Wide) -> tuple[Function, Function]:
    return _gated(m, lambda x: (x, None))


def _quick_gelu(m: Wide) -> tuple[Function, Function]:
    constant = m.constant("1.702")
    return _gated(m, lambda x: m.scaled(constant, x))


def _relu6(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return _where(x < 0, 0, _where(x > 6, 6, x, m), m)

    return value, lambda x: _where((x <= 0) | (x >= 6), 0, 1, m)


def _squared_relu(m: Wide) -> tuple[Function, Function]:
    return lambda x: _where(x < 0, 0, x * x, m), lambda x: _where(x <= 0, 0, 2 * x, m)


def _rrelu(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, lower: Any, upper: Any) -> Any:
        return np.where(x >= 0, x, (lower + upper) / 2 * x)

    def slope(x: Any, lower: Any, upper: Any) -> Any:
        return _where(x > 0, 1, (lower + upper) / 2, m)

    return value, slope


def _celu(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, alpha: Any) -> Any:
        return np.where(x > 0, x, alpha * np.expm1(_at_most_zero(x) / alpha))

    def slope(x: Any, alpha: Any) -> Any:
        return _where(x <= 0, _exp(m.over(np.minimum(x, 0), alpha)), 1, m)

    return value, slope


# To 32 digits as in the authors' code; written here again, since the catalog's are under test as well.
_SELU_SCALE = "1.0507009873554804934193349852946"
_SELU_ALPHA = "1.6732632423543772848170429916717"


def _selu(m: Wide) -> tuple[Function, Function]:
    (scale, _), (scale_alpha, _) = m.constant(_SELU_SCALE), m.constant(f"{_SELU_SCALE} * {_SELU_ALPHA}")

    def value(x: Any) -> Any:
        return np.where(x > 0, scale * x, scale_alpha * np.expm1(_at_most_zero(x)))

    def slope(x: Any) -> Any:
        return np.where(x <= 0, scale_alpha * np.exp(np.minimum(x, 0)), scale)

    return value, slope


def _hard_sigmoid(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return _where(x <= -3, 0, _where(x >= 3, 1, (x + 3) / 6, m), m)

    return value, lambda x: _where((x <= -3) | (x >= 3), 0, m.real(1) / 6, m)


def _hard_tanh(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, low: Any, high: Any) -> Any:
        return np.where(x < low, low, np.where(x > high, high, x))

    return value, lambda x, low, high: _where((x <= low) | (x >= high), 0, 1, m)


def _hard_swish(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return np.where(x <= -3, _zero_like(x), np.where(x >= 3, x, x * (x + 3) / 6))

    def slope(x: Any) -> Any:
        return _where(x <= -3, 0, _where(x >= 3, 1, (2 * x + 3) / 6, m), m)

    return value, slope


def _hard_mish(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return np.where(x <= -2, _zero_like(x), np.where(x >= 0, x, x * (x + 2) / 2))

    def slope(x: Any) -> Any:
        return _where(x < -2, 0, _where(x >= 0, 1, x + 1, m), m)

    return value, slope


def _threshold(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, threshold: Any, value: Any) -> Any:
        return np.where(x <= threshold, value, x)

    return value, lambda x, threshold, value: _where(x <= threshold, 0, 1, m)


def _softshrink(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, lambd: Any) -> Any:
        shrunk = np.where(x > lambd, x - lambd, x + lambd)
        return np.where((-lambd <= x) & (x <= lambd), _zero_like(x), shrunk)

    return value, lambda x, lambd: _where((-lambd <= x) & (x <= lambd), 0, 1, m)


def _hardshrink(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, lambd: Any) -> Any:
        return np.where((-lambd <= x) & (x <= lambd), _zero_like(x), x)

    return value, lambda x, lambd: _where((-lambd <= x) & (x <= lambd), 0, 1, m)


def _zero_like(x: Any) -> Any:
    """X · 0 for finite x: a zero with the sign of x."""
    return np.copysign(x.dtype.type(0), x)


def _tanhshrink(m: Wide) -> tuple[Function, Function]:
    # x - tanh x = (x cosh x - sinh x) / cosh x, and x cosh x - sinh x = Σ 2k x^(2k+1) / (2k+1)!, all of one sign.
    series = [m.real(2 * k) / m.real(math.factorial(2 * k + 1)) for k in range(1, 13)]

    def value(x: Any) -> Any:
        square = np.minimum(x * x, 1)
        total = series[-1]
        for coefficient in reversed(series[:-1]):
            total = total * square + coefficient
        small = x * (square * total) / np.cosh(np.clip(x, -1, 1))
        return np.where(np.abs(x) < 1, small, x - np.tanh(x))

    return value, lambda x: np.tanh(x) ** 2


def _softsign(m: Wide) -> tuple[Function, Function]:
    return lambda x: x / (1 + np.abs(x)), lambda x: (1 / (1 + np.abs(x))) ** 2


def _softplus(m: Wide) -> tuple[Function, Function]:
    def above(z: Sum, threshold: Any) -> Any:
        high, low = z
        return high > threshold if low is None else (high > threshold) | ((high == threshold) & (low > 0))

    def value(x: Any, beta: Any, threshold: Any) -> Any:
        z = m.times(beta, x)
        # log(1 + exp z) = max(z, 0) + log(1 + exp(-|z|)), both of one sign.
        smooth = (np.maximum(z[0], 0) + np.log1p(_exp(_towards_zero(z)))) / beta
        return np.where(above(z, threshold), x, smooth)

    def slope(x: Any, beta: Any, threshold: Any) -> Any:
        z = m.times(beta, x)
        return _where(above(z, threshold), 1, 1 / (1 + _exp(_negative(z))), m)

    return value, slope


def _log_sigmoid(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))

    return value, lambda x: 1 / (1 + np.exp(x))


def _mish(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        e = np.exp(np.minimum(x, 100))
        return x / (1 + 2 / (e * (e + 2)))

    def slope(x: Any) -> Any:
        # Beyond 100 the second term is below 1e-80.
        x = np.minimum(x, 100)
        e = np.exp(x)
        n = e * (e + 2)
        q = 1 / (n + 2)
        return 1 / (1 + 2 / n) + 4 * x * (e * q) * ((e + 1) * q)

    return value, slope


def _squareplus(m: Wide) -> tuple[Function, Function]:
    def value(x: Any, b: Any) -> Any:
        root = np.sqrt(x * x + b)
        return np.where(x > 0, (x + root) / 2, b / (2 * (root - x)))

    def slope(x: Any, b: Any) -> Any:
        square = x * x + b
        root = np.sqrt(square)
        return np.where(x > 0, (1 + x / root) / 2, b / (2 * (square - x * root)))

    return value, slope


def _sparse_plus(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return _where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4), m)

    def slope(x: Any) -> Any:
        return _where(x <= -1, 0, _where(x >= 1, 1, (x + 1) / 2, m), m)

    return value, slope


def _sparse_sigmoid(m: Wide) -> tuple[Function, Function]:
    def value(x: Any) -> Any:
        return _where(x <= -1, 0, _where(x >= 1, 1, (x + 1) / 2, m), m)

    return value, lambda x: _where((x <= -1) | (x >= 1), 0, 0.5, m)


def _exponential(m: Wide) -> tuple[Function, Function]:
    return np.exp, np.exp


def _identity(m: Wide) -> tuple[Function, Function]:
    return lambda x: x, np.ones_like


REFERENCES: Mapping[str, Reference] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "swish": _swish,
    "silu": _silu,
    "relu6": _relu6,
    "squared_relu": _squared_relu,
    "rrelu": _rrelu,
    "celu": _celu,
    "selu": _selu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_tanh": _hard_tanh,
    "hard_swish": _hard_swish,
    "hard_mish": _hard_mish,
    "threshold": _threshold,
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "tanhshrink": _tanhshrink,
    "softsign": _softsign,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "squareplus": _squareplus,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": _sparse_sigmoid,
    "exponential": _exponential,
    "identity": _identity,
}
"""(value, slope) of every activation, by its row's name."""
