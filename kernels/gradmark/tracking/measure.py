"""The paired measurement: several callables timed in turn, so that what disturbs one disturbs all.

Two runs one after the other compare two moods of the machine. Here every round times one burst of every callable,
in random order, and a comparison is the ratio within a round; its median over the rounds is reported with an
interval that assumes no distribution. Nothing of the kernels is imported: the ruler is not made of what it measures.
"""

from __future__ import annotations

import functools
import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BURST_SECONDS = 5e-3
"""Shortest burst. perf_counter's overhead of some 50 ns is then 1e-5 of it, and a scheduler's tick is averaged."""

CONFIDENCE = 0.99
"""Of each interval. Not 0.95: a table of choices has some seventy of them, and 0.95 would err in several."""

EFFECT = 0.02
"""Differences below 2 % are called a tie even where they are certain: nobody should switch backends for them, and
the layout of memory alone moves a kernel by as much (Mytkowicz, Diwan, Hauswirth, Sweeney, ASPLOS 2009)."""

MAX_ROUNDS = 40

HOPELESS = 3.0
"""A callable that takes this many times the fastest one's time in every trial round is not timed any longer: that it
is slower is plain, and its time is better spent on those that are close."""

TRIAL_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """The median of a sample and an interval for the median of its distribution.

    Attributes
    ----------
    median, low, high : float
        `low` is 0 and `high` infinite where there are too few values for the confidence asked for.
    coverage : float
        The probability that the interval holds the median, exact for independent values; at least what was asked for.
    """

    median: float
    low: float
    high: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What `measure` found.

    Attributes
    ----------
    seconds : mapping of str to tuple of float
        Seconds per call in each completed round; the i-th values of all callables belong to the same round. Those
        that were given up after the trial rounds (`HOPELESS`) have `TRIAL_ROUNDS` values.
    number : mapping of str to int
        Calls per burst.
    interrupted : bool
        Whether Ctrl-C ended it; the completed rounds are kept.
    """

    seconds: Mapping[str, tuple[float, ...]]
    number: Mapping[str, int]
    interrupted: bool

    @property
    def rounds(self) -> int:
        """How many rounds were completed."""
        return max((len(values) for values in self.seconds.values()), default=0)

    @property
    def hopeless(self) -> tuple[str, ...]:
        """The callables that were given up."""
        return tuple(name for name, values in self.seconds.items() if len(values) < self.rounds)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which callable is fastest, or that it cannot be said.

    Attributes
    ----------
    fastest : str or None
        None: a tie.
    leaders : tuple of str
        The callable of the smallest median, then those that could not be told from it.
    runner_up : str or None
        The next by median after the first of the leaders; None where there is only one callable.
    ratio : Interval or None
        Time of the runner-up over time of the first.
    """

    fastest: str | None
    leaders: tuple[str, ...]
    runner_up: str | None
    ratio: Interval | None


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    budget: float,
    limit: float | None = None,
    synchronize: Mapping[str, Callable[[], object]] | None = None,
    seed: int = 0,
    after_round: Callable[[], None] | None = None,
) -> Measurement:
    """Time the candidates in interleaved rounds.

    The number of rounds follows from the budget, by a calibration before the first round and by the clock, never from
    how close the candidates are: an interval is not looked at until it pleases.

    Parameters
    ----------
    candidates : mapping of str to callable
        Functions without arguments. Each should have been called before, so that nothing is compiled here.
    budget : float
        Seconds, the calibration included.
    limit : float, optional
        Seconds up to which `min_rounds()` rounds are run even beyond the budget; the budget where it is not given.
        Where not even these fit, no round is run.
    synchronize : mapping of str to callable, optional
        Of candidates that return before their work is done (a CUDA launch): waits for it, once per burst, timed.
    seed : int
        Of the order within the rounds.
    after_round : callable, optional
        Called after each round, outside of the timed bursts.

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        There is no candidate, or the budget is not positive.
    """
    if not candidates:
        raise ValueError("there is nothing to measure; give at least one callable")
    if not budget > 0:
        raise ValueError(f"budget is {budget!r}; give a positive number of seconds")
    began = _clock()
    session = _Session({name: _Runner(call, (synchronize or {}).get(name)) for name, call in candidates.items()})
    interrupted = False
    collecting = gc.isenabled()
    gc.disable()
    try:
        session.calibrate(until=began + (limit or budget))
        rounds = session.affordable_rounds(began + budget, began + (limit or budget))
        shuffle = random.Random(seed).shuffle
        for completed in range(rounds):
            if completed >= min_rounds() and _clock() >= began + budget:
                break
            session.run_round(shuffle)
            if after_round is not None:
                after_round()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if collecting:
            gc.enable()
    seconds = {name: tuple(values) for name, values in session.seconds.items()}
    return Measurement(seconds, {name: runner.number for name, runner in session.runners.items()}, interrupted)


