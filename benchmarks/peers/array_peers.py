"""What computes on NumPy's arrays: an expression of NumPy's, SciPy's ufuncs, NumExpr."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import expressions
from .cases import AbsentError, Data

Call = Callable[[], Any]


def _usual(data: Data) -> dict[str, Any]:
    """Parameters as a user of NumPy or NumExpr has them: numbers of the arrays' dtype."""
    real = np.dtype(data.case.dtype).type
    return {p.name: real(p.usual) for p in data.case.row.parameters}


def naive(data: Data) -> Call:
    """The expression that a user of NumPy writes down."""
    try:
        expressions_of = importlib.import_module("benchmarks.naive").NAIVE
    except ModuleNotFoundError as error:
        raise AbsentError(f"there are no naive expressions ({error})") from error
    if data.case.operation not in expressions_of:
        raise AbsentError("no naive expression is written for it")
    function = expressions_of[data.case.operation][data.case.backward]
    arrays = (data.grad, data.x) if data.case.backward else (data.x,)
    return functools.partial(function, *arrays, *_usual(data).values())


SCIPY: Mapping[str, Callable[[Any, Any], Any]] = {
    "sigmoid": lambda special, x: special.expit(x),
    "log_sigmoid": lambda special, x: special.log_expit(x),
    "gelu": lambda special, x: 0.5 * x * (1 + special.erf(x * math.sqrt(0.5))),
}
"""Forward passes; SciPy has no derivatives."""


def scipy(data: Data) -> Call:
    """The ufunc of scipy.special, or the expression with it."""
    from scipy import special

    return functools.partial(SCIPY[data.case.operation], special, data.x)


def numexpr(data: Data) -> Call:
    """The catalog's formula; of a learnable parameter with a second one, which sums."""
    import numexpr

    row, dtype = data.case.row, data.case.dtype
    try:
        if not data.case.backward:
            expression, constants = expressions.numexpr(row.formula, dtype)
            return functools.partial(numexpr.evaluate, expression, {"x": data.x, **_usual(data), **constants})
        # g f'(x), and Σ g df/dp of learnable parameters.
        formulas = [row.derivative, *(p.partial for p in row.learnable)]
        calls = []
        for formula in formulas:
            expression, constants = expressions.numexpr(f"grad * ({formula})", dtype)
            expression = f"sum({expression})" if calls else expression
            names = {"x": data.x, "grad": data.grad, **_usual(data), **constants}
            calls.append(functools.partial(numexpr.evaluate, expression, names))
    except expressions.NotExpressibleError as error:
        raise AbsentError(str(error)) from error
    return calls[0] if len(calls) == 1 else lambda: tuple(call() for call in calls)
