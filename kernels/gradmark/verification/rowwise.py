"""Row-wise operations against their formulas, over families of rows, along the last axis and along another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import mpmath
import numpy as np

from gradmark import catalog, reference
from gradmark.backends import Backend
from gradmark.catalog import BACKWARD, FORWARD, Pass, Rowwise
from gradmark.families import gradients, rounded
from gradmark.numerics import philox, philox_numpy
from gradmark.verification.check import Check, allowed, from_backend, to_backend

SEED = 20260101
"""The seed of the noise."""
_PRECISION_BITS = 2500
"""Enough for exp(-1700) beside 1, and for what is left of the difference of the largest float64 numbers."""
_LENGTHS = (1, 2, 17, 150)


def check_rowwise(row: Rowwise, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """Forward and backward, over all families of rows, axes and parameter values."""
    passes: tuple[Pass, ...] = (FORWARD, BACKWARD)
    for operation_pass in passes:
        worst, where = max(
            (
                _worst_of_family(row, operation_pass, namespace, dtype, name, axis, parameters)
                for name in row_families(dtype)
                for axis in (1, 0)
                for parameters in parameter_sets(row)
            ),
            key=lambda found: found[0],
        )
        deviation = row.deviation(namespace.name, operation_pass)
        note = "" if deviation is None else deviation.reason
        scale = row.scales[operation_pass]
        unit = "ULP" if scale == "0" else f"ULP of max(|result|, {scale})"
        allowance = allowed(row, operation_pass, dtype)
        yield Check(row.name, operation_pass, target, dtype, worst, allowance, where, unit=unit, note=note)


def parameter_sets(row: Rowwise) -> list[tuple[float, ...]]:
    """The parameter values at which an operation is checked: the defaults, then each sample by itself."""
    usual = tuple(p.usual for p in row.parameters)
    sets = [usual]
    for index, parameter in enumerate(row.parameters):
        sets += [(*usual[:index], sample, *usual[index + 1 :]) for sample in parameter.samples]
    return sets


@functools.cache
def row_families(dtype: str) -> Mapping[str, Any]:
    """Families of inputs, (rows, length) each: float64 numbers that the dtype represents exactly."""
    rng = np.random.default_rng(20260102)
    tiny, huge = 2.0 ** reference.SMALLEST_EXPONENT[dtype], 2.0 ** (-reference.SMALLEST_EXPONENT[dtype] - 1)
    found = {f"of length {n}": rng.normal(size=(3, n)) * 3 for n in _LENGTHS}
    found["wide"] = rng.normal(size=(2, 40)) * 60
    found["far from 0"] = rng.normal(size=(2, 20)) + np.array([[1000.0], [-600.0]])
    found["one dominates"] = np.array([[0.0, *-d * np.arange(1, 9)] for d in (2.0, 9.0, 14.0, 70.0, 300.0)])
    found["ties"] = np.array([[1.0, 1.0, 1.0, 0.0], [2.5, 2.5, -3.0, 2.5], [0.0, -0.0, 0.0, -0.0]])
    found["masked"] = np.where(np.arange(15) % 3 == 0, -np.inf, rng.normal(size=(2, 15)))
    found["large"] = np.array([[huge, -huge, huge / 2, 0.0], [-huge, -huge, -huge, -huge / 2]])
    found["small"] = np.array([[tiny, -tiny, 2 * tiny, 0.0]])
    found["undefined"] = np.array([[np.nan, 1.0, 2.0], [1.0, -np.nan, -np.inf], [np.inf, 0.0, 1.0], [-np.inf] * 3])
    return MappingProxyType({name: rounded(rows, dtype) for name, rows in found.items()})


def noise(shape: tuple[int, ...], dtype: str) -> Any:
    """The exact noise of SEED as mpmath numbers, element i in C order."""
    return _noise(int(np.prod(shape)), dtype == "float64").reshape(shape)


@functools.cache
def _noise(size: int, wide: bool) -> Any:
    # The logarithms of one array of noise take a second: passes, axes, parameters and narrow dtypes share it.
    per_block, inside = (2, philox_numpy._inside_64) if wide else (4, philox_numpy._inside_32)
    drawn = np.empty(size)
    for block, count, target, source in philox.chunks(0, size, per_block, philox_numpy.SMALLEST_CHUNK):
        drawn[target] = inside(philox_numpy._words(block, count, SEED))[source]
    with mpmath.workprec(_PRECISION_BITS):
        found = _each(lambda v: -mpmath.log(-mpmath.log(v)))(exactly(drawn))
    found.flags.writeable = False
    return found


def exactly(values: Any) -> Any:
    """float64 numbers as an object array of mpmath ones."""
    return _each(mpmath.mpf)(np.asarray(values, dtype=np.float64))


def evaluate(expression: str, **names: Any) -> Any:
    """An expression of the catalog in vectors of mpmath numbers, of one row."""
    return eval(expression, {"__builtins__": {}}, {**_NAMES, **names})


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of each element of an object array."""
    return np.vectorize(function, otypes=[object])


