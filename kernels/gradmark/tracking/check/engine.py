"""A whole check: build both sides, find the benchmarks, screen all of them, confirm what could be slower, report."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from gradmark.tracking.check import decide, kernels, sides, suite, surroundings, verdicts
from gradmark.tracking.check.repository import NotMeasurableError, Project
from gradmark.tracking.check.results import DEVICE, FASTER, SAME, SLOWER, UNDECIDED, Report, Revision, Unavailable
from gradmark.tracking.check.rounds import Case, Session, new_case
from gradmark.tracking.check.sides import BASE, HEAD, TWIN
from gradmark.tracking.check.state import Check, Display, Settings, duration
from gradmark.tracking.check.workers import BenchmarkError, Worker, WorkerLostError

SENTINELS = 3

EXACT_ROUNDS = 3
"""Rounds after which a value that was the same each time on both sides is taken for exact: sizes, counts. One that
differs between the sides has to stay so for SCREEN_ROUNDS: of two values that a process draws like a coin, three rounds
give one side always this, the other always that, once in 32 checks; ten rounds once in 500 000."""

_SCREENING_SHARE = 0.7
"""Of the budget; the rest is kept for confirming."""


def run(project: Project, base: Revision, head: Revision, settings: Settings, display: Display) -> tuple[Report, Check]:
    """Check `head` against `base`.

    Ctrl-C ends the measurement, not the check: the report holds the verdicts that were reached.

    Returns
    -------
    Report
    Check
        All rounds, for a study or for asv's result files.

    Raises
    ------
    CheckUsageError
        Something that was asked for does not exist.
    NotMeasurableError
        Nothing could be measured: a build failed, another check is running, the disk is full.
    """
    check = Check(project, base, head, settings, display)
    try:
        with surroundings.only_one(), surroundings.ending_on_signals(), surroundings.scratch() as folder:
            check.sides, check.notes = sides.prepare(
                project, base, head, folder, env_spec=settings.env_spec, tell=display.tell
            )
            suite.find_benchmarks(check)
            _measure(check, folder)
            return verdicts.report(check), check
    except OSError as error:
        raise NotMeasurableError(_said(error)) from error
    except WorkerLostError as error:
        raise NotMeasurableError(f"{error.side}: {error}") from error


def _said(error: OSError) -> str:
    """In the system's words; an error that stands for many, as copying a folder raises, has none of its own."""
    what = error.strerror or str(error)
    return f"{what}: {error.filename}" if error.filename else what


def _measure(check: Check, folder: Path) -> None:
    check.measuring_since = time.monotonic()
    caches = _make_caches(check, [case for case in check.cases if case.can_run], (BASE, HEAD))
    launch = check.sides[HEAD].conf.launch_method
    session = check.session = Session(
        check.sides,
        check.sides[check.settings.suite].suite,
        caches,
        seed=check.settings.seed,
        fresh_processes=launch == "spawn",
    )
    try:
        _prepare(check, session)
        _note_gpu(check, "before")
        _add_sentinels(check, session, caches)
        _screen(check, session)
        _confirm(check, session)
        _note_gpu(check, "after")
    except KeyboardInterrupt:
        check.interrupted = True
    except OSError as error:
        # Such as a full disk. What was measured until then stays.
        check.aborted = _said(error)
    _forget_unavailable(check)


def _note_gpu(check: Check, when: str) -> None:
    """A GPU that throttles tells of itself, not of the code."""
    if any(case.kind == DEVICE for case in check.cases):
        state = surroundings.gpu_state() or "nvidia-smi is not there to tell clocks and throttling"
        check.notes.append(f"GPU {when} the measurement: {state}")


