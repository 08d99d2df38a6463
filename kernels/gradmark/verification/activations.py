"""Activations against their formulas, over families of inputs and parameter values."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np

from gradmark import catalog, reference
from gradmark.backends import Backend
from gradmark.catalog import BACKWARD, FORWARD, Activation, Deviation, Pass
from gradmark.families import Family, families, gradients, rounded
from gradmark.verification.check import Check, allowed, from_backend, to_backend


def check_activation(row: Activation, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """Forward, backward and the gradients of learnable parameters, over all families and parameter values."""
    passes: tuple[Pass, ...] = (FORWARD, BACKWARD)
    for operation_pass in passes:
        deviation = row.deviation(namespace.name, operation_pass)
        worst = max(
            (
                _worst_of_family(row, operation_pass, namespace, dtype, parameters, family, deviation)
                for parameters in parameter_sets(row)
                for family in families(row, dtype)
            ),
            key=lambda found: found[0],
        )
        note = "" if deviation is None else deviation.reason
        yield Check(
            row.name, operation_pass, target, dtype, worst[0], allowed(row, operation_pass, dtype), worst[1], note=note
        )
    for index, parameter in enumerate(row.learnable):
        worst = max(
            (
                _error_of_parameter_gradient(row, index, namespace, dtype, parameters, family)
                for parameters in parameter_sets(row)
                for family in families(row, dtype)
                if family.finite and family.name in _SUMMABLE
            ),
            key=lambda found: found[0],
        )
        yield Check(
            row.name,
            f"backward ({parameter.name})",
            target,
            dtype,
            worst[0],
            # The terms' own errors, and those of a sum of a few hundred of them.
            allowed(row, BACKWARD, dtype) + 4.0,
            worst[1],
            unit="ULP of the sum of magnitudes",
        )


def parameter_sets(row: Activation) -> list[tuple[float, ...]]:
    """The parameter values at which an activation is checked: the usual ones, then each sample by itself."""
    usual = tuple(p.usual for p in row.parameters)
    sets = [usual]
    for index, parameter in enumerate(row.parameters):
        sets += [(*usual[:index], sample, *usual[index + 1 :]) for sample in parameter.samples]
    return [values for values in dict.fromkeys(sets) if row.unmet(values) is None]


# Families whose terms are finite in every dtype when summed.
_SUMMABLE = ("moderate", "small", "kinks", "zero of the derivative")


@functools.cache
def _exact(name: str, what: str, dtype: str, parameters: tuple[float, ...], family_name: str) -> list[Any]:
    """The reference's values over a family; `what` is forward, backward (f'), or a parameter (df/dp)."""
    row = catalog.operation(name)
    assert isinstance(row, Activation)
    family = next(f for f in families(row, dtype) if f.name == family_name)
    rounded = _rounded_parameters(row, parameters, dtype)
    if what == FORWARD:
        return [reference.forward(row, x, rounded) for x in family.values]
    if what == BACKWARD:
        return [reference.derivative(row, x, rounded) for x in family.values]
    return [reference.partial(row, what, x, rounded) for x in family.values]


def _rounded_parameters(row: Activation, parameters: tuple[float, ...], dtype: str) -> tuple[float, ...]:
    """A parameter as the backend sees it: rounded to the dtype, half precision's fixed ones to float32."""
    wide = dtype if dtype == "float64" else "float32"
    return tuple(
        float(_as_dtype(value, dtype if p.learnable else wide))
        for value, p in zip(parameters, row.parameters, strict=True)
    )


def _as_dtype(value: float, dtype: str) -> float:
    return float(rounded(np.array([value]), dtype)[0])


def _arguments(row: Activation, namespace: Backend, parameters: tuple[float, ...], dtype: str) -> list[Any]:
    return [
        to_backend(namespace, np.array([value]), dtype) if p.learnable else value
        for value, p in zip(parameters, row.parameters, strict=True)
    ]