def compare(measurement: Measurement, slower: str, faster: str, *, confidence: float = CONFIDENCE) -> Interval:
    """How many times the time of `faster` `slower` takes: the median of the per-round ratios, with its interval.

    Raises ValueError where no round was completed.
    """
    # A candidate that was given up has fewer rounds: the ratio is that of the rounds which both have.
    pairs = zip(measurement.seconds[slower], measurement.seconds[faster], strict=False)
    return median_interval([a / b for a, b in pairs], confidence=confidence)


def judge(measurement: Measurement, *, confidence: float = CONFIDENCE, effect: float = EFFECT) -> Verdict:
    """Name the fastest callable, or a tie.

    A callable is named only if, against each of the others, the interval of the ratio lies above 1 + `effect`.
    Each interval has the confidence given, by itself. Candidates that were given up as hopeless are slower.

    Raises ValueError where no round was completed.
    """
    medians = {name: median_interval(values).median for name, values in measurement.seconds.items()}
    first, *others = sorted(medians, key=medians.__getitem__)
    ratios = {other: compare(measurement, other, first, confidence=confidence) for other in others}
    hopeless = measurement.hopeless
    tied = tuple(other for other, ratio in ratios.items() if other not in hopeless and not ratio.low > 1.0 + effect)
    runner_up = others[0] if others else None
    return Verdict(
        fastest=None if tied else first,
        leaders=(first, *tied),
        runner_up=runner_up,
        ratio=None if runner_up is None else ratios[runner_up],
    )


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """The median of a sample with a distribution-free interval between two order statistics.

    With B ~ Binomial(n, 1/2), the k-th smallest and the k-th largest of n independent values enclose the median
    with probability 1 - 2 P(B < k) (David, Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1).
    The narrowest such interval that reaches the confidence is taken.

    Rounds beside each other are not quite independent on a real machine; the coverage is exact only where they are.

    Raises ValueError for an empty sample.

    Examples
    --------
    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 8.0, 7.0], confidence=0.99)
    Interval(median=4.5, low=1.0, high=8.0, coverage=0.9921875)
    """
    if not len(values):
        raise ValueError("no value to take the median of")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    k, coverage = _rank(n, confidence)
    median = float(np.median(ordered))
    if k == 0:
        return Interval(median, 0.0, math.inf, coverage)
    return Interval(median, float(ordered[k - 1]), float(ordered[n - k]), coverage)


def min_rounds(confidence: float = CONFIDENCE) -> int:
    """The fewest rounds that give an interval of this confidence: smallest to largest covers 1 - 2^(1 - n)."""
    return math.ceil(1.0 - math.log2(1.0 - confidence))


@functools.cache
def _rank(n: int, confidence: float) -> tuple[int, float]:
    """The largest k with 1 - 2 P(B < k) >= confidence, and that probability; k = 0 stands for no interval."""
    below = stats.binom.cdf(np.arange(n), n, 0.5)
    k = int(np.count_nonzero(1.0 - 2.0 * below >= confidence))
    return k, 1.0 if k == 0 else float(1.0 - 2.0 * below[k - 1])


