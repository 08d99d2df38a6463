"""The errors and warnings that are gradmark's own. Wrong types are TypeError, wrong values ValueError, as in Python."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """A backend, or its device, cannot be used on this machine; the message says why and what would help."""


class NonFiniteError(ValueError):
    """Gradients to be clipped hold NaN or infinity; the message says which array."""


class ProfileError(RuntimeError):
    """A profile of `gradmark choose` cannot be read or written; the message says which file, why, and what to do."""


class ProfileWarning(UserWarning):
    """A profile of `gradmark choose` is there but not used; the message says why, and what to do."""
