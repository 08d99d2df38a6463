"""Where weights stand: what the backends that make NumPy arrays share of initializers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def eye(shape: tuple[int, ...], dtype: Any, gain: float) -> Any:
    """`gain` on the main diagonal, 0 elsewhere."""
    weights = np.zeros(shape, dtype)
    np.fill_diagonal(weights, gain)
    return weights


def dirac(shape: tuple[int, ...], dtype: Any, groups: int) -> Any:
    """1 at the centre of the kernel from input d to output d of each group, 0 elsewhere."""
    weights = np.zeros(shape, dtype)
    outputs = shape[0] // groups
    inputs = np.arange(min(outputs, shape[1]))
    centre: tuple[Any, ...] = tuple(length // 2 for length in shape[2:])
    for group in range(groups):
        weights[(group * outputs + inputs, inputs, *centre)] = 1.0
    return weights


def at_centre(shape: tuple[int, ...], matrix: Any) -> Any:
    """The matrix (out, in) at the centre of the kernel, 0 elsewhere."""
    weights = np.zeros(shape, matrix.dtype)
    centre: tuple[Any, ...] = tuple((length - 1) // 2 for length in shape[2:])
    weights[(slice(None), slice(None), *centre)] = matrix
    return weights


def zero_smallest(weights: Any, keys: Any, sparsity: float) -> Any:
    """The weights, but 0, in place, in each column where the keys are smallest."""
    # Of equal keys, the first row's is the smaller.
    order = np.argsort(keys, axis=0, kind="stable")
    np.put_along_axis(weights, order[: math.ceil(sparsity * len(weights))], 0.0, axis=0)
    return weights