def _make_caches(check: Check, cases: Sequence[Case], names: Sequence[str]) -> dict[tuple[str, str], Path]:
    """Run each setup_cache once a side, as asv does; the benchmarks of one that fails have failed."""
    caches: dict[tuple[str, str], Path] = {}
    by_key: dict[str, list[Case]] = {}
    for case in cases:
        if case.facts.get("setup_cache_key") is not None:
            by_key.setdefault(str(case.facts["setup_cache_key"]), []).append(case)
    if not by_key:
        return caches
    suite = check.sides[check.settings.suite].suite
    for name in names:
        worker: Worker | None = None
        for number, (key, users) in enumerate(by_key.items()):
            check.display.tell(f"setup_cache of {users[0].name} on the {name}")
            path = check.sides[name].home / f"setup-cache-{number}"
            path.mkdir(parents=True, exist_ok=True)
            caches[name, key] = path
            try:
                if worker is None:
                    worker = Worker(check.sides[name], suite, seed=0)
                    worker.start_import()
                    worker.finish_import()
                timeout = users[0].facts.get("setup_cache_timeout") or users[0].timeout
                worker.make_cache(users[0].identifier, path, float(timeout))
            except (BenchmarkError, WorkerLostError) as error:
                for case in users:
                    case.failure = (name, f"setup_cache: {error}")
                if worker is not None and isinstance(error, WorkerLostError):
                    worker.end()
                    worker = None
            except BaseException:
                # Ctrl-C, a full disk: it would write on into a folder that is being removed.
                if worker is not None:
                    worker.end()
                raise
        if worker is not None:
            worker.end()
    return caches


def _prepare(check: Check, session: Session) -> None:
    todo = [case for case in check.cases if case.can_run]
    check.display.phase("preparing", len(todo))
    session.prepare(todo, lambda case: check.display.step(case.label), deadline=check.deadline)
    # By benchmark, as they are compared: one that another benchmark was the first to call on the other side is not.
    seen = [kernels.coverage(case.kernels.get(BASE, []), case.kernels.get(HEAD, [])) for case in todo]
    compared, not_inspected = sum(one.compared for one in seen), sum(one.not_inspected for one in seen)
    if compared or not_inspected:
        why = sorted({reason for one in seen for reason in one.reasons})
        reasons = f" ({'; '.join(why)})" if not_inspected else ""
        check.notes.append(f"Numba kernels: the machine code of {compared} was compared, {not_inspected} not{reasons}")
    for case in todo:
        if case.kernels:
            changes = kernels.compare_kernels(case.kernels.get(BASE, []), case.kernels.get(HEAD, []), case.label)
            known = {(change.kernel, change.what) for change in check.kernel_changes}
            check.kernel_changes += [change for change in changes if (change.kernel, change.what) not in known]


