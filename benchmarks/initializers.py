"""Initializers on large matrices, and how orthogonal their orthogonal matrices are."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ._cases import TARGETS, NotHere, TimedOnce, installed, timing_classes
from ._cases import SkipNotImplemented as _Skip
from ._worktree import catalog, workloads

CLASSES = timing_classes(catalog.INITIALIZERS, __name__, TimedOnce)
globals().update(CLASSES)


@functools.cache
def _orthogonal(target_name: str, n: int) -> np.ndarray:
    try:
        namespace, target = workloads.open_target(installed(), target_name)
        workload = workloads.Workload(operation="orthogonal", operation_pass=catalog.FORWARD, size=f"{n}x{n}")
        matrix: Any = workload.prepare(namespace, target).call()
    except workloads.UnavailableError as error:
        raise _Skip(str(error)) from error
    return np.asarray(matrix.cpu() if target.backend == "torch" else matrix, dtype=np.float64)


class Orthogonality:
    """‖QᵀQ - I‖_F / (n ε), ε of float32, evaluated in float64: the error of a draw, which depends on no clock.

    Householder QR keeps ‖QᵀQ - I‖_F of the order of n ε (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 19.3), so that values near 1 or below are what the method can give.
    """

    version = "1"
    params = (TARGETS, [512, 2048])
    param_names = ("target", "n")
    unit = "n eps"
    timeout = 120.0
    skip_params = NotHere(_orthogonal)

    def track_error(self, target: str, n: int) -> float:
        """The error of the matrix that seed 1 gives."""
        q = _orthogonal(target, n)
        return float(np.linalg.norm(q.T @ q - np.eye(n)) / (n * np.finfo(np.float32).eps))
