"""From the log ratios of rounds to verdicts: screen all, confirm on fresh rounds what could still be slower.

Under identical code the two sides of a round are exchangeable, so its log ratio is symmetric about zero, whatever the
noise: that is all that the signed-rank test (Wilcoxon, Biometrics Bulletin 1, 1945) asks for. The estimate and the
interval beside it are the ones that belong to this test (Hodges, Lehmann, Ann. Math. Statist. 34, 1963): the median
and two order statistics of the averages of all pairs.

A benchmark that the screening settles is "same" and gets no more rounds. The others are judged on fresh rounds alone,
so that having been selected for looking slow counts for nothing. They are judged at most three times (`LOOKS`); each
look spends a share of `ALPHA`, and within a look the false discovery rate is controlled over all that were selected
(Benjamini, Hochberg, J. R. Statist. Soc. B 57, 1995). Where nothing has changed, every discovery is false, so `ALPHA`
is also the probability of one red verdict or more in a whole check.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gradmark.tracking.check.results import FASTER, SAME, SLOWER, UNDECIDED

THRESHOLD = 0.03
"""The smallest change that counts."""

CONFIDENCE = 0.95
"""Of the interval of a ratio."""

ALPHA = 0.002
"""Probability of at least one "slower" in a check of identical code, over all looks; "faster" has as much."""

SCREEN_ROUNDS = 10
"""Rounds that all benchmarks get. With fewer, the ends of the interval are the extreme rounds."""

SENTINEL_ALPHA = 0.01
"""Of the A/A control, for each direction. More than `ALPHA`: after the screening alone it has to be able to tell."""

LOOKS = (16, 24, 36)
"""Fresh rounds after which the selected are judged. With 16, the smallest p-value is 1.5e-5: low enough for a single
slow benchmark among some forty that were selected."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Log ratio with its interval, and the one-sided p-values of "slower" and "faster"."""

    log_ratio: float
    low: float
    high: float
    p_slower: float
    p_faster: float
    rounds: int


def estimate(log_ratios: Sequence[float] | Array) -> Estimate:
    """Estimate from the rounds of one benchmark.

    Examples
    --------
    >>> found = estimate([0.04, 0.05, 0.06, 0.05, 0.045, 0.055, 0.05, 0.05])
    >>> round(found.log_ratio, 3), found.p_slower
    (0.05, 0.00390625)
    """
    return estimate_rows(np.asarray(log_ratios, dtype=np.float64)[None, :])[0]


def estimate_rows(values: Array) -> list[Estimate]:
    """One estimate for each row of rounds."""
    return [
        Estimate(float(centre), float(low), float(high), float(p_slower), float(p_faster), values.shape[1])
        for centre, low, high, p_slower, p_faster in zip(*estimates(values), strict=True)
    ]


def estimates(values: Array) -> tuple[Array, Array, Array, Array, Array]:
    """The same for many rows of rounds at once: centre, low, high, p_slower, p_faster."""
    n = values.shape[1]
    walsh = _walsh(values)
    k = _rank(n, CONFIDENCE)
    low, high = (walsh[:, k - 1], walsh[:, -k]) if k else (np.full(len(values), -np.inf), np.full(len(values), np.inf))
    above = _upper_tail(n)
    # The signed-rank statistic is the number of averages above zero; a zero counts against either claim.
    p_slower = above[np.count_nonzero(walsh > 0, axis=1)]
    p_faster = above[np.count_nonzero(walsh < 0, axis=1)]
    return np.median(walsh, axis=1), low, high, p_slower, p_faster


def lower_limits(values: Array, alpha: float) -> tuple[Array, Array, Array]:
    """For many rows of rounds: what must be above zero for "slower" to be significant at `alpha`, centre, high."""
    n = values.shape[1]
    walsh = _walsh(values)
    k = _rank(n, CONFIDENCE)
    # Significant are the values t of the statistic with P(T >= t) <= alpha; the smallest of them is `critical`.
    critical = int(np.count_nonzero(_upper_tail(n) > alpha))
    lowest = walsh[:, -critical] if critical <= walsh.shape[1] else np.full(len(values), -np.inf)
    high = walsh[:, -k] if k else np.full(len(values), np.inf)
    return lowest, np.median(walsh, axis=1), high


def screened_out(found: Estimate, threshold: float) -> bool:
    """Whether the screening settles it: the interval lies within the threshold."""
    limit = math.log1p(threshold)
    return found.rounds >= SCREEN_ROUNDS and -limit <= found.low and found.high <= limit


def look(
    fresh: Mapping[str, Estimate], threshold: float, alpha: float, selected: int, *, final: bool = False
) -> dict[str, str]:
    """Judge the selected benchmarks that are still open, on their fresh rounds.

    Parameters
    ----------
    fresh : mapping of str to Estimate
        The open ones.
    alpha : float
        What this look spends.
    selected : int
        How many benchmarks the screening has selected in this family; those that were settled since count as well.
    final : bool
        No further look follows: what stays open is "undecided".

    Returns
    -------
    dict of str to str
        Verdicts of those that are settled now.
    """
    limit = math.log1p(threshold)
    verdicts = {}
    for verdict, p_name, sign in ((SLOWER, "p_slower", 1.0), (FASTER, "p_faster", -1.0)):
        p_values = [getattr(found, p_name) for found in fresh.values()]
        adjusted = adjust(p_values, selected)
        for (name, found), p in zip(fresh.items(), adjusted, strict=True):
            if p <= alpha and sign * found.log_ratio > limit:
                verdicts[name] = verdict
    for name, found in fresh.items():
        if name not in verdicts and -limit <= found.low and found.high <= limit:
            verdicts[name] = SAME
        elif name not in verdicts and final:
            verdicts[name] = UNDECIDED
    return verdicts


def adjust(p_values: Sequence[float], family: int) -> list[float]:
    """p-values adjusted for the false discovery rate in a family, of which those not given count as 1."""
    if not p_values:
        return []
    padded = [*p_values, *[1.0] * (family - len(p_values))]
    return [float(p) for p in stats.false_discovery_control(padded)[: len(p_values)]]


def look_alpha(number: int, *, final: bool) -> float:
    """What look `number` (from 0) spends; the last one, wherever the budget puts it, spends all that is left."""
    share = ALPHA / len(LOOKS)
    return ALPHA - share * number if final else share


def _walsh(values: Array) -> Array:
    """The averages of all pairs in each row, each value with itself among them, sorted."""
    i, j = np.triu_indices(values.shape[1])
    return np.sort((values[:, i] + values[:, j]) / 2.0, axis=1)


@functools.cache
def _null_counts(n: int) -> tuple[int, ...]:
    """How many of the 2^n sign patterns give each value of the signed-rank statistic."""
    counts = [1]
    for rank in range(1, n + 1):
        longer = [*counts, *[0] * rank]
        for value, count in enumerate(counts):
            longer[value + rank] += count
        counts = longer
    return tuple(counts)


@functools.cache
def _upper_tail(n: int) -> Array:
    """P(T >= t) for t = 0, 1, …"""
    total = 2**n
    tail, tails = 0, []
    for count in reversed(_null_counts(n)):
        tail += count
        tails.append(tail / total)
    return np.array(tails[::-1])


@functools.cache
def _rank(n: int, confidence: float) -> int:
    """The largest k for which the k-th smallest and largest averages enclose the centre with that confidence."""
    tail, k = 0, 0
    for count in _null_counts(n):
        tail += count
        if 2 * tail / 2**n > 1.0 - confidence:
            return k
        k += 1
    return k
