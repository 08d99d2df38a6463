"""What tests of several targets share."""

import pytest

import gradmark
from gradmark.workloads import TARGETS


def namespace_of(target):
    """The namespace of a target; where it cannot be used here, the test is skipped with the reason."""
    backend, device = TARGETS[target].backend, TARGETS[target].device
    reason = gradmark.why_unusable(backend, device)
    if reason is not None:
        pytest.skip(reason)
    return gradmark.backend(backend, device=device)
