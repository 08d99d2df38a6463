"""The statistics of one benchmark: against SciPy, against its own test inverted, and rule by rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradmark.tracking.check import decide
from gradmark.tracking.check.decide import ALPHA, CONFIDENCE, LOOKS, SCREEN_ROUNDS, THRESHOLD, Estimate
from gradmark.tracking.check.results import FASTER, SAME, SLOWER, UNDECIDED

LIMIT = math.log1p(THRESHOLD)
SIDE = (1.0 - CONFIDENCE) / 2.0

NOISES = {
    "normal": lambda rng, shape: rng.normal(0.0, 0.01, shape),
    "cauchy": lambda rng, shape: 0.01 * rng.standard_cauchy(shape),
    "two points": lambda rng, shape: rng.choice((-0.02, 0.02), shape),
}


def wilcoxon(values, alternative):
    return stats.wilcoxon(values, alternative=alternative, method="exact").pvalue


@pytest.mark.parametrize("n", range(5, 41))
def test_p_values_are_those_of_the_exact_signed_rank_test(n):
    rng = np.random.default_rng(n)
    for centre in (-0.02, 0.0, 0.01):
        values = rng.normal(centre, 0.02, n)
        found = decide.estimate(values)
        assert found.p_slower == pytest.approx(wilcoxon(values, "greater"), rel=1e-12)
        assert found.p_faster == pytest.approx(wilcoxon(values, "less"), rel=1e-12)
        assert found.rounds == n


@pytest.mark.parametrize("n", range(6, 41))
def test_interval_is_the_inverted_test(n):
    values = np.random.default_rng(100 + n).normal(0.01, 0.02, n)
    found = decide.estimate(values)
    step = 1e-9
    assert found.low < found.log_ratio < found.high
    for inside in (found.low + step, found.log_ratio, found.high - step):
        assert min(wilcoxon(values - inside, "greater"), wilcoxon(values - inside, "less")) > SIDE
    assert wilcoxon(values - (found.low - step), "greater") <= SIDE
    assert wilcoxon(values - (found.high + step), "less") <= SIDE


@pytest.mark.parametrize("n", range(1, 6))
def test_five_rounds_have_no_interval(n):
    found = decide.estimate(np.linspace(0.01, 0.02, n))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.p_slower == 0.5**n


@pytest.mark.parametrize("n", [6, SCREEN_ROUNDS, LOOKS[0]])
@pytest.mark.parametrize("noise", NOISES)
def test_interval_has_its_coverage(noise, n):
    rows = 6000
    _, low, high, _, _ = decide.estimates(NOISES[noise](np.random.default_rng(n), (rows, n)))
    covered = np.count_nonzero((low <= 0) & (high >= 0))
    assert stats.binom.cdf(covered, rows, CONFIDENCE) > 1e-4
    if noise != "two points":  # of which ties make it wider
        exact = 1.0 - 2.0 * stats.wilcoxon(np.arange(1.0, n + 1), method="exact", alternative="less").pvalue
        assert exact < 0  # all positive: the other tail is 1
        assert covered < rows * 0.985


@pytest.mark.parametrize("noise", NOISES)
def test_p_values_are_no_smaller_than_they_claim(noise):
    rows = 20_000
    _, _, _, *both = decide.estimates(NOISES[noise](np.random.default_rng(5), (rows, LOOKS[0])))
    for p_values in both:
        for level in (0.001, 0.01, 0.05, 0.3):
            assert stats.binom.sf(np.count_nonzero(p_values <= level) - 1, rows, level) > 1e-5


def test_estimate_is_the_median_of_the_averages_of_all_pairs():
    values = [0.0, 0.01, 0.05, 0.2]
    averages = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert decide.estimate(values).log_ratio == pytest.approx(np.median(averages), rel=1e-15)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [7, SCREEN_ROUNDS, LOOKS[1]])
def test_shifts_signs_and_order(noise, n):
    rng = np.random.default_rng(n)
    values = NOISES[noise](rng, n) + 0.003
    found = decide.estimate(values)
    shifted = decide.estimate(values + 0.25)
    for name in ("log_ratio", "low", "high"):
        assert getattr(shifted, name) == pytest.approx(getattr(found, name) + 0.25, abs=1e-12)
    assert decide.estimate(-values) == Estimate(
        -found.log_ratio, -found.high, -found.low, found.p_faster, found.p_slower, n
    )
    assert decide.estimate(rng.permutation(values)) == found


def test_many_rows_are_estimated_as_one():
    values = np.random.default_rng(1).normal(0.0, 0.02, (20, SCREEN_ROUNDS))
    assert decide.estimate_rows(values) == [decide.estimate(row) for row in values]


def test_a_zero_counts_against_either_claim():
    nothing = decide.estimate([0.0] * 12)
    assert (nothing.log_ratio, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    assert nothing.p_slower == nothing.p_faster == 1.0
    some = decide.estimate([0.0, 0.0, *np.linspace(0.01, 0.02, 10)])
    assert some.p_slower > decide.estimate(np.linspace(0.001, 0.02, 12)).p_slower
    assert some.p_faster == 1.0


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, ALPHA / 30, 1e-6])
@pytest.mark.parametrize("n", [5, SCREEN_ROUNDS, *LOOKS])
def test_lower_limits_say_what_the_p_values_say(n, alpha):
    values = np.random.default_rng(n).normal(0.006, 0.01, (500, n))
    lowest, centre, high = decide.lower_limits(values, alpha)
    expected_centre, _, expected_high, p_slower, _ = decide.estimates(values)
    np.testing.assert_array_equal(lowest > 0, p_slower <= alpha)
    np.testing.assert_array_equal(centre, expected_centre)
    np.testing.assert_array_equal(high, expected_high)


# --- screening --------------------------------------------------------------------------------------------------------


def made(centre=0.0, low=None, high=None, p_slower=1.0, p_faster=1.0, rounds=16):
    return Estimate(
        centre, centre if low is None else low, centre if high is None else high, p_slower, p_faster, rounds
    )


@pytest.mark.parametrize(
    ("low", "high", "rounds", "settled"),
    [
        (-LIMIT, LIMIT, SCREEN_ROUNDS, True),
        (-0.01, 0.01, SCREEN_ROUNDS - 1, False),
        (-0.01, math.nextafter(LIMIT, 1), SCREEN_ROUNDS, False),
        (math.nextafter(-LIMIT, -1), 0.01, SCREEN_ROUNDS, False),
        (0.05, 0.06, SCREEN_ROUNDS, False),
        (-math.inf, math.inf, SCREEN_ROUNDS, False),
    ],
)
def test_screening_settles_what_lies_within_the_threshold(low, high, rounds, settled):
    assert (
        decide.screened_out(made((low + high) / 2 if math.isfinite(low) else 0, low, high, rounds=rounds), THRESHOLD)
        is settled
    )


def test_fewer_rounds_of_screening_would_take_the_extremes_for_ends():
    few = np.sort(np.random.default_rng(2).normal(0, 0.01, 6))
    assert decide.estimate(few).low == few[0]
    enough = np.sort(np.random.default_rng(2).normal(0, 0.01, SCREEN_ROUNDS))
    assert decide.estimate(enough).low > enough[0]


# --- looks ------------------------------------------------------------------------------------------------------------

estimates = st.builds(
    lambda ends, p_slower, p_faster: Estimate(ends[1], ends[0], ends[2], p_slower, p_faster, 16),
    st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=3).map(sorted),
    st.floats(0, 0.01) | st.floats(0, 1) | st.just(0.0),
    st.floats(0, 0.01) | st.floats(0, 1) | st.just(0.0),
)


@given(fresh=st.lists(estimates, max_size=8), settled=st.integers(0, 20), final=st.booleans())
@settings(max_examples=300, deadline=None)
def test_verdicts_of_a_look(fresh, settled, final):
    named = {f"b{number}": one for number, one in enumerate(fresh)}
    family = len(fresh) + settled
    verdicts = decide.look(named, THRESHOLD, 0.001, family, final=final)
    assert set(verdicts) <= set(named)
    slower = benjamini_hochberg([one.p_slower for one in fresh], family)
    faster = benjamini_hochberg([one.p_faster for one in fresh], family)
    for (name, one), p_slower, p_faster in zip(named.items(), slower, faster, strict=True):
        expected = UNDECIDED if final else None
        if one.low >= -LIMIT and one.high <= LIMIT:
            expected = SAME
        if one.log_ratio > LIMIT and p_slower <= 0.001:
            expected = SLOWER
        if one.log_ratio < -LIMIT and p_faster <= 0.001:
            expected = FASTER
        assert verdicts.get(name) == expected


def test_significant_but_small_is_not_slower():
    below = made(LIMIT, 0.02, 0.04, p_slower=0.0)
    above = made(math.nextafter(LIMIT, 1), 0.02, 0.04, p_slower=0.0)
    assert decide.look({"a": below, "b": above}, THRESHOLD, 0.01, 2) == {"b": SLOWER}


def test_the_settled_stay_in_the_family():
    one = made(0.05, 0.04, 0.06, p_slower=0.001)
    assert decide.look({"a": one}, THRESHOLD, 0.01, 10) == {"a": SLOWER}
    assert decide.look({"a": one}, THRESHOLD, 0.01, 11) == {}
    assert decide.look({"a": one}, THRESHOLD, 0.01, 11, final=True) == {"a": UNDECIDED}


def test_nothing_open_has_no_verdicts():
    assert decide.look({}, THRESHOLD, 0.01, 5, final=True) == {}


def benjamini_hochberg(p_values, family):
    """Adjusted: the smallest level at which the step-up procedure rejects, from its definition."""
    everything = sorted([*p_values, *[1.0] * (family - len(p_values))])
    return [
        min(family * q / (rank + 1) for rank, q in enumerate(everything) if q >= p) if p_values else 1.0
        for p in p_values
    ]


@given(p_values=st.lists(st.floats(1e-9, 1), max_size=12), more=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_adjusted_for_the_false_discovery_rate_in_the_padded_family(p_values, more):
    family = len(p_values) + more
    expected = [min(1.0, p) for p in benjamini_hochberg(p_values, family)]
    assert decide.adjust(p_values, family) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("last", range(len(LOOKS)))
def test_the_looks_spend_alpha_wherever_the_last_one_comes(last):
    spent = [decide.look_alpha(number, final=number == last) for number in range(last + 1)]
    assert min(spent) > 0
    assert sum(spent) == pytest.approx(ALPHA, rel=1e-12)


def test_the_first_look_can_find_one_among_forty():
    smallest = decide.estimate(np.linspace(0.04, 0.06, LOOKS[0]))
    alpha = decide.look_alpha(0, final=False)
    assert decide.look({"a": smallest}, THRESHOLD, alpha, 40) == {"a": SLOWER}
    assert decide.look({"a": smallest}, THRESHOLD, alpha, 50) == {}
