"""Peak memory of a process that builds the inputs of a workload and runs it: temporaries show as steps.

The libraries that asv's fork server has imported are part of it, the same in every row. A CUDA kernel's memory is
not in a process's resident set, so only CPU targets are here. `prepared` runs the workload once; that is all it takes.
"""

from __future__ import annotations

from typing import Any

from ._cases import CPU_TARGETS, NotHere, prepared
from ._worktree import catalog, workloads

_OPERATIONS = ["gelu", *(row.name for row in catalog.ACTIVATIONS if row.learnable), "batch_norm", "clip_grad_norm"]
"""A fixed activation, those whose backward reduces over the array, and the stabilizers that need two passes."""


def _largest(operation: str, operation_pass: str) -> Any:
    return next(
        workload
        for workload in reversed(workloads.of_row(catalog.operation(operation)))
        if workload.operation_pass == operation_pass
    )


def _forward(operation: str, target: str) -> Any:
    return prepared(_largest(operation, catalog.FORWARD), target)


def _backward(operation: str, target: str) -> Any:
    return prepared(_largest(operation, catalog.BACKWARD), target)


def _matrix(target: str) -> Any:
    workload = workloads.Workload(operation="orthogonal", operation_pass=catalog.FORWARD, size="2048x2048")
    return prepared(workload, target)


class _Peak:
    version = "1"
    timeout = 120.0


class Forward(_Peak):
    """Forward passes at the largest timed size."""

    params = (_OPERATIONS, CPU_TARGETS)
    param_names = ("operation", "target")
    skip_params = NotHere(_forward)

    def peakmem_forward(self, operation: str, target: str) -> None:
        """Bytes."""
        _forward(operation, target)


class Backward(_Peak):
    """Backward passes at the largest timed size."""

    params = Forward.params
    param_names = Forward.param_names
    skip_params = NotHere(_backward)

    def peakmem_backward(self, operation: str, target: str) -> None:
        """Bytes."""
        _backward(operation, target)


class Orthogonal(_Peak):
    """An orthogonal matrix of 2048×2048."""

    params = (CPU_TARGETS,)
    param_names = ("target",)
    skip_params = NotHere(_matrix)

    def peakmem_orthogonal(self, target: str) -> None:
        """Bytes."""
        _matrix(target)
