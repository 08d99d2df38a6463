"""What a comparison with the reference is: one `Check`; and what its makers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradmark import reference
from gradmark.backends import Backend
from gradmark.catalog import Activation, Gated, Pass, Rowwise, Stabilizer


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of a backend with the reference.

    Attributes
    ----------
    operation, operation_pass, target, dtype : str
        What was compared. The pass is "forward", "backward", or "backward (parameter)"; of an orthogonal weight also
        "forward (method)", its orthogonality, and "values" or "values (method)", its distance from the exact matrix.
    worst : float
        The largest error, in `unit`; inf where NaN or infinity stood against a number.
    allowed : float
        The largest error that the contract allows.
    where : str
        The input with the largest error.
    unit : str
        What the error counts in, such as "ULP".
    note : str
        Where the backend's contract is weaker than the row's, and why.
    """

    operation: str
    operation_pass: str
    target: str
    dtype: str
    worst: float
    allowed: float
    where: str
    unit: str = "ULP"
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the worst error is allowed; NaN is not."""
        return self.worst <= self.allowed


def allowed(row: Activation | Gated | Rowwise | Stabilizer, operation_pass: Pass, dtype: str) -> float:
    """The largest error that the row allows in a dtype. Half precision is one rounding of the float32 result."""
    if dtype in ("float32", "float64"):
        return row.ulp[operation_pass]
    lost_bits = reference.MANTISSA_BITS["float32"] - reference.MANTISSA_BITS[dtype]
    return 0.5 + row.ulp[operation_pass] * 2.0**-lost_bits + 0.01


def to_backend(namespace: Backend, values: Any, dtype: str) -> Any:
    """float64 numbers as an array of the backend, on its device."""
    if namespace.name != "torch":
        return np.asarray(values).astype(dtype)
    import torch

    return torch.from_numpy(np.array(values)).to(dtype=getattr(torch, dtype), device=namespace.device)


def from_backend(array: Any) -> Any:
    """An array of a backend as float64 numbers."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    return array.double().cpu().numpy()
