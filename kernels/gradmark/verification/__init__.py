"""Is every backend right on this machine? Each operation is compared with its definition, in ULP.

`verify` is what the command `gradmark verify` prints; the tests assert the same checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradmark import catalog
from gradmark.backends import DTYPES, Backend, backend
from gradmark.catalog import Activation, Gated, Initializer, Rowwise
from gradmark.verification.activations import check_activation
from gradmark.verification.check import Check
from gradmark.verification.gated import check_gated
from gradmark.verification.initializers import check_initializer
from gradmark.verification.orthogonal import check_orthogonal
from gradmark.verification.rowwise import check_rowwise
from gradmark.verification.stabilizers import check_stabilizer
from gradmark.workloads import TARGETS

__all__ = ["Check", "check_operation", "verify"]


def verify(operations: Sequence[str], targets: Sequence[str], dtypes: Sequence[str]) -> Iterator[Check]:
    """Compare operations with their references; the checks come as they are made.

    Parameters
    ----------
    operations : sequence of str
        Names of the catalog.
    targets : sequence of str
        Usable ones of `gradmark.workloads.TARGETS`.
    dtypes : sequence of str
        Names of dtypes; a backend that lacks one is not checked in it.

    Raises
    ------
    LookupError
        An unknown operation or target.
    BackendUnavailableError
        A target that cannot be used here.
    """
    rows = [catalog.operation(name) for name in operations]
    namespaces = {name: backend(TARGETS[name].backend, device=TARGETS[name].device) for name in targets}
    for row in rows:
        for target, namespace in namespaces.items():
            for dtype in dtypes:
                if dtype in DTYPES[TARGETS[target].backend]:
                    yield from check_operation(row, namespace, target, dtype)


def check_operation(row: catalog.Operation, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """All checks of one operation, in one backend and dtype."""
    if isinstance(row, Activation):
        return check_activation(row, namespace, target, dtype)
    if isinstance(row, Gated):
        return check_gated(row, namespace, target, dtype)
    if isinstance(row, Rowwise):
        return check_rowwise(row, namespace, target, dtype)
    if isinstance(row, Initializer):
        check = check_orthogonal if row.distribution == "orthogonal" else check_initializer
        return check(row, namespace, target, dtype)
    return check_stabilizer(row, namespace, target, dtype)
