"""Rounds: fresh processes of both sides, and short bursts of each benchmark that alternate between them.

The process is the statistical unit. What a process draws once (addresses, hash seeds, which core) is drawn anew in
each round; what disturbs the machine for longer than a burst disturbs both sides. A round gives one log ratio for each
benchmark.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gradmark.tracking.check.results import DEVICE, MEMORY, PARALLEL, PEAK_MEMORY, SERIAL, TRACK
from gradmark.tracking.check.sides import BASE, HEAD, Side
from gradmark.tracking.check.workers import ASSEMBLY, BenchmarkError, Opened, SkippedError, Worker, WorkerLostError

BURST_SECONDS = 5e-3
"""Shortest burst: a reply over a pipe and a scheduler's tick are then small beside it."""

QUADS = 4
"""ABBA or BAAB groups in a round, where a burst is short."""

_LONG_BURST, _VERY_LONG_BURST = 4 * BURST_SECONDS, 50 * BURST_SECONDS
"""Of the slower side: above the first there is one group in a round, above the second one burst of each side."""

_BUSY_CPU = 0.9
"""CPU time over wall time from which on a serial benchmark computes all the time, and is kept on one core."""

CALIBRATIONS = 3

_PARALLEL_CPU = 1.25
"""CPU time over wall time from which on a burst shows that a benchmark is parallel."""

_ASV_TYPES = {"time": SERIAL, "memory": MEMORY, "peakmemory": PEAK_MEMORY, "track": TRACK}


@dataclass(slots=True)
class Round:
    """What one round says of one benchmark.

    Attributes
    ----------
    first, second : list of float
        Seconds per call in each burst (or one value, for what is not a timing) of the case's two sides.
    """

    first: list[float]
    second: list[float]

    @property
    def log_ratio(self) -> float:
        """Log of second over first; NaN where a value is not positive."""
        first, second = typical(self.first), typical(self.second)
        return math.log(second / first) if first > 0 and second > 0 else math.nan


