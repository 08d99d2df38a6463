"""Orthogonal weights by every method: how orthogonal they are, and against the matrix that the method defines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mpmath
import numpy as np

from gradmark import reference
from gradmark.backends import Backend
from gradmark.catalog import Choice, Initializer
from gradmark.numerics import haar
from gradmark.verification.check import Check, from_backend
from gradmark.verification.initializers import _SEED, _normal

_ORTHOGONAL: tuple[tuple[int, ...], ...] = ((64, 64), (96, 32), (32, 96), (8, 4, 3, 3))
_DELTA: tuple[tuple[int, ...], ...] = ((64, 64, 1), (96, 32, 1), (96, 32, 3), (8, 4, 3, 2))
_OF_VALUES: tuple[tuple[int, ...], ...] = ((20, 20), (40, 20), (18, 40), (8, 2, 3, 3))
"""Square, tall, wide and a kernel; reflectors come in blocks of 16 here, so that there is a second one."""

_ORTHOGONALITY = 8.0
"""‖QᵀQ - I‖_F in units of √n eps, of the rounded result: Householder QR is orthogonal to a small multiple of eps in
each column (Higham, Accuracy and Stability, 2002, theorem 19.4), and rounding adds half an ULP to each entry."""

_VALUES = 4.0
"""‖Q - exact‖_F in units of κ √n eps. A factor of Z moves by at most √2 κ(Z) ‖dZ‖_F / ‖Z‖ (that of QR: Sun, BIT 31,
1991) or 2 ‖dZ‖_F / σ_min (the polar one: Li, SIAM J. Matrix Anal. Appl. 16, 1995), and ‖dZ‖_F is some √n eps ‖Z‖.
Reflectors are drawn, so that nothing is conditioned: κ is 1."""

_BITS = 200
"""Of the exact matrices: what their operations lose does not reach the last bit of a float64."""


def check_orthogonal(row: Initializer, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """Of each method, the default first: its orthogonality in √n eps, and its values in κ √n eps."""
    for named, keywords in _methods(row):
        worst, where = _worst(_orthogonality_errors(row, namespace, dtype, keywords))
        unit = "√n eps of ‖QᵀQ - I‖"
        yield Check(row.name, f"forward{named}", target, dtype, worst, _ORTHOGONALITY, where, unit=unit)
        if row.name == "orthogonal":
            worst, where = _worst(_value_errors(namespace, dtype, keywords))
            # Half precision is computed in float32, and then rounded.
            eps = "κ √n eps" if dtype in ("float32", "float64") else "√n (κ eps of float32 + eps)"
            yield Check(row.name, f"values{named}", target, dtype, worst, _VALUES, where, unit=f"{eps} of ‖Q‖")


def _methods(row: Initializer) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and keywords of each method: the default's are empty."""
    yield "", {}
    for choice in row.parameters:
        if isinstance(choice, Choice) and choice.name == "method":
            yield from ((f" ({word})", {"method": word}) for word in choice.samples)


def _worst(errors: Iterator[tuple[float, str]]) -> tuple[float, str]:
    worst, where = -1.0, ""
    for error, at in errors:
        if not error <= worst:
            worst, where = error, at
    return worst, where


def _served(shape: tuple[int, ...], keywords: Mapping[str, str]) -> bool:
    """Whether the method makes a matrix of this shape."""
    return haar.refusal(keywords.get("method", "auto"), *_tall(shape)) is None


def _tall(shape: tuple[int, ...]) -> tuple[int, int]:
    """The longer and the shorter side of the weight as a matrix (out, rest)."""
    rows, columns = shape[0], math.prod(shape[1:])
    return max(rows, columns), min(rows, columns)


def _made_tall(matrix: Any) -> Any:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _orthogonality_errors(
    row: Initializer, namespace: Backend, dtype: str, keywords: Mapping[str, str]
) -> Iterator[tuple[float, str]]:
    eps = 2.0 ** -reference.MANTISSA_BITS[dtype]
    delta = row.name == "delta_orthogonal"
    for shape in _DELTA if delta else _ORTHOGONAL:
        for gain in (1.0, 1.1) if _served(shape, keywords) else ():
            weights = from_backend(getattr(namespace, row.name)(shape, seed=_SEED, dtype=dtype, gain=gain, **keywords))
            # A kernel whose only matrix that is not 0 is orthogonal sums to it.
            matrix = weights.reshape(*shape[:2], -1).sum(axis=-1) if delta else weights.reshape(shape[0], -1)
            q = _made_tall(matrix / gain)
            n = q.shape[1]
            yield float(np.linalg.norm(q.T @ q - np.eye(n)) / (np.sqrt(n) * eps)), f"shape {shape}, gain = {gain:g}"


