"""NumPy arrays of any layout as contiguous 1-d ones, and results back into theirs."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_dense(array: Any) -> bool:
    """C-contiguous and aligned."""
    return bool(array.flags.c_contiguous and array.flags.aligned)


def contiguous(array: Any) -> Any:
    """The array, or a copy that is C-contiguous and aligned."""
    return array if is_dense(array) else np.require(array, requirements=["C", "A"])


def flattened(*arrays: Any, order: str = "any") -> list[Any]:
    """The arrays as contiguous 1-d ones, elements in the same order; without a copy where all of them are dense.

    Parameters
    ----------
    arrays : array
        Of one shape. The last is an output: where it is not dense, it has a new array in its place; see `delivered`.
    order : str
        "C", or "any": Fortran's order is taken as well, where all have it.
    """
    # A list, not a generator: this runs in every call, and a generator costs more than the checks. `carray`, which asks
    # for writeable as well, is one access.
    if all([a.flags.carray or is_dense(a) for a in arrays]):  # noqa: C419
        return [a if a.ndim == 1 else a.reshape(-1) for a in arrays]
    if order == "any" and all(a.flags.f_contiguous and a.flags.aligned for a in arrays):
        return [a.T.reshape(-1) for a in arrays]
    *inputs, out = arrays
    flat_out = out.reshape(-1) if is_dense(out) else np.empty(out.size, out.dtype)
    return [*(contiguous(a).reshape(-1) for a in inputs), flat_out]


def delivered(out: Any, flat_out: Any) -> Any:
    """`out`, into which the result is copied where `flattened` made an array for it."""
    if is_copy(out, flat_out):
        out[...] = flat_out.reshape(out.shape)
    return out


def is_copy(out: Any, flat_out: Any) -> bool:
    """Whether `flattened` made an array in the place of `out`."""
    return flat_out.base is None and flat_out is not out
