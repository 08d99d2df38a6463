"""Initializers in Numba: one pass over the result, in parallel where it is large.

The contract is that of `initializers.public`. What moves no random numbers is NumPy's, and so is the order of keys; an
orthogonal matrix is products of BLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradmark.initializers import _placed
from gradmark.numerics import fused, haar, philox_numba
from gradmark.numerics.philox import stream_seed


def uniform(shape: tuple[int, ...], seed: int, dtype: Any, device: str, low: float, high: float) -> Any:
    """U(low, high)."""
    weights = np.empty(shape, dtype)
    philox_numba.fill_uniform(weights.reshape(-1), 0, seed, low, high)
    return weights


def normal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, mean: float, std: float) -> Any:
    """N(mean, std²)."""
    weights = np.empty(shape, dtype)
    philox_numba.fill_normal(weights.reshape(-1), 0, seed, mean, std)
    return weights


def trunc_normal(
    shape: tuple[int, ...], seed: int, dtype: Any, device: str, mean: float, std: float, a: float, b: float
) -> Any:
    """N(mean, std²) within [a, b]."""
    weights = np.empty(shape, dtype)
    philox_numba.fill_truncated_normal(weights.reshape(-1), 0, seed, mean, std, a, b)
    return weights


def orthogonal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, gain: float, method: str) -> Any:
    """A Haar-distributed matrix (or its transpose) with orthonormal columns, times gain."""
    return haar.orthogonal(shape, dtype, method, gain, seed, _fill_normal_serially)


def delta_orthogonal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, gain: float) -> Any:
    """An orthogonal matrix at the centre of the kernel, 0 elsewhere."""
    return _placed.at_centre(shape, orthogonal(shape[:2], seed, dtype, device, gain, "auto"))


def sparse(shape: tuple[int, ...], seed: int, dtype: Any, device: str, sparsity: float, std: float) -> Any:
    """N(0, std²), but 0 in each column where the keys are smallest."""
    keys = uniform(shape, stream_seed(seed, "sparse"), np.dtype(np.float64), device, 0.0, 1.0)
    return _placed.zero_smallest(normal(shape, seed, dtype, device, 0.0, std), keys, sparsity)


def constant(shape: tuple[int, ...], dtype: Any, device: str, value: float) -> Any:
    """The value everywhere."""
    return np.full(shape, value, dtype)


def eye(shape: tuple[int, ...], dtype: Any, device: str, gain: float) -> Any:
    """`gain` on the main diagonal, 0 elsewhere."""
    return _placed.eye(shape, dtype, gain)


def dirac(shape: tuple[int, ...], dtype: Any, device: str, groups: int) -> Any:
    """1 at the centre of the kernel from input d to output d of each group, 0 elsewhere."""
    return _placed.dirac(shape, dtype, groups)


def _fill_normal_serially(out: Any, first: int, seed: int, mean: float, std: float) -> None:
    """On one thread: the normals of a matrix of which BLAS, whose threads wait busily, makes products in between."""
    with fused.serially():
        philox_numba.fill_normal(out, first, seed, mean, std)
