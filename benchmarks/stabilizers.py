"""Stabilizers, forward and backward: batch norm, gradient clipping, residual add."""

from __future__ import annotations

from ._cases import timing_classes
from ._worktree import catalog

CLASSES = timing_classes(catalog.STABILIZERS, __name__)
globals().update(CLASSES)
