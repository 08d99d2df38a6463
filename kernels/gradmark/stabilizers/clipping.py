"""The scalar arithmetic of clipping by the global norm, which all backends share.

A backend gives two reductions over a list of arrays; what is decided from their results is decided here, so that
every backend clips by the same coefficient and rejects the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gradmark.errors import NonFiniteError

EPSILON = 1e-6
"""Added to the norm before the division, as torch.nn.utils.clip_grad_norm_ does."""
SMALLEST_SUM = math.ldexp(1.0, -900)
"""Below this sum of squares, float64 may have lost squares that matter (they underflow below 2^-1022)."""
LARGEST_SHIFT = 1000
"""Powers of two up to this one, and their inverses, are normal numbers of float64."""


class Factors(NamedTuple):
    """dg = cotangent · v - projection · (g · scale)."""

    cotangent: float
    projection: float


def global_norm(
    square_sums: Callable[[float], Sequence[float]],
    largest: Callable[[], Sequence[float]],
) -> float:
    """√Σ g² over all arrays.

    Parameters
    ----------
    square_sums : callable
        scale -> Σ (g · scale)² in float64, of the arrays or other parts of the whole.
    largest : callable
        max |g| of each array, 0 of an empty one; NaN where the array holds NaN.

    Raises
    ------
    NonFiniteError
        An array holds NaN or infinity, or the norm is beyond float64.
    """
    total = sum(square_sums(1.0))
    if SMALLEST_SUM <= total < math.inf:
        return math.sqrt(total)
    # All zero, not finite, or squares beyond float64: decided by a second look, which is rare.
    peaks = largest()
    check_finite(peaks)
    peak = max(peaks, default=0.0)
    if peak == 0.0:
        return 0.0
    scale = normalizing_power(peak)
    norm = math.sqrt(sum(square_sums(scale))) / scale
    if math.isinf(norm):
        raise NonFiniteError("the norm of grads is beyond the largest float64; scale the loss down")
    return norm


def check_finite(peaks: Sequence[float]) -> None:
    """Raise NonFiniteError, naming the arrays, unless max |g| of every array is finite."""
    bad = [
        f"grads[{i}] ({'NaN' if math.isnan(peak) else 'infinity'})"
        for i, peak in enumerate(peaks)
        if not math.isfinite(peak)
    ]
    if bad:
        named = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise NonFiniteError(
            f"not finite: {named}; clipping takes finite gradients only (skip this step, or scale the loss down)"
        )


def coefficient(norm: float, max_norm: float) -> float:
    """min(1, max_norm / (norm + 1e-6))."""
    return min(1.0, max_norm / (norm + EPSILON))


def normalizing_power(value: float) -> float:
    """The power of two that brings `value` > 0 near 1; 1 for 0. Products with it are exact."""
    exponent = -math.frexp(value)[1]
    return math.ldexp(1.0, max(-LARGEST_SHIFT, min(LARGEST_SHIFT, exponent)))


def backward_factors(norm: float, max_norm: float, scale: float, dot: float) -> Factors:
    """The factors of the backward pass where the norm was clipped; `dot` is Σ v · (g · scale).

    y = c g with c = M / (n + δ) and ∂n/∂g = g / n, hence dg = c v - c / (n (n + δ)) <v, g> g.
    """
    c = coefficient(norm, max_norm)
    if norm == 0.0:
        # g = 0: the second term is 0, as with the subgradient 0 of the norm at 0.
        return Factors(c, 0.0)
    normalized = norm * scale
    return Factors(c, c * (norm / (norm + EPSILON)) * (dot / normalized) / normalized)
