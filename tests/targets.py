"""What tests of several targets share."""

import pytest

import gradmark
from gradmark.workloads import TARGETS

INEXACT_PEERS = {
    "celu": "F.relu(x) + alpha * torch.expm1(x.clamp(max=0) / alpha)",
    "hard_sigmoid": "F.relu6(x + 3) / 6",
}
"""Activations whose peer torch differentiates with less than float64, and the same function without it.

The derivatives of F.celu and F.hardsigmoid have the float32 nearest to 1/alpha and to 1/6 (torch 2.13.0).
"""


def exact_peer(row):
    """The peer of an activation, as an expression that torch differentiates with all digits of float64."""
    return INEXACT_PEERS.get(row.name, row.peer)


def namespace_of(target):
    """The namespace of a target; where it cannot be used here, the test is skipped with the reason."""
    backend, device = TARGETS[target].backend, TARGETS[target].device
    reason = gradmark.why_unusable(backend, device)
    if reason is not None:
        pytest.skip(reason)
    return gradmark.backend(backend, device=device)
