"""`gradmark choose`: the fastest backend of every operation on this machine, at every size, within a budget of time.

The workloads are the suite's own, at named sizes and at any number of elements. What the budget does not allow is
reported as not measured, never left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import gradmark
from gradmark import backends, catalog, workloads
from gradmark.profiles import PLACES, Place
from gradmark.tracking import compile_ahead, curves, machine
from gradmark.tracking import measure as ruler
from gradmark.workloads import Target, UnavailableError, Workload

MATRIX = {"orthogonal": "512x512", "delta_orthogonal": "512x512x3", "dirac": "512x512x3"}
"""Sizes of initializers here where sizes are names. The suite's own (up to 4096x4096) cost seconds a call, and ten
calls are needed."""

OTHER_MATRIX = "1024x1024"

LARGEST_ORTHOGONAL = 2**18
"""Elements of an orthogonal matrix where sizes are numbers: its time grows as their number to the power of 1.5."""

RESERVE_SECONDS = 2.0
"""Kept free at the end: no call can be broken off once it runs."""

FIRST_SETUP_SECONDS = 1.0
"""What preparing a workload is taken to cost until one was prepared: about a compilation by Numba."""

SMALLEST_SHARE = 0.1
"""Seconds for the rounds of a workload where preparing the others takes all the time; the fewest rounds are run."""

REFINEMENTS = 2
"""Sizes by which a curve is expected to be refined: for so many, time is left where there are few curves."""

CELL_SECONDS = 0.5
"""What the fewest rounds of a workload were seen to take on two quiet cores (0.46), with the preparation."""

COMPILE_SECONDS = 6.0
"""What compiling one kernel may take: the slowest took 5 s on two cores of 2021."""

NOT_COMPILED = "not compiled within the budget; a second run goes on where this one ended"
"""Why Numba does not take part in a workload for which there was time otherwise. No profile is made of it."""

MEASURED = "measured"
BUDGET = "budget"
INTERRUPTED = "interrupted"
UNAVAILABLE = "unavailable"

Cell = tuple[Workload, Place]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds per call of one backend: the median with its interval, over how many rounds of how many calls."""

    seconds: ruler.Interval
    rounds: int
    calls: int


@dataclass(slots=True)
class Finding:
    """What is known of one workload at one place.

    Attributes
    ----------
    workload : Workload
    status : str
        "measured", or why it is not: "budget", "interrupted" or "unavailable" (no backend has it here).
    place : str
        Where the arrays are, of `gradmark.profiles.PLACES`.
    absent : dict of str to str
        The targets that could not take part, and why.
    setup_seconds : dict of str to float
        What came before the first timed call of each target: imports, inputs, one call; without compilation.
    compile_seconds : float or None
        What Numba's compilation of this kernel took in this run, for all sizes; None where it takes no part.
    bytes_moved : int or None
        The least traffic of one call.
    times : dict of str to Timed
        By target.
    over_first : dict of str to Interval
        How many times the first's time each of the other targets takes.
    """

    workload: Workload
    status: str
    place: Place = "host"
    absent: dict[str, str] = field(default_factory=dict)
    setup_seconds: dict[str, float] = field(default_factory=dict)
    compile_seconds: float | None = None
    bytes_moved: int | None = None
    times: dict[str, Timed] = field(default_factory=dict)
    over_first: dict[str, ruler.Interval] = field(default_factory=dict)
    verdict: ruler.Verdict | None = None


@dataclass(slots=True)
class Choice:
    """The result of `choose`.

    Attributes
    ----------
    findings : list of Finding
        One for each workload and place, in the order of the catalog.
    targets : dict of str to (str or None)
        Why each target is unusable here, or None where it is usable.
    seconds : float
        How long it took.
    interrupted : bool
    others_cores : float or None
        How many cores other processes kept busy meanwhile, on average; None where the system does not tell.
    compilation : Compilation or None
        What was compiled before the measurements.
    """

    findings: list[Finding]
    targets: dict[str, str | None]
    seconds: float
    interrupted: bool
    others_cores: float | None = None
    compilation: compile_ahead.Compilation | None = None


def plan(operations: Iterable[str], sizes: Sequence[str], dtypes: Sequence[str]) -> list[Workload]:
    """The workloads of these operations, in the order in which they are measured: size by size.

    Parameters
    ----------
    operations : iterable of str
        Names of the catalog.
    sizes : sequence of str
        As of `Workload`: names of `gradmark.workloads.TIMED_SIZES`, or numbers of elements. Where they are names,
        initializers have one size of their own.
    dtypes : sequence of str

    Raises
    ------
    LookupError
        An operation does not exist.
    """
    rows = [catalog.operation(name) for name in operations]
    found: dict[Workload, None] = {}
    for size in sizes:
        for row in sorted(rows, key=lambda row: list(catalog.OPERATIONS).index(row.name)):
            for workload in workloads.of_row(row, small=True):
                for dtype in dtypes:
                    found[dataclasses.replace(workload, size=_size(row, size), dtype=dtype)] = None
    return list(found)


