"""Activations, forward and backward: seconds, and the fraction of a copy's bandwidth that they reach."""

from __future__ import annotations

from ._bandwidth import add_bandwidth
from ._cases import timing_classes
from ._worktree import catalog

CLASSES = timing_classes(catalog.ACTIVATIONS, __name__)
for _row in catalog.ACTIVATIONS:
    add_bandwidth(CLASSES, _row)
globals().update(CLASSES)
