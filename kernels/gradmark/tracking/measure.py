"""The paired measurement: several callables timed in turn, so that what disturbs one disturbs all.

Two runs one after the other compare two moods of the machine. Here every round times one burst of every callable,
in random order, and a comparison is the ratio within a round; its median over the rounds is reported with an
interval that assumes no distribution. Nothing of the kernels is imported: the ruler is not made of what it measures.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
"""A callable that takes more than this many times the fastest one's time in every trial round is given up: that it is
slower is plain, and its time is better spent on those that are close. It is tried again, as a stall of the machine
(a core taken away, page faults) can last as long as the trial: one of 16 µs was seen at 6.9 ms in all of it."""

TRIAL_ROUNDS = 3

RETRY_ROUNDS = (6, 12, 24)
"""The rounds, from 1, that try again whoever was given up: the number of rounds has doubled. The last round does too.
With the trial that makes seven values at most, fewer than `min_rounds()`: no interval for who stays given up."""

RETRY_SHARE = 0.1
"""Of the budget: what all these retries may take together, half of it kept for the last round. Those that would not
fit in by the shortest burst of each are left out; beyond it goes no more than one round errs in that estimate."""

RETRY_CALLS = 10
"""Calls timed one by one before a retry's burst. Threads that wake on one core were seen to stall the first seven."""


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
        Seconds per call in the completed rounds, in their order. Callables that were given up, for good or until they
        came back, have fewer values than there are rounds; see `measure` for which.
    number : mapping of str to int
        Calls per burst.
    interrupted : bool
        Whether Ctrl-C ended it; the completed rounds are kept.
    hopeless : tuple of str
        The callables that were given up and did not come back.
    timed_in : mapping of str to tuple of int
        The rounds, from 0, to which the values of a callable belong; where it is missing, the first ones.
    """

    seconds: Mapping[str, tuple[float, ...]]
    number: Mapping[str, int]
    interrupted: bool
    hopeless: tuple[str, ...] = ()
    timed_in: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds were completed."""
        return max((len(values) for values in self.seconds.values()), default=0)

    def by_round(self, name: str) -> dict[int, float]:
        """The values of a callable by the rounds to which they belong."""
        values = self.seconds[name]
        return dict(zip(self.timed_in.get(name, range(len(values))), values, strict=True))


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
    hopeless: float = HOPELESS,
) -> Measurement:
    """Time the candidates in interleaved rounds.

    The number of rounds follows from the budget, by a calibration before the first round and by the clock, never from
    how close the candidates are: an interval is not looked at until it pleases.

    A candidate that is given up (`HOPELESS`) is tried again in `RETRY_ROUNDS` and in the last round, for no more than
    `RETRY_SHARE` of the budget. If it then takes at most `HOPELESS` times the fastest one's time, in that round and in
    the median one, it has come back: it takes part in all further rounds, and its values from before do not count.
    The most recent value decides because a stall can only add time: one burst without it proves that it was one.
    Of a candidate that stays given up, values above `HOPELESS` times its smallest do not count, for the same reason.

    Parameters
    ----------
    candidates : mapping of str to callable
        Functions without arguments. Each should have been called before, so that nothing is compiled here.
    budget : float
        Seconds, the calibration included.
    limit : float, optional
        Seconds up to which `min_rounds()` rounds are run even beyond the budget, also of a candidate that came back
        late; the budget where it is not given. Where not even the first of these fit, no round is run.
    synchronize : mapping of str to callable, optional
        Of candidates that return before their work is done (a CUDA launch): waits for it, once per burst, timed.
    seed : int
        Of the order within the rounds.
    after_round : callable, optional
        Called after each round, outside of the timed bursts.
    hopeless : float
        From how many times the fastest one's time on a candidate is given up. With infinity nobody is, and every ratio
        has an interval.

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
    session = _Session(
        {name: _Runner(call, (synchronize or {}).get(name)) for name, call in candidates.items()},
        deadline=began + budget,
        limit=began + (limit or budget),
        retry_seconds=RETRY_SHARE * budget,
        hopeless=hopeless,
    )
    interrupted = False
    collecting = gc.isenabled()
    gc.disable()
    try:
        session.calibrate()
        shuffle = random.Random(seed).shuffle
        while session.goes_on():
            session.run_round(shuffle)
            if after_round is not None:
                after_round()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if collecting:
            gc.enable()
    counted = session.counted()
    return Measurement(
        seconds={name: tuple(values.values()) for name, values in counted.items()},
        number={name: runner.number for name, runner in session.runners.items()},
        interrupted=interrupted,
        hopeless=tuple(name for name in counted if name in session.given_up),
        timed_in={name: tuple(values) for name, values in counted.items()},
    )


def compare(measurement: Measurement, slower: str, faster: str, *, confidence: float = CONFIDENCE) -> Interval:
    """How many times the time of `faster` `slower` takes: the median of the per-round ratios, with its interval.

    Only rounds with values of both count. Of a candidate that was given up there are but a few, in which the other one
    may have been stalled: then it is the ratio of their smallest values, without an interval.

    Raises ValueError where no round was completed.
    """
    a, b = measurement.by_round(slower), measurement.by_round(faster)
    ratios = [a[one] / b[one] for one in a if one in b]
    if a and b and {slower, faster} & set(measurement.hopeless):
        return median_interval([min(a.values()) / min(b.values())], confidence=confidence)
    return median_interval(ratios, confidence=confidence)


def judge(measurement: Measurement, *, confidence: float = CONFIDENCE, effect: float = EFFECT) -> Verdict:
    """Name the fastest callable, or a tie.

    A callable is named only if, against each of the others, the interval of the ratio lies above 1 + `effect`.
    Each interval has the confidence given, by itself. Candidates that were given up as hopeless are slower.

    Raises ValueError where no round was completed.
    """
    medians = {name: median_interval(values).median for name, values in measurement.seconds.items()}
    hopeless = measurement.hopeless
    # On a machine that slows down, the few values of who was given up early can be the smaller ones.
    first, *others = sorted(medians, key=lambda name: (name in hopeless, medians[name]))
    ratios = {other: compare(measurement, other, first, confidence=confidence) for other in others}
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
        """Seconds that a burst takes with everything around it, at the least."""

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
            if self.number == 1:
                # A burst as long as these calls promise is confirmed by them.
                self.number, confirmed = max(2, self._guess()), True
                continue
            # At most tenfold: a first burst can be far slower than the next.
            wanted = math.ceil(1.1 * BURST_SECONDS / max(self.per_call, 1e-9))
            self.number = max(self.number + 1, min(10 * self.number, wanted))

    def _guess(self) -> int:
        """How many calls last for BURST_SECONDS, by a few calls. No more: a stall among them makes it too few only."""
        began, calls, lasted = _clock(), 0, 0.0
        while calls < RETRY_CALLS and lasted < BURST_SECONDS:
            self.call()
            if self.synchronize is not None:
                self.synchronize()
            calls, lasted = calls + 1, _clock() - began
        return max(1, math.ceil(1.1 * BURST_SECONDS * calls / max(lasted, 1e-6)))

    def _count_by_the_fastest_call(self) -> None:
        """Take more calls per burst where the fastest of them asks for it."""
        if self.synchronize is not None or self.number == 1:
            # Calls that return before their work is done say nothing by themselves, and one has no other beside it.
            return
        self._grow(self._fastest_call(self.number))

    def _fastest_call(self, calls: int, lasting: float = math.inf) -> float:
        """Seconds of the fastest of so many calls, or of the first few of them that last for so many seconds."""
        fastest = math.inf
        began = before = _clock()
        for _ in range(calls):
            self.call()
            if self.synchronize is not None:
                self.synchronize()
            now = _clock()
            fastest, before = min(fastest, now - before), now
            if now - began >= lasting:
                break
        return fastest

    def _grow(self, fastest: float) -> None:
        """Take more calls per burst where one of them took less than half of what they took on average.

        Where that makes a burst of them last as long as it should, the others were stalls.
        """
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

    def retry(self) -> float:
        """Seconds per call of a candidate that was given up, in a burst that is short even if it is still stalled.

        The calibration may have been stalled too: the fastest of a few calls says how many make a burst.
        """
        _settle()
        fastest = self._fastest_call(RETRY_CALLS, lasting=4.0 * BURST_SECONDS)
        if fastest >= 4.0 * BURST_SECONDS:
            # There was one call, and it is a burst.
            return fastest
        self._grow(fastest)
        return self._timed(min(self.number, math.ceil(1.1 * BURST_SECONDS / max(fastest, 1e-9))))

    def burst(self) -> float:
        """Seconds per call."""
        _settle()
        return self._timed(self.number)

    def _timed(self, number: int) -> float:
        if number > 1:
            # Bring the inputs back into the cache and wake the threads, which the candidate before has displaced.
            self.call()
            if self.synchronize is not None:
                self.synchronize()
        call, calls = self.call, range(number)
        began = _clock()
        for _ in calls:
            call()
        if self.synchronize is not None:
            self.synchronize()
        return (_clock() - began) / number


class _Session:
    """The candidates, what each round costs, and what was measured so far."""

    def __init__(
        self, runners: dict[str, _Runner], *, deadline: float, limit: float, retry_seconds: float, hopeless: float
    ) -> None:
        self.runners = runners
        self.given_up: list[str] = []
        self._seconds: dict[str, dict[int, float]] = {name: {} for name in runners}
        self._racing = list(runners)
        self._fastest: list[float] = []
        """Seconds per call of the fastest candidate of each round."""
        self._planned = 0
        self._deadline, self._limit, self._hopeless = deadline, limit, hopeless
        self._retry_seconds = self._retry_left = retry_seconds
        self._round_seconds = 0.0
        """How long the last round took, without the retries."""
        self._tried_last = False

    def calibrate(self) -> None:
        """Calibrate every candidate and plan the rounds; none where the time does not suffice."""
        for runner in self.runners.values():
            if _clock() >= self._limit:
                return
            runner.calibrate()
        self._planned = self._affordable_rounds()

    def _affordable_rounds(self) -> int:
        best = min(runner.per_call for runner in self.runners.values())
        racing = sum(r.cost for r in self.runners.values() if r.per_call <= self._hopeless * best)
        trial = TRIAL_ROUNDS * sum(r.cost for r in self.runners.values() if r.per_call > self._hopeless * best)
        now = _clock()
        if min_rounds() * racing + trial > self._limit - now:
            return 0
        return max(min_rounds(), min(MAX_ROUNDS, int((self._deadline - now - trial) / racing)))

    def goes_on(self) -> bool:
        """Whether another round is run."""
        rounds, now = len(self._fastest), _clock()
        if rounds < self._planned and (rounds < min_rounds() or now < self._deadline):
            return True
        if not self._planned or now + self._round_seconds > self._limit:
            return False
        # Who came back late has too few rounds for an interval; and a slow round may have hidden that it was the last.
        late = any(len(self._seconds[name]) < min_rounds() for name in self._racing)
        return late or (not self._tried_last and bool(self._affordable_retries(last=True)))

    def run_round(self, shuffle: Callable[[list[str]], None]) -> None:
        this, last = len(self._fastest), self._is_last()
        retried = self._affordable_retries(last) if last or this + 1 in RETRY_ROUNDS else []
        order = [*self._racing, *retried]
        shuffle(order)
        one, lasted = {}, {}
        for name in order:
            began = _clock()
            one[name] = self.runners[name].retry() if name in retried else self.runners[name].burst()
            lasted[name] = _clock() - began
        for name, value in one.items():
            self._seconds[name][this] = value
            self.runners[name].cost = min(self.runners[name].cost, lasted[name])
        self._fastest.append(min(one.values()))
        self._round_seconds = sum(lasted[name] for name in self._racing)
        self._retry_left -= sum(lasted[name] for name in retried)
        self._tried_last = self._tried_last or last
        self._readmit(retried)
        if this + 1 == TRIAL_ROUNDS:
            self.given_up = [name for name in self._racing if self._is_hopeless(name)]
            self._racing = [name for name in self._racing if name not in self.given_up]

    def counted(self) -> dict[str, dict[int, float]]:
        """What was measured of each candidate, by the round, without what was stalled."""
        found = dict(self._seconds)
        for name in self.given_up:
            most = self._hopeless * min(found[name].values())
            found[name] = {one: value for one, value in found[name].items() if value <= most}
        return found

    def _is_last(self) -> bool:
        """Whether the next round is the last, by plan and clock, in which to try again whoever was given up.

        Once only, as others follow if somebody comes back. By the clock it is the last that the retries leave whole.
        """
        following = len(self._fastest) + 1
        if self._tried_last or following < min_rounds():
            return False
        retries = sum(self.runners[name].cost for name in self._affordable_retries(last=True))
        late = _clock() + 2 * self._round_seconds + retries >= self._deadline
        return late or following >= self._planned

    def _affordable_retries(self, last: bool) -> list[str]:
        """Whoever was given up, as far as the share of the retries goes and the fewest rounds still fit."""
        room = self._retry_left if last else self._retry_left - self._retry_seconds / 2
        needed = max(1, min_rounds() - len(self._fastest)) * self._round_seconds
        room = min(room, self._limit - _clock() - needed)
        # Who has cost the least comes first: a slow one shall not stand in the way of the others, nor always the same.
        cost = {name: self.runners[name].cost for name in self.given_up}
        found = []
        for name in sorted(cost, key=lambda name: cost[name] * len(self._seconds[name])):
            if cost[name] <= room:
                found.append(name)
                room -= cost[name]
        return found

    def _readmit(self, retried: Sequence[str]) -> None:
        this = len(self._fastest) - 1
        # The median as well: a stall of the fastest one in this round must not bring all the others back.
        most = self._hopeless * min(self._fastest[this], statistics.median(self._fastest))
        for name in retried:
            if self._seconds[name][this] <= most:
                self._seconds[name] = {this: self._seconds[name][this]}
                self.given_up.remove(name)
                self._racing.append(name)

    def _is_hopeless(self, name: str) -> bool:
        return all(own > self._hopeless * self._fastest[one] for one, own in self._seconds[name].items())


def _settle() -> None:
    """Wait until no other thread of this process computes.

    OpenMP's worker threads spin before they sleep: libgomp beneath torch and beneath Numba was seen to burn a core
    for about 10 ms after a parallel loop, which slows whatever is timed next. After a serial kernel nobody spins, and
    nothing is waited for: of small arrays that is two thirds of what a round takes.
    """
    for _ in range(100):
        busy = _others_run()
        if busy is None:
            _settle_by_the_clock()
            return
        if not busy:
            return
        time.sleep(0.001)


def _others_run() -> bool | None:
    """Whether another thread of this process runs or wants to; None where the system does not tell."""
    own = str(threading.get_native_id())
    try:
        threads = os.listdir("/proc/self/task")  # noqa: PTH208 (a path object for each would take as long as the burst)
    except OSError:
        return None
    for thread in threads:
        if thread == own:
            continue
        try:
            with open(f"/proc/self/task/{thread}/stat", "rb") as file:  # noqa: PTH123 (see above)
                # pid (name) state …, see proc_pid_stat(5); the name may hold anything.
                state = file.read().rpartition(b")")[2][1:2]
        except OSError:
            continue  # It has ended.
        if state == b"R":
            return True
    return False


def _settle_by_the_clock() -> None:
    # CPU time of other threads is booked by the kernel's tick, of 4 or 10 ms, so a window must be as long as a tick.
    for _ in range(10):
        spent = time.process_time()
        time.sleep(0.010)
        if time.process_time() - spent < 0.001:
            return


_clock = time.perf_counter
