"""Numba's compilation before the measurements, on all cores, so that it is in no time and waits for nobody.

The machine code comes to this process by the cache on disk: see `gradmark.numerics.compile_cache`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gradmark
from gradmark import catalog, workloads
from gradmark.workloads import Workload

LARGEST = 2**20
"""Elements up to which a call is worth its time here. A loop that is only used beyond the last-level cache is compiled
when its turn comes: few runs get there."""

DEAR_FAMILIES = ("rowwise", "stabilizers")
"""Compiled last: a kernel of theirs takes about five seconds of a core, ten times what one of the others takes, and the
time may not suffice for all."""

_POLL_SECONDS = 0.2


@dataclass(slots=True)
class Compilation:
    """What was compiled, or found in the cache.

    Attributes
    ----------
    seconds : dict of Workload to float
        Of each kernel (a workload without its size) the time that its compilation took; 0 where it was in the cache.
    processes : int
        How many compiled at a time.
    elapsed : float
        Seconds, as the clock on the wall has them.
    """

    seconds: dict[Workload, float] = field(default_factory=dict)
    processes: int = 1
    elapsed: float = 0.0


def kernel_of(workload: Workload) -> Workload:
    """What is compiled for a workload: the same machine code serves all sizes."""
    return dataclasses.replace(workload, size="")


def compile_ahead(
    planned: Sequence[Workload],
    *,
    deadline: float,
    processes: int,
    before: Callable[[Workload], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> Compilation:
    """Compile what these workloads need of Numba, one process a core as soon as something is not in the cache.

    Parameters
    ----------
    planned : sequence of Workload
    deadline : float
        The time.perf_counter() at which it ends, whatever is left. That is compiled when its turn comes.
    processes : int
        How many may compile at a time.
    before : callable, optional
        Called with each workload that was compiled.
    tick : callable, optional
        Called in between, for a display of the time left.
    """
    began, found = time.perf_counter(), Compilation()
    try:
        import numba  # noqa: F401
    except (ImportError, OSError):
        # Installed, but it does not fit another library: each workload says so when its turn comes.
        return found
    by_kernel: dict[Workload, list[Workload]] = {}
    for workload in planned:
        if workload.elements <= LARGEST or kernel_of(workload) not in by_kernel:
            by_kernel.setdefault(kernel_of(workload), []).append(workload)
    waiting = sorted(by_kernel.items(), key=lambda item: catalog.operation(item[0].operation).family in DEAR_FAMILIES)
    while waiting and time.perf_counter() < deadline:
        kernel, of_kernel = waiting.pop(0)
        found.seconds[kernel] = compile_all(of_kernel)
        if before is not None:
            before(of_kernel[0])
        if found.seconds[kernel] > 0 and min(processes, len(waiting)) > 1 and _cache_is_writable():
            found.processes = min(processes, len(waiting))
            for done, seconds in _in_processes(waiting, found.processes, deadline, tick):
                found.seconds[done] = seconds
                if before is not None:
                    before(done)
            break
    found.elapsed = time.perf_counter() - began
    return found


def compile_all(of_kernel: Sequence[Workload]) -> float:
    """Call each of the workloads once; gives the seconds that Numba compiled meanwhile."""
    with compiling() as spent:
        for workload in of_kernel:
            # What fails here fails again when it is to be measured, and is reported there.
            with contextlib.suppress(Exception):
                namespace, target = workloads.open_target(gradmark, "numba")
                workload.prepare(namespace, target).call()
    return spent[0]


@contextlib.contextmanager
def compiling() -> Iterator[list[float]]:
    """Counts the seconds that Numba compiles meanwhile; what it loads from the cache is not compiled."""
    from numba.core import event

    spent = [0.0]
    with event.install_timer("numba:compile", lambda seconds: spent.__setitem__(0, seconds)):
        yield spent


def _in_processes(
    waiting: Sequence[tuple[Workload, list[Workload]]],
    processes: int,
    deadline: float,
    tick: Callable[[], None] | None,
) -> Iterator[tuple[Workload, float]]:
    # Not forked: OpenMP's threads do not survive it.
    pool = multiprocessing.get_context("spawn").Pool(processes, initializer=_leave_interrupts_to_the_parent)
    try:
        results = pool.imap_unordered(_compile_one, waiting)
        while time.perf_counter() < deadline:
            try:
                yield results.next(timeout=_POLL_SECONDS)
            except multiprocessing.TimeoutError:
                pass
            except StopIteration:
                return
            if tick is not None:
                tick()
    finally:
        pool.terminate()
        pool.join()


def _compile_one(item: tuple[Workload, list[Workload]]) -> tuple[Workload, float]:
    kernel, of_kernel = item
    return kernel, compile_all(of_kernel)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cache_is_writable() -> bool:
    """Whether machine code of another process can come here: otherwise each has to compile for itself."""
    from gradmark.numerics import compile_cache

    folder: Path = compile_cache.folder()
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
