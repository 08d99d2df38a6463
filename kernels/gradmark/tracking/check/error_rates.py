"""How often this check is wrong, from the noise of this very run.

The rounds that were measured are drawn again, each with a random sign about its benchmark's own centre: a check of
identical code with this machine's noise, judged by the very procedure that judged the real one. How often it comes out
red is its false-alarm probability; the shift that it would have needed to be found says what it could have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gradmark.tracking.check import decide
from gradmark.tracking.check.decide import LOOKS, SCREEN_ROUNDS, Array
from gradmark.tracking.check.results import SLOWER, ErrorRates

SIMULATIONS = 1000
POWER = 0.9
_ROWS = 300
"""Resampled courses of one benchmark for what it could have seen."""


NEVER = np.full(_ROWS, np.inf)
"""The shifts that a benchmark without rounds would have needed."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one benchmark: deviations of its log ratios from their centre."""

    residuals: Array

    @classmethod
    def of(cls, log_ratios: Sequence[float]) -> Noise | None:
        """From its rounds; None where there are too few, or where a value is missing."""
        values = np.asarray(log_ratios, dtype=np.float64)
        n = len(values)
        if n < 3 or not np.all(np.isfinite(values)):
            return None
        # A sample about its own centre is too narrow by this factor.
        return cls((values - decide.estimate(values).log_ratio) * math.sqrt(n / (n - 1)))

    def draw(self, rng: np.random.Generator, rows: int, rounds: int) -> Array:
        """Rounds of identical code: symmetric, as exchanging the sides would leave it."""
        drawn = rng.choice(self.residuals, size=(rows, rounds))
        symmetric: Array = drawn * rng.choice((-1.0, 1.0), size=drawn.shape)
        return symmetric


Draw = Callable[[np.random.Generator, int, int], Array]
"""Draws log ratios of one benchmark: rows of simulated checks, columns of rounds."""


def false_alarm(
    noise: Sequence[Noise], threshold: float, rng: np.random.Generator, simulations: int = SIMULATIONS
) -> tuple[int, int]:
    """How many of `simulations` simulated checks of identical code are red; returns (red, simulations)."""
    slower = simulate([one.draw for one in noise], threshold, rng, simulations)
    return int(np.count_nonzero(slower.any(axis=1))), simulations


def simulate(
    draws: Sequence[Draw], threshold: float, rng: np.random.Generator, simulations: int = SIMULATIONS
) -> NDArray[np.bool_]:
    """Simulate whole checks; which benchmark (column) came out slower in which of them (row)."""
    limit = math.log1p(threshold)
    selected = np.zeros((simulations, len(draws)), dtype=bool)
    for column, draw in enumerate(draws):
        _, low, high, _, _ = decide.estimates(draw(rng, simulations, SCREEN_ROUNDS))
        selected[:, column] = (low < -limit) | (high > limit)
    courses: list[dict[int, Array]] = [{} for _ in range(simulations)]
    for column, draw in enumerate(draws):
        rows = np.flatnonzero(selected[:, column])
        for row, course in zip(rows, draw(rng, len(rows), LOOKS[-1]), strict=True):
            courses[row][column] = course
    slower = np.zeros_like(selected)
    for check, fresh in enumerate(courses):
        for benchmark, verdict in run_looks(fresh, threshold, len(fresh)).items():
            slower[check, benchmark] = verdict == SLOWER
    return slower


def run_looks(courses: Mapping[int, Array], threshold: float, selected: int) -> dict[int, str]:
    """The verdicts that fresh rounds get, judged as a check judges them."""
    verdicts: dict[int, str] = {}
    for number, rounds in enumerate(LOOKS):
        open_ = [key for key in courses if key not in verdicts]
        if not open_:
            break
        final = rounds == LOOKS[-1]
        found = decide.estimate_rows(np.array([courses[key][:rounds] for key in open_]))
        fresh = {str(key): one for key, one in zip(open_, found, strict=True)}
        alpha = decide.look_alpha(number, final=final)
        verdicts.update(
            (int(key), verdict) for key, verdict in decide.look(fresh, threshold, alpha, selected, final=final).items()
        )
    return verdicts


def needed_shifts(
    noise: Noise,
    threshold: float,
    selected: int,
    rng: np.random.Generator,
    looks: Sequence[int] = LOOKS,
    rows: int = _ROWS,
) -> Array:
    """For each of `rows` resampled courses, the log ratio from which on a slowdown would have been found in it.

    A shift moves estimate and interval along with it, so no search is needed: at some look the estimate must exceed
    the threshold and the test must reject, and neither the screening nor a look before it may have called it the same.
    `looks` are the fresh rounds after which it would have been judged; without any, nothing is found.
    """
    limit = math.log1p(threshold)
    _, _, high, _, _ = decide.estimates(noise.draw(rng, rows, SCREEN_ROUNDS))
    fresh = noise.draw(rng, rows, LOOKS[-1])
    unsettled = limit - high
    found = np.full(rows, np.inf)
    for number, rounds in enumerate(looks):
        alpha = decide.look_alpha(number, final=rounds == looks[-1]) / max(1, selected)
        lowest, centre, high = decide.lower_limits(fresh[:, :rounds], alpha)
        found = np.minimum(found, np.maximum(np.maximum(-lowest, limit - centre), unsettled))
        unsettled = np.maximum(unsettled, limit - high)
    return found


def detectable(shifts: Array) -> float | None:
    """The slowdown, as a fraction, that `POWER` of the courses find; None where they find none up to 100 %."""
    if not len(shifts):
        return None
    quantile = float(np.quantile(shifts, POWER, method="higher"))
    return math.expm1(quantile) if quantile <= math.log(2.0) else None


def summarize(red: int, simulations: int, shifts: Sequence[Array]) -> ErrorRates:
    """Error rates of the whole check; see `ErrorRates`."""
    bound = upper_bound(red, simulations)
    found = detectable(np.concatenate(shifts)) if shifts else None
    return ErrorRates(red / simulations, bound, simulations, found)


def upper_bound(events: int, trials: int) -> float:
    """Upper end of the one-sided 95 % interval of a probability (Clopper, Pearson, Biometrika 26, 1934)."""
    return float(stats.beta.ppf(0.95, events + 1, trials - events)) if events < trials else 1.0
