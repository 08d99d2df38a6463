"""What `gradmark.gelu(x)` costs beside the direct call `gradmark.backend("numba").gelu(x)`, on a small array.

    python -m benchmarks.dispatch_cost [--elements 100] [--budget 60s]

Both are timed in turn, round by round (`gradmark.tracking.measure`); the cost is the median over the rounds of the
difference within a round, with its interval. The profile of this machine and GRADMARK_BACKEND are not looked at.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

FUNCTIONS = ("gelu", "gelu_backward")


class Pair(NamedTuple):
    """A dispatched call and the direct one that it is compared with."""

    name: str
    dispatched: Callable[[], Any]
    direct: Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table; the exit code is 0."""
    from gradmark import console

    options = _parser().parse_args(arguments)
    pairs = list(_pairs(options.elements))
    table = console.grid("call", "direct", "dispatched", "difference", "99 % interval")
    for pair in pairs:
        table.add_row(pair.name, *_measured(pair, options.budget / len(pairs)))
    console.stdout().print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    from gradmark import console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=100, help="of the array (default: 100)")
    parser.add_argument("--budget", type=console.duration, default=60.0, help="time for all (default: 60s)")
    return parser


def _pairs(elements: int) -> Iterator[Pair]:
    import numpy as np

    import gradmark
    from gradmark import dispatch

    dispatch.read_nothing()
    array = np.linspace(-3.0, 3.0, elements, dtype=np.float32)
    for name in FUNCTIONS:
        arrays = (array,) * (1 + name.endswith("_backward"))
        dispatched, numba = getattr(gradmark, name), getattr(gradmark.backend("numba"), name)
        yield Pair(f"{name}, array by numba", functools.partial(dispatched, *arrays), functools.partial(numba, *arrays))
        if gradmark.why_unusable("torch") is not None:
            continue
        import torch

        tensors = tuple(map(torch.from_numpy, arrays))
        through_torch = functools.partial(getattr(gradmark.backend("torch"), name), *tensors)
        yield Pair(
            f"{name}, tensor by numba", functools.partial(dispatched, *tensors), functools.partial(numba, *arrays)
        )
        yield Pair(f"{name}, tensor by torch", functools.partial(dispatched, *tensors, backend="torch"), through_torch)
        yield Pair(f"{name}, array by torch", functools.partial(dispatched, *arrays, backend="torch"), through_torch)


def _measured(pair: Pair, budget: float) -> tuple[str, str, str, str]:
    """Times of both and their difference, in nanoseconds, as text."""
    from gradmark.tracking import measure

    calls = {"direct": pair.direct, "dispatched": pair.dispatched}
    for call in calls.values():
        call()
    found = measure.measure(calls, budget=budget, limit=10 * budget, hopeless=float("inf"))
    direct, dispatched = found.by_round("direct"), found.by_round("dispatched")
    difference = measure.median_interval([1e9 * (dispatched[one] - direct[one]) for one in direct if one in dispatched])
    medians = [1e9 * measure.median_interval(list(rounds.values())).median for rounds in (direct, dispatched)]
    return (
        *(f"{median:.0f} ns" for median in medians),
        f"{difference.median:+.0f} ns",
        f"{difference.low:+.0f} to {difference.high:+.0f} ns",
    )


if __name__ == "__main__":
    sys.exit(main())