def _value_errors(namespace: Backend, dtype: str, keywords: Mapping[str, str]) -> Iterator[tuple[float, str]]:
    computed_in = "float64" if dtype == "float64" else "float32"
    eps = 2.0 ** -reference.MANTISSA_BITS[computed_in]
    # Each entry of half precision is rounded once more.
    rounding = 0.0 if dtype == computed_in else 2.0 ** -reference.MANTISSA_BITS[dtype]
    for shape in _OF_VALUES:
        if not _served(shape, keywords):
            continue
        exact, condition = _exact(haar.chosen(keywords.get("method", "auto"), *_tall(shape)), shape, computed_in)
        weights = from_backend(namespace.orthogonal(shape, seed=_SEED, dtype=dtype, **keywords))
        q = _made_tall(weights.reshape(shape[0], -1))
        with mpmath.workprec(_BITS):
            distance = float(_norm((q - exact).ravel()))
        yield distance / (math.sqrt(q.shape[1]) * (condition * eps + rounding)), f"shape {shape}"


# --- the definitions --------------------------------------------------------------------------------------------------


@functools.cache
def _exact(method: str, shape: tuple[int, ...], dtype: str) -> tuple[Any, float]:
    """The tall matrix that a method defines, in mpmath's numbers, and by how much it is conditioned."""
    m, n = _tall(shape)
    with mpmath.workprec(_BITS):
        if method == "householder":
            return _product_of_reflectors(m, n, dtype), 1.0
        # In the order of the weight's memory.
        stream, _ = _normal(m * n, 0.0, 1.0, dtype)
        z = _made_tall(np.array(stream, dtype=object).reshape(shape[0], -1))
        return _FACTORS[method](z), float(np.linalg.cond(z.astype(np.float64)))


def _norm(x: Any) -> Any:
    return mpmath.sqrt(x @ x)


def _gram_schmidt(z: Any) -> Any:
    """The Q of Z = QR whose R has a positive diagonal: the columns of Z, each less its part in those before it."""
    q = z.copy()
    for j in range(q.shape[1]):
        for i in range(j):
            q[:, j] -= (q[:, i] @ q[:, j]) * q[:, i]
        q[:, j] /= _norm(q[:, j])
    return q


def _polar(z: Any) -> Any:
    """Z (ZᵀZ)^(-1/2), by eigenvectors."""
    values, vectors = mpmath.eigsy(mpmath.matrix((z.T @ z).tolist()))
    v = np.array(vectors.tolist(), dtype=object)
    return z @ (v / np.array([mpmath.sqrt(value) for value in values], dtype=object)) @ v.T


_FACTORS: Mapping[str, Callable[[Any], Any]] = {"qr": _gram_schmidt, "cholesky_qr2": _gram_schmidt, "polar": _polar}


def _product_of_reflectors(m: int, n: int, dtype: str) -> Any:
    """H_0 H_1 ... S, one reflector after the other; see `numerics.haar`.

    H_j maps x_j to s_j |x_j| e_j, and S holds the s_j, so that column 0 is x_0 / |x_0|. Of both signs, s_j is the one
    that does not cancel; where x_j is one number, it is its own.
    """
    # Reflector j takes m - j elements of the stream.
    stream, _ = _normal(n * m - n * (n - 1) // 2, 0.0, 1.0, dtype)
    elements = np.array(stream, dtype=object)
    q = np.array([[mpmath.mpf(int(i == j)) for j in range(n)] for i in range(m)], dtype=object)
    for j in reversed(range(n)):
        begin = j * m - j * (j - 1) // 2
        v = elements[begin : begin + m - j].copy()
        sign = -mpmath.sign(v[0]) if len(v) > 1 else mpmath.sign(v[0])
        q[:, j] *= sign
        v[0] -= sign * _norm(v)
        if len(v) > 1:
            q[j:, j:] -= np.outer(v, (2 / (v @ v)) * (v @ q[j:, j:]))
    return q
