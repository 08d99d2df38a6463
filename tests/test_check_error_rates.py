"""How often a whole check errs: simulated here on its own, and compared with what the check says about itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradmark.tracking.check import decide, error_rates
from gradmark.tracking.check.decide import ALPHA, LOOKS, SCREEN_ROUNDS, THRESHOLD
from gradmark.tracking.check.error_rates import Noise
from gradmark.tracking.check.results import FASTER, SAME, SLOWER, UNDECIDED

LIMIT = math.log1p(THRESHOLD)
BENCHMARKS = 8


def outliers(rng, shape):
    scale = np.where(rng.random(shape) < 0.15, 0.3, 0.01)
    return scale * rng.normal(size=shape)


def common(rng, shape):
    """What disturbs a process disturbs all benchmarks in it."""
    rows, rounds = shape
    shared = rng.normal(0.0, 0.03, (rows // BENCHMARKS, 1, rounds))
    return (shared + rng.normal(0.0, 0.02, (rows // BENCHMARKS, BENCHMARKS, rounds))).reshape(shape)


NOISES = {
    "normal 1 %": lambda rng, shape: rng.normal(0.0, 0.01, shape),
    "normal 5 %": lambda rng, shape: rng.normal(0.0, 0.05, shape),
    "cauchy": lambda rng, shape: 0.02 * rng.standard_cauchy(shape),
    "outliers": outliers,
    "two points": lambda rng, shape: rng.choice((-0.06, 0.06), shape),
    "common": common,
}


def whole_checks(values, threshold, last_look=lambda check: len(LOOKS) - 1):
    """Verdicts of whole checks; `values` are checks by benchmarks by rounds, `last_look` is where the budget ends."""
    checks, benchmarks, _ = values.shape
    stages = [values[..., :SCREEN_ROUNDS], *(values[..., SCREEN_ROUNDS : SCREEN_ROUNDS + n] for n in LOOKS)]
    screening, *looks = (decide.estimate_rows(stage.reshape(checks * benchmarks, -1)) for stage in stages)
    verdicts = []
    for check in range(checks):
        mine = slice(check * benchmarks, (check + 1) * benchmarks)
        settled = {n: SAME for n, one in enumerate(screening[mine]) if decide.screened_out(one, threshold)}
        family = benchmarks - len(settled)
        for number, look in enumerate(looks):
            final = number == last_look(check)
            fresh = {str(n): one for n, one in enumerate(look[mine]) if n not in settled}
            alpha = decide.look_alpha(number, final=final)
            found = decide.look(fresh, threshold, alpha, family, final=final)
            settled.update({int(name): verdict for name, verdict in found.items()})
            if final:
                break
        assert len(settled) == benchmarks
        verdicts.append([settled[n] for n in range(benchmarks)])
    return np.array(verdicts)


def drawn(noise, checks, seed):
    rounds = SCREEN_ROUNDS + LOOKS[-1]
    values = NOISES[noise](np.random.default_rng(seed), (checks * BENCHMARKS, rounds))
    return values.reshape(checks, BENCHMARKS, rounds)


def at_most(events, trials, probability):
    """Whether so many events are no surprise at that probability."""
    return stats.binom.sf(events - 1, trials, probability) > 1e-4


@pytest.mark.parametrize("noise", NOISES)
def test_checks_of_identical_code_are_red_as_seldom_as_promised(noise):
    verdicts = whole_checks(drawn(noise, 600, 1), THRESHOLD)
    for verdict in (SLOWER, FASTER):
        assert at_most((verdicts == verdict).any(axis=1).sum(), 600, ALPHA)


@pytest.mark.parametrize("noise", NOISES)
def test_the_tests_alone_keep_a_larger_alpha(noise, monkeypatch):
    # With a threshold of nearly nothing all benchmarks are selected and only significance decides; with an ALPHA of
    # 15 %, that the promise is kept, and not by a wide margin, can be seen in a few hundred checks.
    monkeypatch.setattr(decide, "ALPHA", 0.15)
    checks = 400
    verdicts = whole_checks(drawn(noise, checks, 2), 1e-9, lambda check: check % len(LOOKS))
    for verdict in (SLOWER, FASTER):
        red = (verdicts == verdict).any(axis=1).sum()
        assert at_most(red, checks, 0.15)
        if noise not in ("two points", "common"):
            assert stats.binom.cdf(red, checks, 0.05) > 0.5


@pytest.mark.parametrize("noise", ["normal 5 %", "outliers"])
def test_simulated_checks_are_red_as_often_as_these(noise, monkeypatch):
    monkeypatch.setattr(decide, "ALPHA", 0.15)
    checks, slow = 400, 0.03
    values = drawn(noise, checks, 3)
    values[:, 0] += slow
    mine = whole_checks(values, 0.01) == SLOWER

    def draw(rng, rows, rounds):
        return NOISES[noise](rng, (rows, rounds))

    draws = [lambda *args: draw(*args) + slow, *[draw] * (BENCHMARKS - 1)]
    theirs = error_rates.simulate(draws, 0.01, np.random.default_rng(4), checks)
    assert theirs.shape == mine.shape
    for a, b in ((mine[:, 0], theirs[:, 0]), (mine[:, 1:].any(axis=1), theirs[:, 1:].any(axis=1))):
        share = (a.mean() + b.mean()) / 2
        assert 0.01 < share < 0.99
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt(2 * share * (1 - share) / checks)


def test_five_percent_are_found_in_noise_of_one_percent():
    values = drawn("normal 1 %", 200, 5)
    values[:, 3] += math.log(1.05)
    verdicts = whole_checks(values, THRESHOLD)
    assert np.mean(verdicts[:, 3] == SLOWER) >= 0.99
    assert np.all(np.delete(verdicts, 3, axis=1) == SAME)


def test_five_percent_less_are_as_well():
    values = drawn("normal 1 %", 200, 6)
    values[:, 3] += math.log(0.95)
    assert np.mean(whole_checks(values, THRESHOLD)[:, 3] == FASTER) >= 0.99


def test_wide_noise_is_undecided_rather_than_the_same():
    verdicts = whole_checks(drawn("cauchy", 100, 7) * 10, THRESHOLD)
    assert np.mean(verdicts == UNDECIDED) > 0.95


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.0, 0.1, math.nan], [0.0, 0.1, 0.2, -math.inf]])
def test_too_few_rounds_or_a_missing_value_are_no_noise(values):
    assert Noise.of(values) is None


def test_noise_is_about_its_centre_and_as_wide_as_it_was():
    rng = np.random.default_rng(8)
    spread = []
    for _ in range(2000):
        noise = Noise.of(0.3 + rng.normal(0.0, 0.02, 10))
        assert abs(np.median(noise.residuals)) < 0.03
        spread.append(np.mean(noise.residuals**2))
    assert math.sqrt(np.mean(spread)) == pytest.approx(0.02, rel=0.03)


def test_drawn_noise_is_symmetric_and_from_the_rounds():
    noise = Noise.of([0.0, 0.0, 0.0, 0.01, 0.09])
    values = noise.draw(np.random.default_rng(9), 400, 50)
    assert values.shape == (400, 50)
    assert set(np.unique(np.abs(values))) == set(np.unique(np.abs(noise.residuals)))
    assert np.count_nonzero(values > 0) == pytest.approx(np.count_nonzero(values < 0), rel=0.05)


# --- what would have been found ---------------------------------------------------------------------------------------

RESIDUALS = {
    "1 %": np.random.default_rng(10).normal(0.0, 0.01, 40),
    "6 %": np.random.default_rng(11).normal(0.0, 0.06, 40),
    "outliers": np.array([0.001 * n for n in range(-9, 10)] + [0.2, 0.4, 1.0]),
    "nothing": np.zeros(10),
}


@pytest.mark.parametrize("selected", [1, 10, 60])
@pytest.mark.parametrize("residuals", RESIDUALS)
def test_the_needed_shift_is_what_finds_it(residuals, selected):
    noise, rows = Noise(RESIDUALS[residuals]), 60
    needed = error_rates.needed_shifts(noise, THRESHOLD, selected, np.random.default_rng(12), rows=rows)
    rng = np.random.default_rng(12)
    screening, fresh = noise.draw(rng, rows, SCREEN_ROUNDS), noise.draw(rng, rows, LOOKS[-1])
    assert np.all(np.isfinite(needed))
    for row, shift in enumerate(needed):
        assert found(screening[row] + shift + 1e-9, fresh[row] + shift + 1e-9, selected)
        less = shift - 1e-9
        # Where noise alone reaches below the threshold, the screening would select it for that.
        if decide.estimate(screening[row] + less).low >= -LIMIT:
            assert not found(screening[row] + less, fresh[row] + less, selected)


def found(screening, fresh, selected):
    if decide.screened_out(decide.estimate(screening), THRESHOLD):
        return False
    return error_rates.run_looks({0: fresh}, THRESHOLD, selected)[0] == SLOWER


def test_a_look_that_calls_it_the_same_ends_the_course():
    # Loud in the screening, quiet until the first look, loud again: what the second look would find at any shift, the
    # first has called the same.
    screening = np.tile((-0.5, 0.5), SCREEN_ROUNDS // 2)
    fresh = np.linspace(-0.001, 0.001, LOOKS[-1])
    fresh[LOOKS[0] :] = 0.5

    class Course:
        def draw(self, rng, rows, rounds):
            return (screening if rounds == SCREEN_ROUNDS else fresh)[None, :]

    (needed,) = error_rates.needed_shifts(Course(), THRESHOLD, 1, np.random.default_rng(0), rows=1)
    quiet = decide.estimate(fresh[: LOOKS[0]])
    # Between being no longer the same and being slower already, the second look decides.
    assert needed == pytest.approx(LIMIT - quiet.high, abs=1e-12)
    assert found(screening, fresh + needed + 1e-9, 1)
    for less in (0.001, 0.01, 0.02, needed - 1e-9):
        assert decide.estimate(fresh[: LOOKS[1]] + less).log_ratio > LIMIT
        assert not found(screening, fresh + less, 1)


def test_more_noise_and_a_larger_family_need_a_larger_slowdown():
    quiet, loud = Noise(RESIDUALS["1 %"]), Noise(RESIDUALS["6 %"])

    def detectable(noise, selected):
        return error_rates.detectable(error_rates.needed_shifts(noise, THRESHOLD, selected, np.random.default_rng(13)))

    assert THRESHOLD < detectable(quiet, 5) < 0.045 < detectable(loud, 5) < detectable(loud, 500)


def test_what_90_percent_of_the_courses_find():
    shifts = np.log1p(np.linspace(0.0, 0.1, 101))
    assert error_rates.detectable(shifts) == pytest.approx(0.09)
    for rows in range(1, 40):
        shifts = np.log1p(np.linspace(0.01, 0.1, rows))
        assert np.mean(shifts <= np.log1p(error_rates.detectable(shifts)) + 1e-12) >= error_rates.POWER


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ([], None),
        ([math.inf] * 10, None),
        ([0.01] * 8 + [math.inf] * 2, None),
        ([0.01] * 19 + [math.inf], math.expm1(0.01)),
        ([math.log(2.0)] * 10, 1.0),
        ([0.7] * 10, None),
    ],
)
def test_nothing_detectable(shifts, expected):
    assert error_rates.detectable(np.array(shifts)) == (None if expected is None else pytest.approx(expected))


def test_fewer_looks_find_less():
    def detectable(*looks):
        rng = np.random.default_rng(17)
        return error_rates.detectable(error_rates.needed_shifts(Noise(RESIDUALS["6 %"]), THRESHOLD, 5, rng, looks))

    assert detectable(*LOOKS) < detectable(LOOKS[0], LOOKS[0] + 4) < detectable(LOOKS[0])
    assert detectable(5) is None
    assert detectable() is None


def test_too_few_rounds_for_the_family_find_nothing():
    needed = error_rates.needed_shifts(Noise(RESIDUALS["1 %"]), THRESHOLD, 10**9, np.random.default_rng(14), rows=5)
    assert np.all(needed == math.inf)


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_bound_of_no_red_check_in_many():
    rates = error_rates.summarize(0, 1000, [np.array([0.05] * 10), np.array([0.06] * 90)])
    assert (rates.false_alarm, rates.simulations) == (0.0, 1000)
    assert rates.false_alarm_bound == pytest.approx(1.0 - 0.05 ** (1 / 1000))
    assert rates.detectable == pytest.approx(math.expm1(0.06))


def test_the_bound_is_where_so_few_would_be_a_surprise():
    rates = error_rates.summarize(7, 500, [])
    assert rates.false_alarm == 7 / 500
    assert stats.binom.cdf(7, 500, rates.false_alarm_bound) == pytest.approx(0.05)
    assert rates.detectable is None
    assert error_rates.summarize(5, 5, []).false_alarm_bound == 1.0


def test_the_false_alarms_of_a_run_are_few_and_the_same_for_the_same_seed():
    noise = [Noise(RESIDUALS["6 %"]), Noise(RESIDUALS["outliers"])] * 3
    red, simulations = error_rates.false_alarm(noise, THRESHOLD, np.random.default_rng(15), 300)
    assert simulations == 300
    assert at_most(red, 300, ALPHA)
    draws = [one.draw for one in noise]
    first, again = (error_rates.simulate(draws, THRESHOLD, np.random.default_rng(16), 50) for _ in range(2))
    np.testing.assert_array_equal(first, again)
