"""One case: its contenders made, checked against ours, and timed in the same rounds; the result as a JSON entry."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import torch_peers
from .cases import AbsentError, Case, Data
from .contenders import NAIVE, NUMBA, NUMBA_OUT, NUMPY, PEERS, YARDSTICK, is_an_input, makers, same_values

SMALLEST_SHARE = 0.3
"""Seconds for the rounds of a case where making the contenders takes all the time."""


def timed_case(
    case: Case, missing: Mapping[str, str], *, share: float, left: float, tick: Callable[[], None]
) -> dict[str, Any] | None:
    """Time one case.

    Parameters
    ----------
    case : Case
    missing : mapping of str to str
        Contenders whose library is not installed, and why.
    share, left : float
        Seconds that it should and may take.
    tick : callable
        Called between rounds.

    Returns
    -------
    dict or None
        None where the fewest rounds did not fit. `over_numba` holds how many times the time of `gradmark numba` each
        contender takes: the median over the rounds, and its interval (null where one was given up, or has too few
        rounds since it came back).
        `eager_from_result`: torch's backward kernel was given what its forward pass has saved of the result.
    """
    from gradmark.tracking import measure as ruler

    began = time.perf_counter()
    data = Data(case)
    calls, absent = _made(data, missing)
    made = time.perf_counter() - began
    measurement = ruler.measure(
        calls, budget=max(share - made, SMALLEST_SHARE), limit=max(left - made, SMALLEST_SHARE), after_round=tick
    )
    if measurement.interrupted:
        raise KeyboardInterrupt
    if measurement.rounds < ruler.min_rounds():
        return None

    def ratio(slower: str, faster: str) -> dict[str, float | None] | None:
        times = measurement.seconds
        return _interval(ruler.compare(measurement, slower, faster)) if slower in times and faster in times else None

    return {
        "operation": case.operation,
        "variant": case.variant,
        "pass": case.operation_pass,
        "size": case.size,
        "dtype": case.dtype,
        "group": case.group,
        "elements": None if case.exponent is None else 2**case.exponent,
        "bytes_moved": data.bytes_moved,
        "beyond_cache": data.beyond_cache,
        "eager_from_result": torch_peers.starts_from_result(case),
        "absent": absent,
        "setup_seconds": made,
        "seconds": {
            name: {**_interval(ruler.median_interval(values)), "rounds": len(values)}
            for name, values in measurement.seconds.items()
        },
        "over_numba": {name: ratio(name, NUMBA) for name in measurement.seconds if name != NUMBA}
        if NUMBA in measurement.seconds
        else {},
        "naive_over_numpy": ratio(NAIVE, NUMPY),
        "yardstick_over_numba": ratio(YARDSTICK, NUMBA_OUT),
    }


def call_seconds() -> float | None:
    """What one call of a Numba kernel costs beside its work: relu of one number, with `out`; None without Numba."""
    import gradmark
    from gradmark.tracking import measure as ruler

    if gradmark.why_unusable("numba") is not None:
        return None
    import numpy as np

    x = np.ones(1, np.float32)
    call = functools.partial(gradmark.backend("numba").relu, x, out=np.empty_like(x))
    call()
    return ruler.median_interval(ruler.measure({"relu": call}, budget=1.0).seconds["relu"]).median


def _made(data: Data, missing: Mapping[str, str]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The calls, each made once already, and why others are not among them."""
    calls: dict[str, Callable[[], Any]] = {}
    absent: dict[str, str] = {}
    expected: Any = None
    for name, make in makers(data).items():
        if name in missing:
            absent[name] = missing[name]
            continue
        try:
            call = make(data)
            result = call()
        except AbsentError as error:
            absent[name] = str(error)
            continue
        except Exception as error:
            # One library that fails must cost neither the others nor the other operations.
            absent[name] = f"failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if expected is None and name in (NUMPY, NUMBA):
            expected = result
        if name in PEERS and is_an_input(data, result):
            absent[name] = "gives its input back, and makes no array"
            continue
        if name in PEERS and expected is not None and not same_values(data, result, expected):
            absent[name] = "gives other values"
            continue
        calls[name] = call
    return calls, absent


def _interval(interval: Any) -> dict[str, float | None]:
    # JSON has no infinity; and an interval that says nothing is none.
    known = math.isfinite(interval.high)
    return {
        "median": interval.median,
        "low": interval.low if known else None,
        "high": interval.high if known else None,
    }
