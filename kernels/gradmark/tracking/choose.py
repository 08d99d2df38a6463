"""`gradmark choose`: the fastest backend of every operation on this machine, within a budget of time.

The workloads are the suite's own. What the budget does not allow is reported as not measured, never left out.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradmark
from gradmark import backends, catalog, workloads
from gradmark.tracking import machine
from gradmark.tracking import measure as ruler
from gradmark.workloads import Target, UnavailableError, Workload

MATRIX = {"orthogonal": "512x512", "delta_orthogonal": "512x512x3", "dirac": "512x512x3"}
"""Sizes of initializers here. The suite's own (up to 4096x4096) cost seconds a call, and ten calls are needed. None is
longer than `OTHER_MATRIX`: beside the longest name, a longer one would cut the table's figures at 80 columns."""

OTHER_MATRIX = "1024x1024"

RESERVE_SECONDS = 2.0
"""Kept free at the end: no call can be broken off once it runs."""

FIRST_SETUP_SECONDS = 1.0
"""What preparing a workload is taken to cost until one was prepared: about a compilation by Numba."""

SMALLEST_SHARE = 0.1
"""Seconds for the rounds of a workload where preparing the others takes all the time; the fewest rounds are run."""

MEASURED = "measured"
BUDGET = "budget"
INTERRUPTED = "interrupted"
UNAVAILABLE = "unavailable"


@dataclass(slots=True)
class Finding:
    """What is known of one workload.

    Attributes
    ----------
    workload : Workload
    status : str
        "measured", or why it is not: "budget", "interrupted" or "unavailable" (no backend has it here).
    absent : dict of str to str
        The targets that could not take part, and why.
    setup_seconds : dict of str to float
        What came before the first timed call of each target: imports, inputs, compilation, one call.
    bytes_moved : int or None
        The least traffic of one call.
    """

    workload: Workload
    status: str
    absent: dict[str, str] = field(default_factory=dict)
    setup_seconds: dict[str, float] = field(default_factory=dict)
    bytes_moved: int | None = None
    measurement: ruler.Measurement | None = None
    verdict: ruler.Verdict | None = None


@dataclass(slots=True)
class Choice:
    """The result of `choose`.

    Attributes
    ----------
    findings : list of Finding
        One for each workload, in the order of the catalog.
    targets : dict of str to (str or None)
        Why each target is unusable here, or None where it is usable.
    seconds : float
        How long it took.
    interrupted : bool
    others_cores : float or None
        How many cores other processes kept busy meanwhile, on average; None where the system does not tell.
    """

    findings: list[Finding]
    targets: dict[str, str | None]
    seconds: float
    interrupted: bool
    others_cores: float | None = None


def plan(operations: Iterable[str], sizes: Container[str], dtype: str) -> list[Workload]:
    """The workloads of these operations, in the order in which they are measured.

    Cheap and informative first, since the budget may end before the list: what lives in the cache, then the
    initializers, then what lives in memory.

    Parameters
    ----------
    operations : iterable of str
        Names of the catalog.
    sizes : container of str
        Sizes of elementwise workloads, of `gradmark.workloads.TIMED_SIZES`. Initializers have one size here.
    dtype : str

    Raises
    ------
    LookupError
        An operation does not exist.
    """
    found: dict[Workload, None] = {}
    for name in operations:
        row = catalog.operation(name)
        for workload in workloads.of_row(row):
            if row.family == "initializers":
                size = MATRIX.get(name, OTHER_MATRIX)
            elif workload.size in sizes:
                size = workload.size
            else:
                continue
            found[dataclasses.replace(workload, size=size, dtype=dtype)] = None
    return sorted(found, key=_priority)


def usable_targets(dtype: str) -> dict[str, str | None]:
    """Every target, and why it cannot be used here for this dtype (None where it can)."""
    return {name: _why_unusable(target, dtype) for name, target in workloads.TARGETS.items()}