class _Runner:
    """One candidate: how it is called, and how often in a burst."""

    def __init__(self, call: Callable[[], object], synchronize: Callable[[], object] | None) -> None:
        self.call = call
        self.synchronize = synchronize
        self.number = 1
        self.per_call = 0.0
        self.cost = 0.0
        """Seconds that a burst takes with everything around it."""

    def calibrate(self) -> None:
        """Find how many calls last for BURST_SECONDS.

        One stall of the machine must not pass for a slow candidate: a short burst has to be long enough twice. Nor may
        a row of them: threads that wake on one core take a scheduler's time slice for each call until they are moved
        apart (946 µs instead of 11 were seen), and bursts of a few calls see nothing else. So the fastest call counts.
        """
        confirmed = False
        while True:
            began = _clock()
            self.per_call = self.burst()
            self.cost = _clock() - began
            lasted = self.per_call * self.number
            if lasted >= BURST_SECONDS:
                if confirmed or lasted >= 10 * BURST_SECONDS:
                    self._count_by_the_fastest_call()
                    return
                confirmed = True
                continue
            confirmed = False
            # At most tenfold: a first burst can be far slower than the next.
            wanted = math.ceil(1.1 * BURST_SECONDS / max(self.per_call, 1e-9))
            self.number = max(self.number + 1, min(10 * self.number, wanted))

    def _count_by_the_fastest_call(self) -> None:
        """Take more calls per burst where one of them took less than half of what they take on average.

        Where that makes a burst of them last as long as it should, the others were stalls.
        """
        if self.synchronize is not None or self.number == 1:
            # Calls that return before their work is done say nothing by themselves, and one has no other beside it.
            return
        fastest, before = math.inf, _clock()
        for _ in range(self.number):
            self.call()
            now = _clock()
            fastest, before = min(fastest, now - before), now
        if 2.0 * fastest >= self.per_call:
            return
        wanted = math.ceil(1.1 * BURST_SECONDS / max(fastest, 1e-9))
        while self.number < wanted:
            number, self.number = self.number, min(10 * self.number, wanted)
            began = _clock()
            per_call = self.burst()
            if per_call * self.number > 4.0 * BURST_SECONDS:
                # Calls of two speeds, for good, or a clock that has jumped.
                self.number = number
                return
            self.per_call, self.cost = per_call, _clock() - began

    def burst(self) -> float:
        """Seconds per call."""
        _settle()
        if self.number > 1:
            # Bring the inputs back into the cache and wake the threads, which the candidate before has displaced.
            self.call()
            if self.synchronize is not None:
                self.synchronize()
        call, calls = self.call, range(self.number)
        began = _clock()
        for _ in calls:
            call()
        if self.synchronize is not None:
            self.synchronize()
        return (_clock() - began) / self.number


class _Session:
    """The candidates, what each round costs, and what was measured so far."""

    def __init__(self, runners: dict[str, _Runner]) -> None:
        self.runners = runners
        self.seconds: dict[str, list[float]] = {name: [] for name in runners}
        self._racing = list(runners)
        self._calibrated = False

    def calibrate(self, until: float) -> None:
        for runner in self.runners.values():
            if _clock() >= until:
                return
            runner.calibrate()
        self._calibrated = True

    def affordable_rounds(self, deadline: float, limit: float) -> int:
        if not self._calibrated:
            return 0
        best = min(runner.per_call for runner in self.runners.values())
        racing = sum(r.cost for r in self.runners.values() if r.per_call <= HOPELESS * best)
        trial = TRIAL_ROUNDS * sum(r.cost for r in self.runners.values() if r.per_call > HOPELESS * best)
        now = _clock()
        if min_rounds() * racing + trial > limit - now:
            return 0
        return max(min_rounds(), min(MAX_ROUNDS, int((deadline - now - trial) / racing)))

    def run_round(self, shuffle: Callable[[list[str]], None]) -> None:
        order = list(self._racing)
        shuffle(order)
        one = {name: self.runners[name].burst() for name in order}
        for name, value in one.items():
            self.seconds[name].append(value)
        if len(self.seconds[order[0]]) == TRIAL_ROUNDS:
            self._racing = [name for name in self._racing if not self._is_hopeless(name)]

    def _is_hopeless(self, name: str) -> bool:
        best = [min(values) for values in zip(*self.seconds.values(), strict=True)]
        return all(own > HOPELESS * other for own, other in zip(self.seconds[name], best, strict=True))


def _settle() -> None:
    """Wait until no thread of this process computes.

    OpenMP's worker threads spin before they sleep: libgomp beneath torch and beneath Numba was seen to burn a core
    for about 10 ms after a parallel loop, which slows whatever is timed next. CPU time of other threads is booked
    by the kernel's tick, of 4 or 10 ms, so a window must be as long as a tick.
    """
    for _ in range(10):
        spent = time.process_time()
        time.sleep(0.010)
        if time.process_time() - spent < 0.001:
            return


_clock = time.perf_counter
