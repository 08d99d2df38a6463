"""The reference that every backend is measured against: the catalog's formulas in mpmath, and errors in ULP."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np

from gradmark.catalog import Activation, Pass

# float64 has 53; the formulas lose at most a few dozen to cancellation where their value is representable.
_PRECISION_BITS = 300
_NAMES = ("exp", "expm1", "log1p", "sqrt", "tanh", "sech")

# At this |x| every activation here is closer to its limit than the precision tells, so it stands for infinity; what
# is beyond its fifth root, or below the inverse of that, is infinite or 0 there.
_AS_GOOD_AS_INFINITE = mpmath.mpf("1e1000")
_FIFTH_ROOT = mpmath.mpf("1e200")

MANTISSA_BITS: Mapping[str, int] = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
SMALLEST_EXPONENT: Mapping[str, int] = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}


@functools.cache
def function_of(expression: str, variables: tuple[str, ...]) -> Callable[..., Any]:
    """An expression of the catalog as a function of mpmath numbers."""
    names = {name: getattr(mpmath, name) for name in _NAMES}
    names |= {"erfc": _erfc, "pi": mpmath.pi}
    # Constants such as 0.044715 are decimal numbers, not the floats nearest to them.
    code = _with_decimal_constants(expression)
    function: Callable[..., Any] = eval(f"lambda {', '.join(variables)}: {code}", {**names, "number": mpmath.mpf})
    return function


def _erfc(z: Any) -> Any:
    """mpmath's erfc, which overflows for huge arguments; there the leading term exp(-z²) / (z √π) has all digits."""
    if abs(z) < mpmath.mpf("1e6"):
        return mpmath.erfc(z)
    tail = mpmath.exp(-z * z) / (abs(z) * mpmath.sqrt(mpmath.pi))
    return tail if z > 0 else 2 - tail


def _with_decimal_constants(expression: str) -> str:
    return re.sub(r"(?<![\w.])(\d+\.\d+)", r"number('\1')", expression)


def forward(row: Activation, x: float, parameters: Sequence[float]) -> Any:
    """f(x) as an mpmath number; its limit for an infinite x."""
    return _evaluate(row.formula, row, x, parameters)


def derivative(row: Activation, x: float, parameters: Sequence[float]) -> Any:
    """f'(x) as an mpmath number; its limit for an infinite x."""
    return _evaluate(row.derivative, row, x, parameters)


def partial(row: Activation, name: str, x: float, parameters: Sequence[float]) -> Any:
    """df/dp(x) of the learnable parameter `name` as an mpmath number."""
    expression = next(p.partial for p in row.learnable if p.name == name)
    if expression is None:
        raise LookupError(f"{row.name} has no learnable parameter {name!r}")
    return _evaluate(expression, row, x, parameters)


def _evaluate(expression: str, row: Activation, x: float, parameters: Sequence[float]) -> Any:
    variables = ("x", *(p.name for p in row.parameters))
    # x - tanh(x) loses twice the bits that x has after the binary point.
    with mpmath.workprec(_PRECISION_BITS + 2 * max(0, -math.frexp(x)[1])):
        function, values = function_of(expression, variables), map(mpmath.mpf, parameters)
        if not np.isinf(x):
            return function(mpmath.mpf(float(x)), *values)
        finite = function(float(np.sign(x)) * _AS_GOOD_AS_INFINITE, *values)
        if abs(finite) < 1 / _FIFTH_ROOT:
            return mpmath.mpf(0)
        return finite if abs(finite) < _FIFTH_ROOT else mpmath.sign(finite) * mpmath.inf


def ulp(value: Any, dtype: str) -> Any:
    """The spacing of the floats of `dtype` at |value|, an mpmath number; below the smallest normal, that of it."""
    magnitude = abs(value)
    exponent = SMALLEST_EXPONENT[dtype]
    if magnitude > 0 and not mpmath.isinf(magnitude):
        # frexp is exact: magnitude = m 2^e with m in [1/2, 1).
        exponent = max(exponent, int(mpmath.frexp(magnitude)[1]) - 1)
    return mpmath.ldexp(1, exponent - MANTISSA_BITS[dtype])


def error_in_ulp(result: float, exact: Any, floor: Any, dtype: str) -> float:
    """|result - exact| in ULP of max(|exact|, floor); inf where one is NaN or infinite and the other is not.

    An exact value beyond the largest finite number agrees with that number and with infinity of its sign.
    """
    if mpmath.isnan(exact):
        return 0.0 if np.isnan(result) else float("inf")
    if np.isnan(result):
        return float("inf")
    if np.isinf(result):
        return 0.0 if overflows(exact, dtype) and mpmath.sign(exact) == np.sign(result) else float("inf")
    if mpmath.isinf(exact):
        return float("inf")
    scale = ulp(max(abs(exact), floor), dtype)
    return float(abs(mpmath.mpf(result) - exact) / scale)


def overflows(exact: Any, dtype: str) -> bool:
    """Whether the dtype may round |exact| to infinity: from two ULP below its largest number on."""
    top = mpmath.ldexp(2 - mpmath.ldexp(1, -MANTISSA_BITS[dtype]), _largest_exponent(dtype))
    return bool(abs(exact) >= top * (1 - mpmath.ldexp(1, -MANTISSA_BITS[dtype] + 1)))


def _largest_exponent(dtype: str) -> int:
    return 15 if dtype == "float16" else 1023 if dtype == "float64" else 127


def floor_of(operation_pass: Pass, grad: float, dtype: str, extra: Any = 0) -> Any:
    """The scale below which errors are not measured relative to the result.

    128 smallest normal numbers: a result there has been a product of subnormals. In a backward pass also |grad| / 64:
    where the derivative crosses zero, its error is that of the terms that cancel.
    """
    near_underflow = mpmath.ldexp(1, SMALLEST_EXPONENT[dtype] + 7)
    slope = abs(mpmath.mpf(grad)) / 64 if operation_pass == "backward" else 0
    return max(near_underflow, slope, extra)
