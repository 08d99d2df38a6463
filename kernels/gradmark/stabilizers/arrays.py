"""What the stabilizers of both NumPy-array backends share outside of their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def parameter_gradients(weight: Any, sum_grad_xhat: Any, sum_grad: Any) -> tuple[Any, Any]:
    """The gradients of weight and bias in the dtype of the weight; none without a weight."""
    if weight is None:
        return None, None
    return sum_grad_xhat.astype(weight.dtype), sum_grad.astype(weight.dtype)


def moving_average(running: Any, value: Any, momentum: float) -> Any:
    """The running statistic after this batch, in its dtype; None where none is kept."""
    if running is None:
        return None
    return ((1.0 - momentum) * running.astype(np.float64) + momentum * value).astype(running.dtype)


def outputs(grads: Sequence[Any], out: list[Any] | None) -> list[Any]:
    """The arrays to write to: those given, or new ones like the gradients."""
    return [np.empty_like(g, subok=False) for g in grads] if out is None else out
