"""Gated units against the formulas of their activations, over families of gates."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np

from gradmark import catalog, reference
from gradmark.backends import Backend
from gradmark.catalog import BACKWARD, FORWARD, Deviation, Gated, Pass
from gradmark.families import Family, families, gradients, rounded
from gradmark.verification.activations import _floor, _overflows, _shown
from gradmark.verification.check import Check, allowed, from_backend, to_backend


def check_gated(row: Gated, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """Forward and backward, over all families of gates and both orders of the halves."""
    passes: tuple[Pass, ...] = (FORWARD, BACKWARD)
    for operation_pass in passes:
        compare = _forward if operation_pass == FORWARD else _backward
        worst, where = max(
            (
                compare(row, namespace, dtype, family, gate_last)
                for family in families(row.activation, dtype)
                for gate_last in (False, True)
            ),
            key=lambda found: found[0],
        )
        deviations = filter(None, (row.activation.deviation(namespace.name, p) for p in passes))
        note = "; ".join(dict.fromkeys(deviation.reason for deviation in deviations))
        yield Check(
            row.name, operation_pass, target, dtype, worst, allowed(row, operation_pass, dtype), where, note=note
        )


def values_for(gates: Any, dtype: str) -> Any:
    """Values b for the gates a: of both signs and several magnitudes, in another rhythm than the gradients."""
    scale = np.array([0.7, -3.0, 40.0, -1e-2, 1.0])
    return rounded(scale[np.arange(gates.size) % scale.size], dtype)


@functools.cache
def _exact(name: str, dtype: str, family_name: str) -> list[tuple[Any, Any]]:
    """(f(a), f'(a)) over a family."""
    activation = next(row for row in catalog.ACTIVATIONS if row.name == name)
    family = next(f for f in families(activation, dtype) if f.name == family_name)
    return [(reference.forward(activation, a, ()), reference.derivative(activation, a, ())) for a in family.values]


def _halves(a: Any, b: Any, gate_last: bool) -> Any:
    """x, of the halves in their order."""
    return np.concatenate([b, a] if gate_last else [a, b])


def _forward(row: Gated, namespace: Backend, dtype: str, family: Family, gate_last: bool) -> tuple[float, str]:
    a, b = family.values, values_for(family.values, dtype)
    x = to_backend(namespace, _halves(a, b, gate_last), dtype)
    found = from_backend(getattr(namespace, row.name)(x, gate_last=gate_last))
    deviation = row.activation.deviation(namespace.name, FORWARD)
    worst, where = -1.0, ""
    for gate, value, result, (f, _) in zip(a, b, found, _exact(row.gate, dtype, family.name), strict=True):
        with mpmath.workprec(400):
            error = _error(row, deviation, gate, 1.0, f, mpmath.mpf(value), result, 0.0, dtype)
        if not error <= worst:
            worst, where = error, _at(gate, value, dtype)
    return worst, where


def _backward(row: Gated, namespace: Backend, dtype: str, family: Family, gate_last: bool) -> tuple[float, str]:
    a, b, g = family.values, values_for(family.values, dtype), gradients(family.values, dtype)
    x, grad = (to_backend(namespace, array, dtype) for array in (_halves(a, b, gate_last), g))
    found = from_backend(getattr(namespace, catalog.backward_of(row.name))(grad, x, gate_last=gate_last))
    first, second = np.split(found, 2)
    da, db = (second, first) if gate_last else (first, second)
    of_value, of_slope = (row.activation.deviation(namespace.name, p) for p in (FORWARD, BACKWARD))
    worst, where = -1.0, ""
    for gate, value, h, dgate, dvalue, (f, slope) in zip(
        a, b, g, da, db, _exact(row.gate, dtype, family.name), strict=True
    ):
        with mpmath.workprec(400):
            incoming, scale = mpmath.mpf(h) * mpmath.mpf(value), abs(h * value) / 64
            errors = (
                _error(row, of_slope, gate, 1.0, slope, incoming, dgate, scale, dtype),
                _error(row, of_value, gate, 1.0, f, mpmath.mpf(h), dvalue, 0.0, dtype),
            )
        for which, error in zip(("da", "db"), errors, strict=True):
            if not error <= worst:
                worst, where = error, f"{which} at {_at(gate, value, dtype)}"
    return worst, where


def _error(
    row: Gated,
    deviation: Deviation | None,
    gate: float,
    g: float,
    of_gate: Any,
    factor: Any,
    result: float,
    scale: float,
    dtype: str,
) -> float:
    """The error of result = of_gate · factor; of_gate is f or f' at the gate, and deviates as the activation does."""
    if deviation is not None and deviation.infinities and not np.isfinite(result) and _overflows(gate, dtype):
        return 0.0
    if deviation is not None and deviation.nan and np.isnan(gate):
        return 0.0
    if np.isinf(result) and reference.overflows(of_gate, dtype):
        of_gate = mpmath.sign(of_gate) * mpmath.inf
    extra = _floor(deviation, row.activation, gate, g, of_gate, (), dtype) * abs(factor)
    floor = reference.floor_of(FORWARD, 0.0, dtype, max(mpmath.mpf(scale), extra))
    return reference.error_in_ulp(float(result), of_gate * factor, floor, dtype)


def _at(gate: float, value: float, dtype: str) -> str:
    return f"gate = {_shown(gate, dtype)}, value = {_shown(value, dtype)}"