def choose(
    planned: Sequence[Workload],
    targets: Mapping[str, str | None],
    *,
    budget: float,
    began: float | None = None,
    before: Callable[[Workload], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> Choice:
    """Measure the planned workloads over the usable targets, as far as the budget goes.

    Parameters
    ----------
    planned : sequence of Workload
        In order of priority; see `plan`.
    targets : mapping of str to (str or None)
        See `usable_targets`.
    budget : float
        Seconds, imports and compilation included.
    began : float, optional
        The time.perf_counter() from which the budget counts; now, where it is not given.
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
    findings = {workload: Finding(workload, BUDGET) for workload in planned}
    interrupted = False
    try:
        setups: list[float] = []
        for position, workload in enumerate(planned):
            # A compilation cannot be broken off, so none is begun that may last beyond the budget.
            left = deadline - time.perf_counter() - max(setups, default=0.0)
            if left <= 0:
                break
            if before is not None:
                before(workload)
            share = left / (len(planned) - position) - _expected_setup(setups)
            _measure(findings[workload], targets, max(share, SMALLEST_SHARE), deadline, tick)
            if findings[workload].status == INTERRUPTED:
                raise KeyboardInterrupt
            setups.append(sum(findings[workload].setup_seconds.values()))
    except KeyboardInterrupt:
        interrupted = True
        for finding in findings.values():
            if finding.status == BUDGET:
                finding.status = INTERRUPTED
    return Choice(
        sorted(findings.values(), key=lambda finding: _catalog_order(finding.workload)),
        dict(targets),
        time.perf_counter() - began,
        interrupted,
        _others_cores(others, time.perf_counter() - started),
    )


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
        if reason is not None:
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
        finding.measurement = measurement
    if measurement.rounds >= ruler.min_rounds():
        finding.verdict = ruler.judge(measurement)
        finding.status = MEASURED
    if measurement.interrupted:
        finding.status = INTERRUPTED


def _prepare(finding: Finding, name: str) -> workloads.Prepared | None:
    began = time.perf_counter()
    try:
        namespace, target = workloads.open_target(gradmark, name)
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
    return prepared


def _why_unusable(target: Target, dtype: str) -> str | None:
    reason = backends.why_unusable(target.backend, target.device)
    if reason is not None:
        return reason
    accepted = backends.DTYPES[target.backend]
    return None if dtype in accepted else f"{target.backend} takes {', '.join(accepted)}, not {dtype}"


def _priority(workload: Workload) -> tuple[int, tuple[int, int, str, str]]:
    stage = {"cache": 0, "memory": 2}.get(workload.size, 1)
    return stage, _catalog_order(workload)


def _catalog_order(workload: Workload) -> tuple[int, int, str, str]:
    return (
        list(catalog.OPERATIONS).index(workload.operation),
        catalog.PASSES.index(workload.operation_pass),
        workload.variant,
        workload.size,
    )


def record(choice: Choice, *, budget: float) -> dict[str, Any]:
    """The choice as the body of a result file; see `gradmark.tracking.machine.provenance` for its head."""
    return {
        "budget_seconds": budget,
        "seconds": choice.seconds,
        "interrupted": choice.interrupted,
        "others_cores": choice.others_cores,
        "confidence": ruler.CONFIDENCE,
        "effect": ruler.EFFECT,
        "targets": choice.targets,
        "results": [_record_finding(finding) for finding in choice.findings],
    }


def _record_finding(finding: Finding) -> dict[str, Any]:
    workload, verdict = finding.workload, finding.verdict
    return {
        "operation": workload.operation,
        "variant": workload.variant,
        "pass": workload.operation_pass,
        "size": workload.size,
        "dtype": workload.dtype,
        "status": finding.status,
        "fastest": verdict.fastest if verdict else None,
        "leaders": list(verdict.leaders) if verdict else [],
        "runner_up": verdict.runner_up if verdict else None,
        "runner_up_over_first": _record_interval(verdict.ratio if verdict else None),
        "numpy_over_first": _record_interval(versus(finding, "numpy")),
        "bytes_moved": finding.bytes_moved,
        "setup_seconds": finding.setup_seconds,
        "absent": finding.absent,
        "backends": _record_times(finding.measurement),
    }


def _record_times(measurement: ruler.Measurement | None) -> dict[str, Any]:
    if measurement is None:
        return {}
    return {
        name: {
            "seconds_per_call": _record_interval(ruler.median_interval(values)),
            "rounds": len(values),
            "calls_per_round": measurement.number[name],
        }
        for name, values in measurement.seconds.items()
    }


def versus(finding: Finding, name: str) -> ruler.Interval | None:
    """How many times the first's time the target `name` takes; None where it was not measured."""
    if finding.verdict is None or finding.measurement is None or name not in finding.measurement.seconds:
        return None
    return ruler.compare(finding.measurement, name, finding.verdict.leaders[0])


def _record_interval(interval: ruler.Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    # JSON has no infinity; and an interval that says nothing is none.
    known = math.isfinite(interval.high)
    return {
        "median": interval.median,
        "low": interval.low if known else None,
        "high": interval.high if known else None,
    }