def typical(bursts: Sequence[float]) -> float:
    """One value for the bursts of one process: the mean of the fastest third.

    Whatever else runs on the machine can only add to a burst, and one of the cores may be slow altogether: the median
    of the bursts follows the neighbours, the smallest alone is the luck of one burst. `gradmark check --rounds FILE`
    keeps every burst, to compare this with another choice.
    """
    ordered = sorted(bursts)
    return statistics.fmean(ordered[: (len(ordered) + 2) // 3])


@dataclass(slots=True)
class Case:
    """One benchmark with one combination of parameters, and all that was measured of it.

    Attributes
    ----------
    index : int or None
        asv's index of the combination.
    sides : tuple of str
        (BASE, HEAD), or (BASE, TWIN) for a sentinel.
    number, samples : int
        Calls of a sample, samples of a burst; frozen after the preparation, the same for both sides.
    burst_seconds : float
        What a burst of the slower side takes.
    prepared_seconds, seconds : float
        What its preparation cost, 0 where there was no time for it; and what a round of it costs.
    failure : tuple or None
        Side and error. No more rounds then.
    skipped : dict
        Reason by side, where it says that it cannot run.
    """

    facts: dict[str, Any]
    index: int | None
    params: tuple[str, ...]
    timeout: float
    kind: str
    sides: tuple[str, str] = (BASE, HEAD)
    pinned: bool = False
    number: int = 0
    samples: int = 0
    burst_seconds: float = 0.0
    prepared_seconds: float = 0.0
    seconds: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    failure: tuple[str, str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What Numba has compiled for it and for none before it, by side."""

    @property
    def name(self) -> str:
        """asv's."""
        return str(self.facts["name"])

    @property
    def identifier(self) -> str:
        """What asv_runner finds it by."""
        return self.name if self.index is None else f"{self.name}-{self.index}"

    @property
    def label(self) -> str:
        """For the reader."""
        return f"{self.name}({', '.join(self.params)})" if self.params else self.name

    @property
    def key(self) -> str:
        """Tells a sentinel from the benchmark that it repeats."""
        return f"{self.sides[1]}:{self.label}"

    @property
    def is_timing(self) -> bool:
        """Whether it is timed in bursts."""
        return self.kind in (SERIAL, PARALLEL, DEVICE)

    @property
    def can_run(self) -> bool:
        """Whether another round makes sense."""
        return self.failure is None and not self.skipped

    @property
    def higher_is_better(self) -> bool:
        """What a track_* benchmark may say of its value by an attribute of this name; asv takes lower for better."""
        return bool(self.facts.get("higher_is_better"))

    def log_ratios(self) -> list[float]:
        """One value a round, positive where the second side is worse."""
        return self.worsening(self.rounds)

    def worsening(self, rounds: Sequence[Round]) -> list[float]:
        """The log ratios of these rounds, positive where the second side is worse."""
        return [-one.log_ratio if self.higher_is_better else one.log_ratio for one in rounds]


def new_case(facts: Mapping[str, Any], index: int | None, params: tuple[str, ...], default_timeout: float) -> Case:
    """A case that was not measured yet."""
    timeout = facts.get("timeout")
    kind = _ASV_TYPES.get(str(facts["type"]), TRACK)
    return Case(dict(facts), index, params, float(default_timeout if timeout is None else timeout), kind)


class Session:
    """Runs rounds of cases over the installed sides."""

    def __init__(
        self,
        sides: Mapping[str, Side],
        suite: Path,
        caches: Mapping[tuple[str, str], Path],
        *,
        seed: int = 0,
        fresh_processes: bool = False,
    ) -> None:
        """Nothing is started yet.

        Parameters
        ----------
        suite : Path
            The folder of the benchmarks, for all sides.
        caches : mapping
            The folder of a setup_cache, by side and key.
        fresh_processes : bool
            asv's launch method "spawn": no benchmark is forked from a process that has imported the suite for others.
        """
        self._sides = sides
        self._suite = suite
        self._caches = caches
        self._draw = random.Random(seed)
        self._fresh_processes = fresh_processes
        self.completed = 0
        self.kernels: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        self.import_seconds = 0.0

    def prepare(self, cases: Sequence[Case], tick: Callable[[Case], None], *, deadline: float = math.inf) -> None:
        """Run each case once on both sides, where it compiles; find its class, and how many calls make a burst."""
        self._each(cases, self._prepare, tick, deadline)
        for case in cases:
            case.prepared_seconds = case.seconds

    def run_round(self, cases: Sequence[Case], tick: Callable[[Case], None], *, deadline: float = math.inf) -> None:
        """Measure each case once, in random order."""
        self._each(cases, _measure, tick, deadline)
        self.completed += 1

    def _each(
        self,
        cases: Sequence[Case],
        step: Callable[[Case, dict[str, Opened], random.Random], None],
        tick: Callable[[Case], None],
        deadline: float,
    ) -> None:
        order = [case for case in cases if case.can_run]
        self._draw.shuffle(order)
        seed = self._draw.randrange(2**63)
        workers: dict[str, Worker] = {}
        try:
            for position, case in enumerate(order):
                if time.monotonic() >= deadline:
                    return
                if self._fresh_processes and position:
                    _end(workers)
                needed = {name for later in order for name in later.sides} if not self._fresh_processes else case.sides
                try:
                    self._start_missing(workers, needed, seed + position if self._fresh_processes else seed)
                except WorkerLostError as error:
                    # The suite could be imported before: this costs one benchmark, and the next has fresh workers.
                    _end(workers)
                    case.failure = (error.side, str(error))
                    tick(case)
                    continue
                began = time.monotonic()
                self._one(case, workers, step)
                case.seconds = time.monotonic() - began
                tick(case)
        finally:
            _end(workers)

    def _prepare(self, case: Case, opened: dict[str, Opened], _: random.Random) -> None:
        _on_each(case, opened, partial(_call_once, case))
        if not case.is_timing or not case.can_run:
            return
        _calibrate(case, opened)
        for name in case.sides:
            known = [[kernel["name"], kernel["signature"]] for kernel in self.kernels[name]]
            request = {"do": "kernels", "assembly": str(ASSEMBLY), "known": known}
            case.kernels[name] = opened[name].ask(request, "kernels")["kernels"]
            self.kernels[name] += case.kernels[name]

    def _start_missing(self, workers: dict[str, Worker], names: Sequence[str] | set[str], seed: int) -> None:
        began = time.monotonic()
        missing = sorted(set(names) - set(workers))
        # Together: importing is not timed, and each has a core.
        self._draw.shuffle(missing)
        for name in missing:
            workers[name] = Worker(self._sides[name], self._suite, seed=seed)
        if self._fresh_processes:
            # A process that has looked at CUDA cannot be forked: the child itself imports what its benchmark needs.
            return
        for name in missing:
            workers[name].start_import()
        for name in missing:
            workers[name].finish_import()
        if missing:
            self.import_seconds = time.monotonic() - began

    def _one(
        self,
        case: Case,
        workers: dict[str, Worker],
        step: Callable[[Case, dict[str, Opened], random.Random], None],
    ) -> None:
        opened: dict[str, Opened] = {}
        try:
            self._open(case, workers, opened)
            if case.can_run:
                step(case, opened, self._draw)
                _on_each(case, opened, Opened.close)
        except SkippedError as error:
            case.skipped[error.side] = str(error)
        except BenchmarkError as error:
            case.failure = (error.side, str(error))
        except WorkerLostError as error:
            case.failure = (error.side, str(error))
            with contextlib.suppress(KeyError):
                workers.pop(error.side).end()
                opened.pop(error.side, None)
        finally:
            for name, one in opened.items():
                try:
                    one.kill()
                except WorkerLostError:
                    # What it says later must not be taken for the reply to the next benchmark.
                    if name in workers:
                        workers.pop(name).end()

    def _open(self, case: Case, workers: dict[str, Worker], opened: dict[str, Opened]) -> None:
        """Set the benchmark up on both sides, at the same time: nothing is timed meanwhile."""
        order = list(case.sides)
        self._draw.shuffle(order)
        for name in order:
            key = case.facts.get("setup_cache_key")
            folder = self._sides[name].home / "work" if key is None else self._caches[name, str(key)]
            workers[name].start_open(case.identifier, folder)
            opened[name] = Opened(workers[name], case.timeout)
        _on_each(case, opened, _wait_for_setup)


def _wait_for_setup(one: Opened) -> None:
    one.expect("skip")
    one.stop()


def _on_each(case: Case, opened: Mapping[str, Opened], action: Callable[[Opened], object]) -> None:
    """Try it on each side, whatever the other does: what fails on both must not look like a difference of the two."""
    errors: list[BenchmarkError] = []
    for name, one in opened.items():
        try:
            action(one)
        except SkippedError as error:
            case.skipped[name] = str(error)
        except BenchmarkError as error:
            errors.append(error)
    if errors:
        sides = " and ".join(sorted({error.side for error in errors}))
        messages = dict.fromkeys(str(error) for error in errors)
        if len(messages) > 1:
            messages = dict.fromkeys(f"{error.side}: {error}" for error in errors)
        raise BenchmarkError(sides, "; ".join(messages))


def _end(workers: dict[str, Worker]) -> None:
    while workers:
        workers.popitem()[1].end()


# --- what is done with a benchmark that both sides hold ready --------------------------------------------------------


def _call_once(case: Case, one: Opened) -> None:
    """Compiles, fills caches, and shows whether it runs at all."""
    if case.is_timing:
        _burst(one, int(case.facts.get("number") or 0) or 1, 1, 0)
    else:
        one.ask({"do": "value"}, "value")


def _calibrate(case: Case, opened: dict[str, Opened]) -> None:
    """Freeze `number` and `samples` so that a burst of the faster side lasts for BURST_SECONDS."""
    fixed = int(case.facts.get("number") or 0)
    single = bool(case.facts.get("has_setup")) or fixed
    number, samples = fixed or 1, 1
    quickest = math.inf
    for _ in range(40):
        began = time.monotonic()
        each = [_burst(one, number, samples, 0)["seconds"] for one in opened.values()]
        sample_seconds = (time.monotonic() - began) / (samples * len(each))
        quickest = min(each)
        if quickest * number * samples >= BURST_SECONDS:
            break
        calls = number * samples
        wanted = math.ceil(1.1 * BURST_SECONDS / max(quickest, 1e-9))
        calls = max(calls + 1, min(10 * calls, wanted))
        if single:
            wanted_samples = max(1, math.ceil(calls / number))
            most = min(_MOST_SAMPLES, max(1, int(_LONGEST_WITH_SETUP / sample_seconds)))
            samples = max(samples, min(wanted_samples, most))
            if wanted_samples >= most:
                break
        else:
            number = calls
    case.number, case.samples = number, min(samples, _MOST_SAMPLES)
    case.burst_seconds = max(each) * case.number * case.samples
    bursts = [_burst(one, number, case.samples, 0) for one in opened.values() for _ in range(CALIBRATIONS)]
    case.kind, case.pinned = _class_of(bursts)


_MOST_SAMPLES = 200
"""A sample of a benchmark with setup costs a setup, which is not timed but takes time."""

_LONGEST_WITH_SETUP = 50 * BURST_SECONDS
"""Of a burst with its setups: one of 0.5 s before each of 200 samples would be longer than asv's timeout."""


def _class_of(bursts: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """The class of a timing, and whether it may be kept on one core."""
    if any(burst["device"] for burst in bursts):
        return DEVICE, False
    cpu = sorted(burst["cpu"] or 0.0 for burst in bursts)
    # One thread never has more than one core, but several may get no more where the neighbours are busy: what counts is
    # the most that was seen, and seen twice.
    if cpu[-2] >= _PARALLEL_CPU:
        return PARALLEL, False
    # Below _BUSY_CPU it waits for something, of which a process of its own making may be one. Threads that share the
    # one core they were moved to wait for each other, a thousand times longer than they compute.
    return SERIAL, statistics.median(cpu) >= _BUSY_CPU and cpu[-1] < _PARALLEL_CPU


def _measure(case: Case, opened: dict[str, Opened], draw: random.Random) -> None:
    values: dict[str, list[float]] = {name: [] for name in case.sides}
    for name, core in _schedule(case, draw):
        if core is not None:
            opened[name].move_to(core)
        if case.is_timing:
            warm = min(case.number, 1) if case.number * case.samples > 1 else 0
            values[name].append(_burst(opened[name], case.number, case.samples, warm)["seconds"])
        else:
            value = opened[name].ask({"do": "value"}, "value")["value"]
            values[name].append(math.nan if value is None else float(value))
    first, second = case.sides
    case.rounds.append(Round(values[first], values[second]))


def _schedule(case: Case, draw: random.Random) -> list[tuple[str, int | None]]:
    """Whose turn it is, and on which core.

    ABBA or BAAB at random, so that neither a drift nor an order favours a side. What one thread computes runs on the
    same core on both sides, on each core in turn: left to itself a process stays where it is, and two virtual cores
    differ by whatever their hosts do, so that the side on the busier one looks slower for a whole round.
    """
    a, b = draw.sample(case.sides, 2)
    if not case.is_timing or case.burst_seconds > _VERY_LONG_BURST:
        return [(a, None), (b, None)]
    quads = QUADS if case.burst_seconds <= _LONG_BURST else 1
    cores: list[int | None] = [None]
    if case.pinned and hasattr(os, "sched_getaffinity"):
        cores = draw.sample(sorted(os.sched_getaffinity(0)), len(os.sched_getaffinity(0)))
    turns: list[tuple[str, int | None]] = []
    for quad in range(quads):
        a, b = draw.sample(case.sides, 2)
        turns += [(name, cores[quad % len(cores)]) for name in (a, b, b, a)]
    return turns


def _burst(one: Opened, number: int, samples: int, warm: int) -> dict[str, Any]:
    return one.ask({"do": "burst", "number": number, "samples": samples, "warm": warm}, "seconds")
