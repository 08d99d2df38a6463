"""What the tests of the stabilizers share: arrays for every backend, and errors counted in ULP of a stated scale."""

from __future__ import annotations

import numpy as np
import torch

import gradmark
from gradmark import catalog
from gradmark.backends import DTYPES
from gradmark.reference import MANTISSA_BITS, SMALLEST_EXPONENT

FULL_PRECISION = [(name, dtype) for name in gradmark.BACKENDS for dtype in ("float32", "float64")]
HALF_PRECISION = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes if "16" in dtype]


class Arrays:
    """NumPy arrays in and out of a backend: float64 values, rounded to a dtype on the way in."""

    def __init__(self, name: str, dtype: str = "float64") -> None:
        self.name = name
        self.dtype = dtype
        self.backend = gradmark.backend(name)
        self.statistics = "float64" if dtype == "float64" else "float32"

    def __call__(self, values, dtype=None):
        """The values as an array of the backend, with its strides kept (unless torch has no such strides)."""
        if values is None:
            return None
        values, dtype = np.asarray(values), dtype or self.dtype
        if self.name == "torch":
            values = np.ascontiguousarray(values) if min(values.strides, default=0) < 0 else values
            with_strides = torch.from_numpy(values) if values.flags.writeable else torch.from_numpy(values.copy())
            return with_strides.to(getattr(torch, dtype))
        with np.errstate(over="ignore"):  # half precision ends at 65504
            return values if values.dtype == dtype else values.astype(dtype)


def to_numpy(array):
    """As NumPy; bfloat16, which NumPy lacks, as float32."""
    if isinstance(array, torch.Tensor):
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def exact(array):
    """The array's values, exactly, in extended precision."""
    return to_numpy(array).astype(np.longdouble)


def worst_ulp(result, expected, scale, dtype: str) -> float:
    """The largest |result - expected| in ULP of `dtype` at max(|expected|, scale)."""
    result, expected = exact(result), np.asarray(expected, np.longdouble)
    assert result.shape == expected.shape
    assert np.isfinite(result).all()
    size = np.maximum(np.abs(expected), np.broadcast_to(np.asarray(scale, np.longdouble), expected.shape))
    exponent = np.maximum(np.frexp(size)[1] - 1, SMALLEST_EXPONENT[dtype])
    spacing = np.ldexp(np.longdouble(1), exponent - MANTISSA_BITS[dtype])
    return float((np.abs(result - expected) / spacing).max(initial=0.0))


def tolerance(name: str, operation_pass: str) -> float:
    row = catalog.operation(name)
    assert isinstance(row, catalog.Stabilizer)
    return row.ulp[operation_pass]


def bits(array) -> bytes:
    return to_numpy(array).tobytes()
