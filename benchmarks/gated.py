"""Gated units, forward and backward, with the gate in the half where each has it by default."""

from __future__ import annotations

from ._cases import timing_classes
from ._worktree import catalog

CLASSES = timing_classes(catalog.GATED, __name__)
globals().update(CLASSES)
