"""The errors that are gradmark's own. Wrong types are TypeError, wrong values ValueError, as in Python."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """A backend, or its device, cannot be used on this machine; the message says why and what would help."""


class NonFiniteError(ValueError):
    """Gradients to be clipped hold NaN or infinity; the message says which array."""
