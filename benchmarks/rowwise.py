"""Softmax and its kin, forward and backward, along the last axis of square matrices."""

from __future__ import annotations

from ._cases import timing_classes
from ._worktree import catalog

CLASSES = timing_classes(catalog.ROWWISE, __name__)
globals().update(CLASSES)
