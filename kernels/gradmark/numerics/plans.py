"""What an operation on whole rows is: a `Plan` of scalar functions, and what every loop makes of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types

from gradmark.numerics.elementary import inlined
from gradmark.numerics.functions import Elementary

Function = Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """An operation: scalar functions of the elements a and b of its one or two input arrays, for one dtype.

    A forward pass has one array and a peak, the largest logit of the row. `high` and `low` are a number of the row as
    a sum of two floats: `start` while the first sums are formed, then what `found` made of the sums.
    """

    term: Function
    """(a, b, e, peak, high, low) -> what is summed, float64."""
    found: Function
    """(total, rest, count, peak) -> high, low in float64, from the sum (with its rounding error) and the count."""
    value: Function
    """(a, b, e, peak, high, low) -> the result."""
    padding: float = 0.0
    """An element of a and b that adds nothing: in a forward pass, one whose logit is -inf."""
    logit: Function | None = None
    """a -> the logit; None for a backward pass."""
    kept: Function | None = None
    """(a, b, peak) -> e, kept in place of the result from the sums to the values; 0 where there is none."""
    counted: Function | None = None
    """(a, b, peak, high, low) -> whether the element counts."""
    largest_term: float | None = None
    """A bound of the terms, where there is one. In float64 their sum is then exact but for terms below 2^-30 of it."""
    start: float = 0.0
    repeats: bool = False
    """Sums are formed again with the new high and low, until the count no longer falls."""


def known_of(plan: Plan, m: Elementary) -> Function:
    """What `found` makes of sums, as a sum of two floats of the dtype."""
    found, real = inlined(plan.found), np.dtype(m.dtype).type

    @inlined
    def known(total: Any, rest: Any, count: Any, peak: Any) -> Any:
        wide, wide_rest = found(total, rest, count, peak)
        high = real(wide)
        return high, real((wide - np.float64(high)) + wide_rest)

    return known


@inlined
def two_sum(total: Any, rest: Any, part: Any) -> Any:
    """total + rest + part as such a pair."""
    longer = total + part
    back = longer - total
    return longer, rest + ((total - (longer - back)) + (part - back))


def array_types(dtype: str) -> tuple[Any, Any]:
    """A read-only array (a writeable one is accepted too) and a writeable array."""
    scalar = getattr(types, dtype)
    return types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")
