"""Refuses to import the suite while an operation of the catalog has a pass that nobody times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import activations, gated, initializers, rowwise, stabilizers
from ._cases import timed_passes
from ._worktree import catalog


def untimed(operations: Mapping[str, Any], classes: Mapping[str, type]) -> list[str]:
    """Operation and pass of everything in the catalog that has no benchmark."""
    missing = []
    for name, row in operations.items():
        passes = [catalog.FORWARD] if row.family == "initializers" else catalog.PASSES
        own = [cls for cls in classes.values() if cls.operation == name]
        missing += [f"{name} {p}" for p in passes if not any(p in timed_passes(cls) for cls in own)]
    return missing


_CLASSES = {
    f"{module.__name__}.{name}": cls
    for module in (activations, gated, rowwise, initializers, stabilizers)
    for name, cls in module.CLASSES.items()
}
_MISSING = untimed(catalog.OPERATIONS, _CLASSES)
if _MISSING:
    raise ImportError(f"no benchmark for: {', '.join(_MISSING)}")