def _results(
    row: Activation, operation_pass: Pass, namespace: Backend, dtype: str, parameters: tuple[float, ...], family: Family
) -> tuple[Any, Any, list[Any]]:
    """(result, incoming gradients, parameters' gradients) of a backend over a family, as float64."""
    x = to_backend(namespace, family.values, dtype)
    arguments = _arguments(row, namespace, parameters, dtype)
    if operation_pass == FORWARD:
        return from_backend(getattr(namespace, row.name)(x, *arguments)), np.ones(family.values.size), []
    grads = gradients(family.values, dtype)
    found = getattr(namespace, catalog.backward_of(row.name))(to_backend(namespace, grads, dtype), x, *arguments)
    dx, *of_parameters = found if isinstance(found, tuple) else (found,)
    return from_backend(dx), grads, [from_backend(p) for p in of_parameters]


def _worst_of_family(
    row: Activation,
    operation_pass: Pass,
    namespace: Backend,
    dtype: str,
    parameters: tuple[float, ...],
    family: Family,
    deviation: Deviation | None,
) -> tuple[float, str]:
    result, grads, _ = _results(row, operation_pass, namespace, dtype, parameters, family)
    exact = _exact(row.name, operation_pass, dtype, parameters, family.name)
    worst, where = -1.0, ""
    for x, y, g, slope in zip(family.values, result, grads, exact, strict=True):
        with mpmath.workprec(400):
            value = slope * mpmath.mpf(g) if operation_pass == BACKWARD else slope
            if deviation is not None and deviation.infinities and not np.isfinite(y) and _overflows(x, dtype):
                continue
            if deviation is not None and deviation.nan and np.isnan(x):
                continue
            overflows = deviation is not None and deviation.overflow and np.isinf(y)
            if overflows and reference.overflows(slope, dtype):
                value = mpmath.sign(value) * mpmath.inf
            extra = _floor(deviation, row, x, g, value, parameters, dtype)
            error = reference.error_in_ulp(float(y), value, reference.floor_of(operation_pass, g, dtype, extra), dtype)
        if not error <= worst:
            worst, where = error, f"x = {_shown(x, dtype)}{_with(row, parameters)}"
    return worst, where


def _overflows(x: float, dtype: str) -> bool:
    """Whether x, or its cube, leaves the dtype's finite numbers."""
    return bool(np.isinf(x)) or abs(x) >= 2.0 ** (-reference.SMALLEST_EXPONENT[dtype] / 3)


def _floor(
    deviation: Deviation | None, row: Activation, x: float, g: float, y: Any, parameters: tuple[float, ...], dtype: str
) -> Any:
    if deviation is None or deviation.floor is None or not np.isfinite(x) or np.isnan(x):
        return 0
    names = tuple(p.name for p in row.parameters)
    tiny = mpmath.ldexp(1, reference.SMALLEST_EXPONENT[dtype])
    eps = mpmath.ldexp(1, -reference.MANTISSA_BITS[dtype])
    variables = ("x", "g", "y", "tiny", "eps", *names)
    function = reference.function_of(deviation.floor, variables)
    return abs(function(mpmath.mpf(float(x)), mpmath.mpf(float(g)), y, tiny, eps, *parameters))


def _error_of_parameter_gradient(
    row: Activation, index: int, namespace: Backend, dtype: str, parameters: tuple[float, ...], family: Family
) -> tuple[float, str]:
    """Error of Σ g df/dp, in ULP of Σ |g df/dp|."""
    name = row.learnable[index].name
    _, grads, found = _results(row, BACKWARD, namespace, dtype, parameters, family)
    exact = _exact(row.name, name, dtype, parameters, family.name)
    with mpmath.workprec(400):
        terms = [mpmath.mpf(float(g)) * slope for g, slope in zip(grads, exact, strict=True)]
        magnitude = mpmath.fsum(abs(term) for term in terms)
        floor = reference.floor_of(BACKWARD, 0.0, dtype, magnitude)
        error = reference.error_in_ulp(float(found[index].reshape(())), mpmath.fsum(terms), floor, dtype)
    return error, f"{family.name} inputs{_with(row, parameters)}"


def _with(row: Activation, parameters: tuple[float, ...]) -> str:
    return "".join(f", {p.name} = {value:g}" for p, value in zip(row.parameters, parameters, strict=True))


def _shown(x: float, dtype: str) -> str:
    return repr(float(x)) if dtype == "float64" else f"{x:.9g}"
