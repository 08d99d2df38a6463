"""From workloads to asv classes: one class an operation, one method a pass, parameters target and size.

asv_runner 0.3.2 decides three things here, see its benchmarks/time.py:

- With a `setup` hook it times single calls (`number` = 1). So there is none: the inputs are built when it asks
  whether a combination of parameters is to be skipped, which it does before the clock starts.
- Were they built in the first call instead, that call would be longer than `sample_time` and end the search for
  `number` at 1.
- It calls `timer` before and after a burst of `number` calls. With CUDA the timer waits for the device, so that the
  burst is timed until its last kernel has finished, not until it is launched.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from asv_runner.benchmarks.mark import SkipNotImplemented

from ._worktree import catalog, workloads

TARGETS = list(workloads.TARGETS)
class_name = workloads.class_name
CPU_TARGETS = [name for name, target in workloads.TARGETS.items() if target.device == "cpu"]


@functools.cache
def prepared(workload: Any, target_name: str) -> Any:
    """The workload, ready to be called on the installed gradmark, and called once; SkipNotImplemented says why not."""
    ready = opened(workload, target_name)
    ready.call()  # compiles, and touches every page
    ready.synchronize()
    return ready


@functools.cache
def opened(workload: Any, target_name: str) -> Any:
    """As `prepared`, but never called: of what takes minutes a call, another size has to do for compiling."""
    try:
        namespace, target = workloads.open_target(installed(), target_name)
        ready = workload.prepare(namespace, target)
    except workloads.UnavailableError as error:
        raise SkipNotImplemented(str(error)) from error
    _synchronize.add(ready.synchronize)
    return ready


def installed() -> Any:
    """The package gradmark of the commit that is being timed."""
    try:
        return importlib.import_module("gradmark")
    except ImportError as error:
        raise workloads.UnavailableError(f"this commit has no package gradmark: {error}") from error


_synchronize: set[Callable[[], None]] = set()


def clock() -> float:
    """Seconds, read when every device that a workload was prepared for has finished."""
    for synchronize in _synchronize:
        synchronize()
    return time.perf_counter()


class NotHere:
    """The combinations of parameters that cannot run here; asking builds the inputs of those that can.

    asv_runner looks each combination up in `skip_params` before it starts the clock.
    """

    def __init__(self, prepare: Callable[..., Any]) -> None:
        self._prepare = prepare
        self._reasons: dict[tuple[Any, ...], str | None] = {}

    def __contains__(self, parameters: tuple[Any, ...]) -> bool:
        if parameters not in self._reasons:
            try:
                self._prepare(*parameters)
                self._reasons[parameters] = None
            except SkipNotImplemented as reason:
                self._reasons[parameters] = str(reason)
                print(f"n/a: {reason}")  # noqa: T201 (asv shows it with --show-stderr)
        return self._reasons[parameters] is not None


class Timed:
    """What all timings share.

    Two rounds are two processes: what one draws once (addresses, the order of compilation) is not mistaken for a
    difference between commits. Bursts of at least `sample_time` keep the clock's resolution and the loop out of it.
    A call that takes longer than `repeat` allows is timed once a round: `prepared` has already warmed it up.
    """

    rounds = 2
    repeat = (1, 10, 0.2)
    min_run_count = 1
    sample_time = 0.01
    warmup_time = 0.03
    timeout = 120.0

    def timer(self) -> float:
        """The clock that asv reads before and after a burst."""
        return clock()


class TimedOnce(Timed):
    """Calls of tenths of seconds and more: one round, since the second would cost more than it tells."""

    rounds = 1
    repeat = (1, 5, 0.5)


def timing_classes(rows: Iterable[Any], module: str, base: type = Timed) -> dict[str, type]:
    """Classes such as Gelu with time_forward and time_backward, by name, for the rows of one family."""
    classes = {}
    for row in rows:
        of_row = workloads.of_row(row)
        for variant in dict.fromkeys(workload.variant for workload in of_row):
            name = class_name(row.name, variant)
            classes[name] = _timing_class(name, module, base, row, [w for w in of_row if w.variant == variant])
    return classes


def timed_passes(cls: type) -> list[str]:
    """The passes that a class times."""
    return [operation_pass for operation_pass in catalog.PASSES if hasattr(cls, f"time_{operation_pass}")]


def _timing_class(name: str, module: str, base: type, row: Any, row_workloads: Sequence[Any]) -> type:
    by_pass: dict[str, dict[str, Any]] = {}
    for workload in row_workloads:
        by_pass.setdefault(workload.operation_pass, {})[workload.size] = workload
    sizes = list(dict.fromkeys(workload.size for workload in row_workloads))
    methods = {f"time_{p}": _time(p, by_size, row, sizes) for p, by_size in by_pass.items()}
    doc = f"{row.name}: {row.formula}."
    return type(name, (base,), {"__module__": module, "__doc__": doc, "operation": row.name, **methods})


def _time(operation_pass: str, by_size: dict[str, Any], row: Any, sizes: list[str]) -> Callable[..., None]:
    calls: dict[tuple[str, str], Callable[[], Any]] = {}

    def prepare(target: str, size: str) -> Callable[[], Any]:
        calls[target, size] = prepared(by_size[size], target).call
        return calls[target, size]

    def time(self: Any, target: str, size: str) -> None:
        # One look-up: hashing a workload in every call would be a part of what a kernel of microseconds takes.
        (calls.get((target, size)) or prepare(target, size))()

    return benchmark(time, f"time_{operation_pass}", row, [TARGETS, sizes], ["target", "size"], prepare)


def benchmark(
    function: Callable[..., Any],
    name: str,
    row: Any,
    params: list[list[Any]],
    param_names: list[str],
    prepare: Callable[..., Any],
) -> Callable[..., Any]:
    """`function` as asv wants a benchmark. Its version is the row's, where asv would take a hash of this file."""
    function.__name__ = name
    function.__qualname__ = name
    function.__doc__ = f"{row.name}: {row.formula}."
    function.version = str(row.version)
    function.params = params
    function.param_names = param_names
    function.skip_params = NotHere(prepare)
    return function