def _add_sentinels(check: Check, session: Session, caches: dict[tuple[str, str], Path]) -> None:
    """The A/A control: some of the benchmarks once more, base against a copy of base, in the same rounds."""
    timings = [case for case in check.cases if case.can_run and case.is_timing]
    cheap = sorted(timings, key=lambda case: case.seconds)[: max(SENTINELS, (2 * len(timings)) // 3)]
    chosen = random.Random(check.settings.seed).sample(cheap, min(SENTINELS, len(cheap)))
    check.sentinels = [new_case(case.facts, case.index, case.params, case.timeout) for case in chosen]
    for case, original in zip(check.sentinels, chosen, strict=True):
        case.sides = (BASE, TWIN)
        case.seconds = original.seconds
    caches.update(_make_caches(check, check.sentinels, (TWIN,)))
    todo = [case for case in check.sentinels if case.can_run]
    session.prepare(todo, lambda case: None, deadline=check.deadline)


def _fit_budget(check: Check, session: Session) -> None:
    """Leave out, dearest first, what cannot be screened in time: an answer for most beats none for all.

    A preparation compiles and calibrates, so that it costs more than a round: the first round tells by how much.
    """
    running = [case for case in check.cases if case.can_run]
    paces = [case.seconds / case.prepared_seconds for case in running if case.rounds and case.prepared_seconds]
    pace = statistics.median(paces) if paces else 1.0

    def cost(case: Case) -> float:
        one = case.seconds if case.rounds else pace * case.prepared_seconds
        return max(0, decide.SCREEN_ROUNDS - len(case.rounds)) * one

    now = time.monotonic()
    prepared = sorted((case for case in running if case.prepared_seconds), key=cost)
    used = decide.SCREEN_ROUNDS * (session.import_seconds + sum(case.seconds for case in check.sentinels))
    scale = len(running) / max(1, len(prepared))
    whole = scale * ((used + sum(map(cost, prepared))) / _SCREENING_SHARE + now - check.measuring_since)
    reason = (
        f"not reached: the budget of {duration(check.settings.budget)} was too small;"
        f" all of it would take about {duration(whole)} (--budget), or choose with -b"
    )
    check.left_out = {case.key: reason for case in running if not case.prepared_seconds}
    for case in prepared:
        used += cost(case)
        if used > _SCREENING_SHARE * (check.deadline - now):
            check.left_out[case.key] = reason


def _screen(check: Check, session: Session) -> None:
    def waiting() -> list[Case]:
        every = [case for case in [*check.cases, *check.sentinels] if case.can_run and case.key not in check.left_out]
        return [c for c in every if c.key not in check.verdicts and len(c.rounds) < decide.SCREEN_ROUNDS]

    _fit_budget(check, session)
    check.display.phase("screening", decide.SCREEN_ROUNDS * len(waiting()))
    first = True
    while (open_ := waiting()) and time.monotonic() < check.deadline:
        session.run_round(open_, lambda case: check.display.step(case.label), deadline=check.deadline)
        _settle_exact(check, open_)
        if first and check.left_out:
            _fit_budget(check, session)
            check.display.phase("screening", sum(decide.SCREEN_ROUNDS - len(case.rounds) for case in waiting()))
        first = False
    cases = [case for case in check.cases if case.can_run and case.key not in check.left_out]
    for case in cases:
        if not check.is_open(case) or not case.rounds:
            continue
        if decide.screened_out(decide.estimate(case.log_ratios()), check.settings.threshold):
            check.verdicts[case.key] = SAME


def _confirm(check: Check, session: Session) -> None:
    """Fresh rounds for what the screening has not settled, judged at each look."""
    candidates = [case for case in check.cases if check.is_open(case) and len(case.rounds) >= decide.SCREEN_ROUNDS]
    check.selected = len(candidates)
    if not candidates:
        return
    for case in candidates:
        check.screening[case.key] = case.rounds
        case.rounds = []
    for number, rounds in enumerate(decide.LOOKS):
        open_ = [case for case in candidates if check.is_open(case)]
        if not open_:
            return
        done = decide.LOOKS[number - 1] if number else 0
        check.display.phase(f"confirming {len(open_)}", (rounds - done) * (2 * len(open_) + len(check.sentinels)) // 2)
        for turn in range(rounds - done):
            if time.monotonic() >= check.deadline:
                break
            # A third import of the suite costs as much as several benchmarks: the control has every second round.
            control = check.sentinels if turn % 2 else []
            running = [case for case in [*open_, *control] if case.can_run]
            session.run_round(running, lambda case: check.display.step(case.label), deadline=check.deadline)
        final = rounds == decide.LOOKS[-1] or time.monotonic() >= check.deadline
        fresh = {case.key: decide.estimate(case.log_ratios()) for case in open_ if check.is_open(case) and case.rounds}
        alpha = decide.look_alpha(number, final=final)
        check.verdicts.update(decide.look(fresh, check.settings.threshold, alpha, check.selected, final=final))
        if final:
            return


def _settle_exact(check: Check, cases: Sequence[Case]) -> None:
    """Values that do not vary are compared as they are."""
    for case in cases:
        if case.is_timing or not case.can_run or len(case.rounds) < EXACT_ROUNDS or case.key in check.verdicts:
            continue
        first = {one.first[0] for one in case.rounds}
        second = {one.second[0] for one in case.rounds}
        if len(first) == len(second) == 1:
            verdict = _exact_verdict(first.pop(), second.pop(), check.settings.threshold, case)
            if verdict == SAME or len(case.rounds) >= decide.SCREEN_ROUNDS:
                check.verdicts[case.key] = verdict


def _exact_verdict(base: float, head: float, threshold: float, case: Case) -> str:
    if base == head:
        return SAME
    if not (math.isfinite(base) and math.isfinite(head)):
        return UNDECIDED
    if case.higher_is_better:
        base, head = head, base
    scale = abs(base)
    if head > base + threshold * scale:
        return SLOWER
    return FASTER if head < base - threshold * scale else SAME


def _forget_unavailable(check: Check) -> None:
    """What neither side can run is n/a, as in asv; what only one of them can has failed on the other."""
    for case in list(check.cases):
        if not case.skipped:
            continue
        if len(case.skipped) == 2:
            check.unavailable.append(Unavailable(case.name, case.params, case.skipped[HEAD]))
            check.cases.remove(case)
        elif case.failure is None:
            ((side, reason),) = case.skipped.items()
            case.failure = (side, f"it says that it cannot run there: {reason}")
