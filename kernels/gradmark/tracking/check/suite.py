"""The benchmarks of a check: found by asv_runner on both sides, and matched."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradmark.tracking.check.repository import CheckUsageError, NotMeasurableError
from gradmark.tracking.check.rounds import new_case
from gradmark.tracking.check.sides import BASE, HEAD
from gradmark.tracking.check.state import Check
from gradmark.tracking.check.workers import Worker, WorkerLostError


def find_benchmarks(check: Check) -> None:
    """Fill in the check's cases.

    Raises
    ------
    CheckUsageError
        No benchmark matches the patterns.
    NotMeasurableError
        The suite cannot be imported on a side, has no benchmark, or imports the project from elsewhere.
    """
    check.display.tell("importing the suite on both sides")
    suite = check.sides[check.settings.suite].suite
    if not suite.is_dir():
        raise NotMeasurableError(f"the {check.settings.suite} has no folder {suite.name} with benchmarks")
    found: dict[str, list[dict[str, Any]]] = {}
    broken: dict[str, dict[str, str]] = {}
    with contextlib.ExitStack() as stack:
        workers = {name: Worker(check.sides[name], suite, seed=0) for name in (BASE, HEAD)}
        for worker in workers.values():
            stack.callback(worker.end)
            worker.start_import()
        for name, worker in workers.items():
            try:
                broken[name] = worker.finish_import()
                found[name] = worker.discover()
                _check_origin(worker)
            except WorkerLostError as error:
                raise NotMeasurableError(f"the suite cannot be used on the {name}: {error}") from error
    unusable = [name for name in (BASE, HEAD) if not found[name] and broken[name]]
    if unusable:
        module, reason = next(iter(broken[unusable[0]].items()))
        where = " and the ".join(unusable)
        whose = f" (it is the {check.settings.suite}'s on both sides)" if len(unusable) > 1 else ""
        raise NotMeasurableError(f"the suite{whose} cannot be imported on the {where}: {module}: {reason}")
    if not found[BASE] and not found[HEAD]:
        raise NotMeasurableError(f"asv_runner finds no benchmark in {suite.name} of the {check.settings.suite}")
    _match_sides(check, found, broken)
    _compare_suites(check, found)


def _check_origin(worker: Worker) -> None:
    """A side that imports the project from elsewhere would be compared with itself."""
    side = worker.side
    for package, places in worker.origins(side.packages).items():
        if places and not all(Path(place).is_relative_to(side.site) for place in places):
            raise NotMeasurableError(
                f"the {side.name} imports {package} from {places[0]} instead of from its own build;"
                " an editable installation in this environment is in the way: uninstall it, or leave out -E"
            )


def _match_sides(
    check: Check, found: Mapping[str, Sequence[Mapping[str, Any]]], broken: Mapping[str, Mapping[str, str]]
) -> None:
    """One case for each benchmark and combination; those of one side alone have failed on the other."""
    for module in sorted(broken[BASE].keys() & broken[HEAD].keys()):
        check.notes.append(
            f"{module} of the suite can be imported on neither side, its benchmarks are missing here:"
            f" {broken[HEAD][module]}"
        )
    by_side = {name: _combinations(found[name], check.settings.patterns) for name in (BASE, HEAD)}
    labels = list(dict.fromkeys([*by_side[HEAD], *by_side[BASE]]))
    if not labels:
        known = sorted({str(facts["name"]) for facts in found[HEAD]})
        raise CheckUsageError(
            f"no benchmark matches -b {' -b '.join(check.settings.patterns)}; there are {len(known)}, such as"
            f" {', '.join(known[:5])}"
        )
    timeout = check.sides[HEAD].conf.default_benchmark_timeout
    for label in labels:
        has = [name for name in (BASE, HEAD) if label in by_side[name]]
        facts, index, params = by_side[has[-1]][label]
        case = new_case(facts, index, params, timeout)
        check.cases.append(case)
        check.benchmarks[case.name] = case.facts
        if len(has) == 1:
            missing = HEAD if has[0] == BASE else BASE
            absent = next((m for m in broken[missing] if _in_module(case.name, m)), None)
            why = f"{absent} cannot be imported: {broken[missing][absent]}" if absent else "its suite does not have it"
            case.failure = (missing, why)
        elif by_side[BASE][label][1] != index:
            # The position differs because a parameter list depends on the installed side.
            case.failure = ("base and head", "its parameters stand at another place on each side")


def _in_module(benchmark: str, module: str) -> bool:
    return benchmark.startswith(module.partition(".")[2] + ".")


def _combinations(
    found: Sequence[Mapping[str, Any]], patterns: Sequence[str]
) -> dict[str, tuple[Mapping[str, Any], int | None, tuple[str, ...]]]:
    """Benchmarks by label, with asv's index of the combination; chosen as asv's `-b` does."""
    regexes = [re.compile(pattern) for pattern in patterns]
    chosen = {}
    for facts in found:
        lists = facts.get("params") or []
        combinations = list(itertools.product(*lists)) if lists else [()]
        for index, params in enumerate(combinations):
            label = f"{facts['name']}({', '.join(params)})" if params else str(facts["name"])
            if not regexes or any(regex.search(label) for regex in regexes):
                chosen[label] = (facts, index if params else None, tuple(params))
    return chosen


def _compare_suites(check: Check, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Say which benchmarks the other side's suite has besides, and which it defines differently."""
    other = BASE if check.settings.suite == HEAD else HEAD
    suite = check.sides[other].suite
    if not suite.is_dir():
        check.notes.append(f"the {other} has no benchmarks of its own")
        return
    worker = Worker(check.sides[other], suite, seed=0)
    try:
        worker.start_import()
        worker.finish_import()
        theirs = {str(facts["name"]): facts for facts in worker.discover()}
    except WorkerLostError as error:
        check.notes.append(f"the {other}'s own suite cannot be imported ({error}); it is not used")
        return
    finally:
        worker.end()
    ours = {str(facts["name"]): facts for facts in found[other]}
    chosen = [re.compile(pattern) for pattern in check.settings.patterns]
    alone = sorted(n for n in set(theirs) - set(ours) if not chosen or any(regex.search(n) for regex in chosen))
    if other == BASE:
        check.only_in_base = alone
    elif alone:
        check.notes.append(f"only head's own suite has {', '.join(alone[:3])}{' and more' if len(alone) > 3 else ''}")
    changed = sorted(name for name in set(ours) & set(theirs) if ours[name]["version"] != theirs[name]["version"])
    if changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        check.notes.append(
            f"the sides define {len(changed)} benchmarks differently ({names}); both sides ran the"
            f" {check.settings.suite}'s definition"
        )
