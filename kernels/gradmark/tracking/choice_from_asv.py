"""A choice from what asv has recorded already, of any commit and machine, instead of measurements.

asv times one backend after the other, in processes of their own: nothing is paired. A winner is named only where the
whole interval of the one lies below that of the other, by more than the effect that counts. Of few values an interval
says little: who takes more than `measure.HOPELESS` times the first's time is slower whatever it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradmark import catalog, workloads
from gradmark.tracking import measure as ruler
from gradmark.tracking.choose import MEASURED, Choice, Finding, Timed
from gradmark.workloads import Workload


class NoResultsError(ValueError):
    """There are no such results; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where results of asv come from."""

    machine: str
    commit: str
    """The whole hash."""
    date_ms: int
    path: Path


def recorded(results_dir: Path) -> list[Recorded]:
    """What is there, the newest commit last.

    Raises
    ------
    NoResultsError
        The folder holds no results of asv, or asv is not installed.
    """
    try:
        from asv import util
        from asv.machine import Machine
        from asv.results import Results
    except ImportError as error:
        raise NoResultsError("reading asv's results needs asv: pip install 'gradmark[bench]'") from error
    found = []
    try:
        # asv's own search goes through all that lies below, and through a whole disk where a wrong folder is named.
        for facts in sorted(results_dir.glob("*/machine.json")):
            machine = str(util.load_json(str(facts), Machine.api_version)["machine"])
            for path in sorted(facts.parent.glob("*.json")):
                if path != facts:
                    loaded = Results.load(str(path), machine_name=machine)
                    found.append(Recorded(machine, loaded.commit_hash, loaded.date, path))
    except (util.UserError, OSError, KeyError, ValueError) as error:
        raise NoResultsError(f"{results_dir}: asv's results cannot be read: {error}") from error
    if not found:
        raise NoResultsError(
            f"{results_dir} holds no results of asv; give the folder that asv.conf.json calls results_dir"
        )
    return sorted(found, key=lambda one: (one.date_ms, one.commit))


def select(found: Sequence[Recorded], machine: str | None, commit: str | None) -> Recorded:
    """The newest of them, of the machine and of the commit (or the beginning of its hash) if these are given.

    Raises
    ------
    NoResultsError
        There are none; the message lists the machines or the commits that there are.
    """
    machines = list(dict.fromkeys(one.machine for one in found))
    if machine is not None and machine not in machines:
        raise NoResultsError(f"asv has no results of a machine {machine!r}; there are: {', '.join(machines)}")
    found = [one for one in found if machine in (None, one.machine)]
    if commit is not None:
        commits = ", ".join(f"{one.commit[:8]} ({one.machine})" for one in found)
        found = [one for one in found if one.commit.startswith(commit)]
        if not found:
            raise NoResultsError(f"asv has no results of a commit {commit!r}; there are: {commits}")
    return found[-1]


def choice(source: Recorded, operations: Sequence[str]) -> Choice:
    """What these results say of the operations; sizes and passes that asv has not timed are left out.

    Raises
    ------
    NoResultsError
        Nothing of these operations was timed there.
    """
    from asv.results import Results

    loaded = Results.load(str(source.path), machine_name=source.machine)
    findings = list(_findings(loaded, operations))
    if not findings:
        raise NoResultsError(
            f"asv's results of {source.commit[:8]} on {source.machine} hold no time of {', '.join(operations[:5])}"
        )
    measured = {name for finding in findings for name in finding.times}
    targets = {name: None if name in measured else "asv has no time of it there" for name in workloads.TARGETS}
    return Choice(findings, targets, 0.0, interrupted=False)


def _findings(loaded: Any, operations: Sequence[str]) -> Iterator[Finding]:
    keys = list(loaded.get_all_result_keys())
    for operation in operations:
        row = catalog.operation(operation)
        of_row = {(w.variant, w.operation_pass): w for w in workloads.of_row(row, small=True)}
        for (variant, operation_pass), workload in of_row.items():
            name = f"{row.family}.{workloads.class_name(operation, variant)}.time_{operation_pass}"
            if name in keys:
                yield from _of_benchmark(loaded, name, workload)


def _of_benchmark(loaded: Any, name: str, workload: Workload) -> Iterator[Finding]:
    params = loaded.get_result_params(name)
    values = loaded.get_result_value(name, params)
    stats = loaded.get_result_stats(name, params)
    by_size: dict[str, dict[str, Timed]] = {}
    for (target, size), value, stat in zip(itertools.product(*params), values, stats, strict=True):
        target, size = target.strip("'"), size.strip("'")
        if value is not None and math.isfinite(value) and target in workloads.TARGETS:
            by_size.setdefault(size, {})[target] = _timed(value, stat)
    for size, times in by_size.items():
        for place, there in _by_place(times).items():
            yield _judged(Finding(dataclasses.replace(workload, size=size), MEASURED, place, times=there))


def _timed(value: float, stat: Mapping[str, Any] | None) -> Timed:
    stat = stat or {}
    # asv leaves out, or writes as infinite, what it cannot say of few values.
    low, high = float(stat.get("ci_99_a") or 0.0), float(stat.get("ci_99_b") or math.inf)
    # Of two values, the interval may reach below 0.
    return Timed(
        ruler.Interval(value, max(low, 0.0), high, 0.99), int(stat.get("repeat") or 0), int(stat.get("number") or 0)
    )


def _by_place(times: Mapping[str, Timed]) -> dict[Any, dict[str, Timed]]:
    # The suite's CUDA benchmarks time arrays that are on the device already.
    places: dict[Any, dict[str, Timed]] = {}
    for name, timed in times.items():
        places.setdefault("host" if workloads.TARGETS[name].device == "cpu" else "device", {})[name] = timed
    return places


def _judged(finding: Finding) -> Finding:
    first, *others = sorted(finding.times, key=lambda name: finding.times[name].seconds.median)
    finding.over_first = {name: _ratio(finding.times[name], finding.times[first]) for name in finding.times}
    tied = tuple(name for name in others if not _is_slower(finding.over_first[name]))
    finding.verdict = ruler.Verdict(
        fastest=None if tied else first,
        leaders=(first, *tied),
        runner_up=others[0] if others else None,
        ratio=finding.over_first[others[0]] if others else None,
    )
    return finding


def _is_slower(ratio: ruler.Interval) -> bool:
    return ratio.low > 1.0 + ruler.EFFECT or ratio.median > ruler.HOPELESS


def _ratio(slower: Timed, faster: Timed) -> ruler.Interval:
    """Of the medians, with the widest interval that the two intervals allow."""
    a, b = slower.seconds, faster.seconds
    high = a.high / b.low if b.low > 0 else math.inf
    return ruler.Interval(a.median / b.median, a.low / b.high, high, min(a.coverage, b.coverage))