def _maximum(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


_NAMES: dict[str, Any] = {
    "exp": _each(mpmath.exp),
    "log": _each(mpmath.log),
    "sum": np.sum,
    "max": np.max,
    "abs": np.abs,
    "maximum": _maximum,
    "where": np.where,
    "cumsum": np.cumsum,
    "descending": lambda x: np.array(sorted(x, reverse=True)),
    "ranks": lambda x: np.arange(1, len(x) + 1),
}


def is_undefined(row: Rowwise, x: Any) -> bool:
    """Whether a row of inputs gives NaN: it holds NaN or an infinite logit, or none is finite."""
    logits = -x if row.name == "softmin" else x
    return bool(np.isnan(x).any() or np.isposinf(logits).any() or np.isneginf(logits).all())


@dataclass(frozen=True)
class Exact:
    """What a pass is given over a family, and what it is to give, row by row."""

    inputs: list[Any]
    """Of the pass, in order, as float64: x, or grad and what is saved."""
    results: list[Any]
    """Exact, a vector a row; None where the row is undefined and the result NaN."""
    scales: list[Any]
    """Of the errors, a vector a row."""


@functools.cache
def exact(
    name: str, operation_pass: Pass, dtype: str, family: str, axis: int, parameters: tuple[float, ...], floor: str = "0"
) -> Exact:
    """The reference over a family; a scale is that of the row or `floor`, whichever is larger."""
    row = catalog.operation(name)
    assert isinstance(row, Rowwise)
    rows = row_families(dtype)[family]
    drawn = laid(noise(laid(rows, axis).shape, dtype), axis) if row.seeded else np.zeros(rows.shape, dtype=object)
    grads = gradients(rows, dtype).reshape(rows.shape)
    saved = np.full(rows.shape, np.nan)
    found = Exact([], [], [])
    with mpmath.workprec(_PRECISION_BITS):
        for index, (x, n, g) in enumerate(zip(rows, drawn, grads, strict=True)):
            if is_undefined(row, x):
                found.results.append(None)
                found.scales.append(np.zeros(x.size))
                continue
            names = {"x": exactly(x), "n": n, "g": exactly(g), **_named(row, parameters)}
            names["y"] = result = (
                evaluate(row.formula, **names)
                if operation_pass == FORWARD
                else exact(name, FORWARD, dtype, family, axis, parameters).results[index]
            )
            if operation_pass == BACKWARD:
                if row.saved == ("y",):
                    saved[index] = rounded(result.astype(np.float64), dtype)
                    names["y"] = exactly(saved[index])
                result = evaluate(row.gradient, **names)
            names["d"] = names["x"] - max(names["x"])
            scales = (evaluate(text, **names) for text in (row.scales[operation_pass], floor))
            found.results.append(result)
            found.scales.append(np.maximum(*np.broadcast_arrays(*scales)) + np.zeros(x.size))
    arrays = [rows] if operation_pass == FORWARD else [grads, rows if row.saved == ("x",) else saved]
    found.inputs.extend(arrays)
    return found


def _named(row: Rowwise, parameters: tuple[float, ...]) -> dict[str, Any]:
    return {p.name: mpmath.mpf(value) for p, value in zip(row.parameters, parameters, strict=True)}


def laid(rows: Any, axis: int) -> Any:
    """Rows along axis 1 as rows along `axis`, and the reverse."""
    return rows if axis == 1 else rows.T


def _worst_of_family(
    row: Rowwise,
    operation_pass: Pass,
    namespace: Backend,
    dtype: str,
    family: str,
    axis: int,
    parameters: tuple[float, ...],
    *,
    deviates: bool = True,
) -> tuple[float, str]:
    deviation = row.deviation(namespace.name, operation_pass) if deviates else None
    floor = "0" if deviation is None or deviation.floor is None else deviation.floor
    # Only noise depends on where in memory a row lies.
    expected = exact(row.name, operation_pass, dtype, family, axis if row.seeded else 1, parameters, floor)
    arrays = [to_backend(namespace, np.ascontiguousarray(laid(a, axis)), dtype) for a in expected.inputs]
    keywords = {p.name: value for p, value in zip(row.parameters, parameters, strict=True)}
    if row.seeded:
        keywords["seed"] = SEED
    function = getattr(namespace, row.name if operation_pass == FORWARD else catalog.backward_of(row.name))
    results = laid(from_backend(function(*arrays, axis=axis, **keywords)), axis)
    worst = -1.0
    for result, truth, scale in zip(results, expected.results, expected.scales, strict=True):
        truth = [mpmath.nan] * result.size if truth is None else truth
        for value, t, size in zip(result, truth, scale, strict=True):
            with mpmath.workprec(_PRECISION_BITS):
                error = reference.error_in_ulp(float(value), t, reference.floor_of(FORWARD, 0.0, dtype, size), dtype)
            if not error <= worst:
                worst = error
    return worst, f"{family} along axis {axis}" + "".join(f", {k} = {v:g}" for k, v in keywords.items() if k != "seed")