def _size(row: catalog.Operation, size: str) -> str:
    if not isinstance(row, catalog.Initializer):
        return size
    if not size.isdigit():
        return MATRIX.get(row.name, OTHER_MATRIX)
    return str(min(int(size), LARGEST_ORTHOGONAL)) if row.distribution == "orthogonal" else size


def usable_targets(dtypes: Sequence[str], devices: Sequence[str] = ("cpu", "cuda")) -> dict[str, str | None]:
    """Every target on these devices, and why it cannot be used here for any of the dtypes (None where it can)."""
    return {
        name: _why_unusable(target, dtypes) for name, target in workloads.TARGETS.items() if target.device in devices
    }


def choose(
    planned: Sequence[Workload],
    targets: Mapping[str, str | None],
    *,
    budget: float,
    began: float | None = None,
    compilation: compile_ahead.Compilation | None = None,
    refine: bool = False,
    before: Callable[[Workload], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> Choice:
    """Measure the planned workloads over the usable targets, as far as the budget goes.

    Parameters
    ----------
    planned : sequence of Workload
        In order of priority; see `plan`.
    targets : mapping of str to (str or None)
        See `usable_targets`. Where a device beside the CPU is usable, each workload is measured at three places: see
        `gradmark.profiles.PLACES`.
    budget : float
        Seconds, imports and compilation included.
    began : float, optional
        The time.perf_counter() from which the budget counts; now, where it is not given.
    compilation : Compilation, optional
        What has been compiled for these workloads.
    refine : bool
        Whether time that is left goes into sizes between two at which the winners differ.
    before : callable, optional
        Called with each workload before it is prepared.
    tick : callable, optional
        Called between rounds, for a display of the time left.

    Returns
    -------
    Choice
        After Ctrl-C it holds what was measured until then.
    """
    began = time.perf_counter() if began is None else began
    started, others = time.perf_counter(), machine.other_cpu_seconds()
    deadline = began + budget - min(RESERVE_SECONDS, budget / 10)
    findings = {(w, place): Finding(w, BUDGET, place) for w in planned for place in _places(targets)}
    interrupted = False
    try:
        setups: list[float] = []
        for position, (finding, others_waiting, of_same_size) in enumerate(_in_turn(findings, refine)):
            # What prepares a workload cannot be broken off, so none is begun that may last beyond the budget.
            left = deadline - time.perf_counter() - max(setups, default=0.0)
            if left <= 0:
                break
            if compilation and compile_ahead.kernel_of(finding.workload) not in compilation.seconds:
                _compile_or_do_without(finding, targets, left - CELL_SECONDS * (1 + of_same_size))
            if before is not None:
                before(finding.workload)
            findings[finding.workload, finding.place] = finding
            share = left / (1 + others_waiting) - _expected_setup(setups)
            _measure(finding, targets, max(share, SMALLEST_SHARE), deadline, tick)
            if compilation and "numba" in finding.setup_seconds:
                # It is compiled now, whoever did it.
                compilation.seconds.setdefault(compile_ahead.kernel_of(finding.workload), 0.0)
            if finding.status == INTERRUPTED:
                raise KeyboardInterrupt
            if position:  # The first one imports the libraries, and no other does.
                setups.append(sum(finding.setup_seconds.values()))
    except KeyboardInterrupt:
        interrupted = True
        for finding in findings.values():
            if finding.status == BUDGET:
                finding.status = INTERRUPTED
    _add_compilation(findings.values(), compilation)
    return Choice(
        sorted(findings.values(), key=_catalog_order),
        dict(targets),
        time.perf_counter() - began,
        interrupted,
        _others_cores(others, time.perf_counter() - started),
        compilation,
    )


def _places(targets: Mapping[str, str | None]) -> list[Place]:
    usable = {workloads.TARGETS[name].device for name, reason in targets.items() if reason is None}
    return [
        place for place in PLACES if (place == "host" and "cpu" in usable) or (place != "host" and usable - {"cpu"})
    ]


def _takes_part(name: str, place: Place) -> bool:
    """On the host all CPU targets; there and back the same, and the devices; on the device itself the devices."""
    on_cpu = workloads.TARGETS[name].device == "cpu"
    return {"host": on_cpu, "device": not on_cpu, "host-to-device-and-back": True}[place]


def _in_turn(findings: Mapping[Cell, Finding], refine: bool) -> Iterator[tuple[Finding, int, int]]:
    """What is measured next, how many others wait, and how many of these at the same size.

    After what is planned, where asked for, sizes between those of two winners.
    """
    planned = list(findings.values())
    refinements = REFINEMENTS * len({curves.subject(finding) for finding in planned}) if refine else 0
    waiting_at: dict[str, int] = {}
    for finding in planned:
        waiting_at[finding.workload.size] = waiting_at.get(finding.workload.size, 0) + 1
    for position, finding in enumerate(planned):
        waiting_at[finding.workload.size] -= 1
        yield finding, len(planned) - position - 1 + refinements, waiting_at[finding.workload.size]
    while refine:
        waiting = list(curves.to_refine(findings.values()))
        if not waiting:
            return
        finding, elements = waiting[0]
        workload = dataclasses.replace(finding.workload, size=str(elements))
        yield Finding(workload, BUDGET, finding.place), len(waiting) - 1, 0


def _compile_or_do_without(finding: Finding, targets: Mapping[str, str | None], spare: float) -> None:
    """Leave Numba out where its kernel would have to be compiled in time that the others of this size need."""
    compiles = finding.workload.dtype in backends.DTYPES["numba"] and finding.place != "device"
    if compiles and spare < COMPILE_SECONDS:
        for name, reason in targets.items():
            if reason is None and workloads.TARGETS[name].backend == "numba":
                finding.absent[name] = NOT_COMPILED


def _others_cores(before: float | None, elapsed: float) -> float | None:
    after = machine.other_cpu_seconds()
    return None if before is None or after is None else max(0.0, after - before) / elapsed


def _expected_setup(setups: Sequence[float]) -> float:
    # The median: the first one imports the libraries, and no other does.
    return statistics.median(setups) if setups else FIRST_SETUP_SECONDS


def _measure(
    finding: Finding, targets: Mapping[str, str | None], share: float, deadline: float, tick: Callable[[], None] | None
) -> None:
    """Fill in the finding; it stays at "budget" where the deadline comes first."""
    ready = {}
    for name, reason in targets.items():
        if reason is not None or not _takes_part(name, finding.place) or name in finding.absent:
            continue
        if time.perf_counter() >= deadline:
            return
        prepared = _prepare(finding, name)
        if prepared is not None:
            ready[name] = prepared
    if not ready:
        finding.status = UNAVAILABLE
        return
    left = deadline - time.perf_counter()
    if left <= 0:
        return
    measurement = ruler.measure(
        {name: prepared.call for name, prepared in ready.items()},
        budget=min(share, left),
        limit=left,
        synchronize={name: prepared.synchronize for name, prepared in ready.items()},
        after_round=tick,
    )
    if measurement.rounds:
        finding.times = {
            name: Timed(ruler.median_interval(values), len(values), measurement.number[name])
            for name, values in measurement.seconds.items()
            if values
        }
    if measurement.rounds >= ruler.min_rounds():
        verdict = finding.verdict = ruler.judge(measurement)
        first = verdict.leaders[0]
        finding.over_first = {name: ruler.compare(measurement, name, first) for name in finding.times}
        finding.status = MEASURED
    if measurement.interrupted:
        finding.status = INTERRUPTED


def _prepare(finding: Finding, name: str) -> workloads.Prepared | None:
    began = time.perf_counter()
    known = workloads.TARGETS[name]
    accepted = backends.DTYPES[known.backend]
    if finding.workload.dtype not in accepted:
        finding.absent[name] = f"{name} takes {', '.join(accepted)}, not {finding.workload.dtype}"
        return None
    try:
        namespace, target = workloads.open_target(gradmark, name)
        with compile_ahead.compiling() if known.backend == "numba" else contextlib.nullcontext() as compiled:
            if finding.place == "host-to-device-and-back" and known.device != "cpu":
                prepared = finding.workload.prepare_from_host(namespace, target)
            else:
                prepared = finding.workload.prepare(namespace, target)
            prepared.call()
            prepared.synchronize()
    except UnavailableError as error:
        finding.absent[name] = str(error)
        return None
    except Exception as error:
        # One backend that fails must cost neither the other backends nor the other operations.
        finding.absent[name] = f"failed with {type(error).__name__}: {error}"
        return None
    finding.setup_seconds[name] = time.perf_counter() - began
    finding.bytes_moved = prepared.bytes_moved
    if compiled is not None:
        finding.compile_seconds = compiled[0]
        finding.setup_seconds[name] -= compiled[0]
    return prepared


def _add_compilation(findings: Iterable[Finding], compilation: compile_ahead.Compilation | None) -> None:
    """Each kernel's compilation, wherever it took place: the sum over all sizes, since one kernel serves them."""
    found = list(findings)
    seconds = dict(compilation.seconds) if compilation else {}
    for finding in found:
        kernel = compile_ahead.kernel_of(finding.workload)
        seconds[kernel] = seconds.get(kernel, 0.0) + (finding.compile_seconds or 0.0)
    for finding in found:
        if finding.compile_seconds is not None:
            finding.compile_seconds = seconds[compile_ahead.kernel_of(finding.workload)]


def _why_unusable(target: Target, dtypes: Sequence[str]) -> str | None:
    reason = backends.why_unusable(target.backend, target.device)
    if reason is not None:
        return reason
    accepted = backends.DTYPES[target.backend]
    if set(dtypes) & set(accepted):
        return None
    return f"{target.backend} takes {', '.join(accepted)}, not {', '.join(dtypes)}"


def _catalog_order(finding: Finding) -> tuple[int, int, int, str, str, int]:
    workload = finding.workload
    return (
        PLACES.index(finding.place),
        list(catalog.OPERATIONS).index(workload.operation),
        catalog.PASSES.index(workload.operation_pass),
        workload.variant,
        workload.dtype,
        workload.elements,
    )
