"""From rounds made by hand to verdicts, reports and the study's sentences; nothing is measured."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gradmark import cli
from gradmark.tracking.check import decide, engine, study, study_table, verdicts
from gradmark.tracking.check.decide import LOOKS, SCREEN_ROUNDS, THRESHOLD
from gradmark.tracking.check.repository import NotMeasurableError, Project
from gradmark.tracking.check.results import (
    FAILED,
    FASTER,
    NOT_MEASURED,
    SAME,
    SLOWER,
    SOMETHING_SLOWER,
    UNDECIDED,
    VERDICTS,
    Revision,
)
from gradmark.tracking.check.rounds import Case, Round
from gradmark.tracking.check.sides import BASE, HEAD, TWIN, Side
from gradmark.tracking.check.state import Check, Settings


class Silent:
    def tell(self, text):
        pass

    def phase(self, name, total):
        pass

    def step(self, label):
        pass


def a_check(**chosen):
    base, head = Revision("main", "a" * 40), Revision("feature", "b" * 40)
    here = Path("/nowhere")
    side = Side(
        HEAD, head, "python", here, here, here, here, SimpleNamespace(project="measured"), environment="2 cores"
    )
    return Check(Project(here, here / "asv.conf.json"), base, head, Settings(**chosen), Silent(), sides={HEAD: side})


def rounds_of(log_ratios, seconds=1e-3):
    """Rounds with exactly these log ratios; each burst but one was disturbed."""
    return [Round([seconds, 3 * seconds], [seconds * math.exp(one), 5 * seconds]) for one in log_ratios]


def noise(centre, sigma, count, seed=0):
    return np.random.default_rng(seed).normal(centre, sigma, count)


def a_case(name, log_ratios=(), *, sides=(BASE, HEAD), kind="serial", **more):
    return Case({"name": name, **more}, None, (), 60.0, kind, sides, rounds=rounds_of(log_ratios))


@pytest.fixture
def no_simulation(monkeypatch):
    monkeypatch.setattr(verdicts.error_rates, "false_alarm", lambda *_: (0, 1000))


# --- exact values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        (100.0, 100.0, SAME),
        (100.0, 103.0, SAME),
        (100.0, 103.1, SLOWER),
        (100.0, 97.0, SAME),
        (100.0, 96.9, FASTER),
        (0.0, 0.0, SAME),
        (0.0, -0.0, SAME),
        (0.0, 1e-9, SLOWER),
        (0.0, -1e-9, FASTER),
        (1.0, 0.0, FASTER),
        (-100.0, -96.0, SLOWER),
        (-100.0, -104.0, FASTER),
        (-100.0, -101.0, SAME),
        (-1.0, 1.0, SLOWER),
        (math.nan, math.nan, UNDECIDED),
        (1.0, math.nan, UNDECIDED),
        (math.inf, 1.0, UNDECIDED),
        (math.inf, math.inf, SAME),
    ],
)
def test_exact_values(base, head, expected):
    case = a_case("track_x", kind="track")
    assert engine._exact_verdict(base, head, 0.03, case) == expected
    better = a_case("track_x", kind="track", higher_is_better=True)
    # Exchanging what is better exchanges the sides.
    assert engine._exact_verdict(head, base, 0.03, better) == expected


def exact_check(first, second):
    check = a_check()
    case = a_case("mem_x", kind="memory")
    case.rounds = [Round([a], [b]) for a, b in zip(first, second, strict=True)]
    engine._settle_exact(check, [case])
    return check.verdicts.get(case.key)


def test_what_stays_equal_is_settled_soon():
    few = engine.EXACT_ROUNDS
    assert exact_check([8.0] * few, [8.0] * few) == SAME
    assert exact_check([8.0] * (few - 1), [8.0] * (few - 1)) is None
    assert exact_check([8.0] * few, [8.1] * few) == SAME


def test_what_differs_has_to_stay_so_through_the_screening():
    assert exact_check([8.0] * (SCREEN_ROUNDS - 1), [9.0] * (SCREEN_ROUNDS - 1)) is None
    assert exact_check([8.0] * SCREEN_ROUNDS, [9.0] * SCREEN_ROUNDS) == SLOWER
    assert exact_check([9.0] * SCREEN_ROUNDS, [8.0] * SCREEN_ROUNDS) == FASTER
    assert exact_check([8.0] * (SCREEN_ROUNDS - 1) + [9.0], [9.0] * SCREEN_ROUNDS) is None


def test_a_value_that_each_process_draws_like_a_coin_is_not_slower():
    rng = np.random.default_rng(1)
    red = 0
    for _ in range(2000):
        first, second = rng.choice((8.0, 9.0), (2, SCREEN_ROUNDS))
        red += any(exact_check(first[:n], second[:n]) == SLOWER for n in range(1, SCREEN_ROUNDS + 1))
    assert red == 0


# --- the sentinel -----------------------------------------------------------------------------------------------------


def with_sentinels(centres, sigma=0.005, count=SCREEN_ROUNDS):
    check = a_check()
    check.cases = [a_case("time_x", noise(0, 0.005, SCREEN_ROUNDS))]
    check.verdicts = {f"{HEAD}:time_x": SLOWER}
    check.sentinels = [
        a_case(f"time_{n}", noise(centre, sigma, count, seed=n), sides=(BASE, TWIN)) for n, centre in enumerate(centres)
    ]
    return check


@pytest.mark.parametrize("sign", [1, -1])
def test_three_copies_that_differ_by_ten_percent_are_biased(sign, no_simulation):
    report = verdicts.report(with_sentinels([sign * math.log(1.1)] * 3))
    assert report.sentinel.biased
    assert {c.verdict for c in report.sentinel.comparisons} == {SLOWER if sign > 0 else FASTER}
    assert report.exit_code == NOT_MEASURED


def test_a_single_one_is_enough(no_simulation):
    sentinel = verdicts.report(with_sentinels([math.log(1.1), 0.0, 0.0])).sentinel
    assert sentinel.biased
    assert [c.verdict for c in sentinel.comparisons] == [SLOWER, SAME, SAME]


def test_copies_that_are_equal_are_not_biased(no_simulation):
    report = verdicts.report(with_sentinels([0.0] * 3))
    assert not report.sentinel.biased
    assert {c.verdict for c in report.sentinel.comparisons} == {SAME}
    assert report.exit_code == SOMETHING_SLOWER


def test_no_sentinel_before_it_had_its_rounds(no_simulation):
    assert verdicts.report(with_sentinels([0.5] * 3, count=SCREEN_ROUNDS - 1)).sentinel is None
    check = with_sentinels([0.5] * 3)
    for case in check.sentinels:
        case.failure = (TWIN, "killed")
    assert verdicts.report(check).sentinel is None


def test_a_loud_sentinel_is_undecided_for_its_noise(no_simulation):
    check = with_sentinels([0.0] * 3, sigma=0.3)
    # That the benchmark which it repeats was left out says nothing about it.
    check.cases.append(a_case("time_0"))
    check.left_out[f"{HEAD}:time_0"] = "not reached"
    report = verdicts.report(check)
    assert not report.sentinel.biased
    for one in report.sentinel.comparisons:
        assert one.verdict == UNDECIDED
        assert "interval reaches over" in one.reason
    assert report.comparisons[-1].reason == "not reached"


def test_seldom_biased_whatever_the_noise():
    biased = 0
    for seed in range(150):
        check = a_check()
        check.sentinels = [
            a_case(f"time_{n}", noise(0, 0.2, SCREEN_ROUNDS, 3 * seed + n), sides=(BASE, TWIN)) for n in range(3)
        ]
        biased += verdicts._sentinel(check).biased
    # Of each direction at most SENTINEL_ALPHA: 3 expected, 11 once in 3000.
    assert biased <= 10


def track_of(count):
    """Values that agree exactly."""
    case = a_case("track_size", kind="track")
    case.rounds = [Round([7.0], [7.0])] * count
    return case


def test_a_value_that_never_varies_takes_no_power_from_the_timings(no_simulation):
    check = a_check()
    check.cases = [a_case("time_same", noise(0.0, 0.005, SCREEN_ROUNDS))]
    alone = verdicts.report(check).error_rates.detectable
    check.cases.append(track_of(2))
    assert verdicts.report(check).error_rates.detectable == alone > 0


def test_no_error_rates_where_nothing_was_timed():
    check = a_check()
    check.cases = [track_of(2), track_of(SCREEN_ROUNDS)]
    assert verdicts.report(check).error_rates is None


# --- the report -------------------------------------------------------------------------------------------------------


def mixed_check(**chosen):
    """One benchmark of each sort."""
    check = a_check(budget=90.0, **chosen)
    check.cases = [
        a_case("time_same", noise(0.001, 0.005, SCREEN_ROUNDS, 1)),
        a_case("time_slower", noise(0.1, 0.01, LOOKS[0], 2)),
        a_case("time_loud", noise(0.0, 0.2, LOOKS[-1], 3)),
        a_case("time_short", noise(0.0, 0.2, 20, 4)),
        a_case("time_unconfirmed"),
        a_case("time_started", noise(0.0, 0.01, 4, 5)),
        a_case("time_never"),
        a_case("time_left_out"),
        a_case("time_failed", noise(0.0, 0.01, 4, 6)),
        a_case("track_zero", kind="track"),
    ]
    for name, seed in (("slower", 7), ("loud", 8), ("short", 9), ("unconfirmed", 10)):
        check.screening[f"{HEAD}:time_{name}"] = rounds_of(noise(0.2, 0.3, SCREEN_ROUNDS, seed))
    check.selected = 4
    check.verdicts = {
        f"{HEAD}:time_same": SAME,
        f"{HEAD}:time_slower": SLOWER,
        f"{HEAD}:time_loud": UNDECIDED,
        f"{HEAD}:time_failed": SAME,
    }
    check.left_out = {f"{HEAD}:time_left_out": "not reached: too dear"}
    check.cases[8].failure = (HEAD, "ValueError: no")
    check.cases[9].rounds = [Round([0.0], [float(n)]) for n in range(SCREEN_ROUNDS)]
    return check


@functools.cache
def mixed_report():
    return verdicts.report(mixed_check())


def by_name(report):
    return {c.name: c for c in report.comparisons}


def test_every_benchmark_has_one_verdict():
    report = mixed_report()
    assert sum(report.count(verdict) for verdict in VERDICTS) == len(report.comparisons) == 10
    assert [report.count(verdict) for verdict in VERDICTS] == [1, 0, 1, 7, 1]
    assert report.exit_code == SOMETHING_SLOWER
    assert (report.project, report.environment) == ("measured", "2 cores")


def test_the_undecided_say_what_would_decide_them():
    found = by_name(mixed_report())
    assert found["time_loud"].reason.startswith("its interval reaches over the threshold; a change of +")
    assert f"{found['time_loud'].detectable:+.1%}" in found["time_loud"].reason
    assert found["time_short"].reason == "the budget of 1m30s ended after 20 rounds (--budget)"
    assert found["time_unconfirmed"].reason == "the budget of 1m30s ended after 10 rounds (--budget)"
    assert found["time_started"].reason == "the budget of 1m30s ended after 4 rounds (--budget)"
    assert found["time_never"].reason == "no round was completed"
    assert found["time_left_out"].reason == "not reached: too dear"
    assert "no ratio" in found["track_zero"].reason
    assert found["time_same"].reason is None
    assert found["time_slower"].reason is None


def test_an_interruption_is_the_reason_of_what_it_left_open(no_simulation):
    check = mixed_check()
    check.interrupted = True
    report = verdicts.report(check)
    assert report.interrupted
    found = by_name(report)
    assert found["time_short"].reason == "interrupted before it was settled"
    assert found["time_slower"].verdict == SLOWER
    assert found["time_failed"].reason == "ValueError: no"


def test_far_too_much_noise_names_no_change():
    check = a_check()
    check.cases = [a_case("time_x", noise(0.0, 20.0, LOOKS[-1]))]
    check.screening = {f"{HEAD}:time_x": rounds_of(noise(0.0, 20.0, SCREEN_ROUNDS))}
    check.selected = 1
    (found,) = verdicts.report(check).comparisons
    assert found.detectable is None
    assert found.reason.endswith("it varies too much")


def test_a_failure_outweighs_the_rounds_before_it():
    found = by_name(mixed_report())["time_failed"]
    assert (found.verdict, found.side, found.reason) == (FAILED, HEAD, "ValueError: no")


def test_ratio_interval_and_values_are_of_the_fresh_rounds():
    check = mixed_check()
    found = by_name(mixed_report())["time_slower"]
    expected = decide.estimate(check.cases[1].log_ratios())
    assert found.rounds == LOOKS[0]
    assert found.ratio == pytest.approx(math.exp(expected.log_ratio))
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert found.base == pytest.approx(1e-3)
    assert found.head == pytest.approx(np.median([one.second[0] for one in check.cases[1].rounds]))
    assert 1.05 < found.low < found.ratio < found.high


def test_before_any_fresh_round_they_are_of_the_screening():
    found = by_name(mixed_report())["time_unconfirmed"]
    assert found.rounds == SCREEN_ROUNDS
    assert found.low < found.ratio < found.high


def test_four_rounds_have_a_ratio_and_no_interval():
    found = by_name(mixed_report())["time_started"]
    assert found.ratio is not None
    assert found.low is found.high is None


def test_for_a_value_of_which_more_is_better_the_ratio_stays_head_over_base():
    check = a_check()
    case = a_case("track_rate", noise(-0.1, 0.01, LOOKS[0]), kind="track", higher_is_better=True, unit="GB/s")
    check.cases = [case]
    fresh = {case.key: decide.estimate(case.log_ratios())}
    check.verdicts = decide.look(fresh, THRESHOLD, 0.002, 1, final=True)
    (found,) = verdicts.report(check).comparisons
    assert (found.verdict, found.unit) == (SLOWER, "GB/s")
    assert found.high < 1.0
    assert found.low < found.ratio < found.high


def test_error_rates_are_of_what_was_timed():
    report = mixed_report()
    found = by_name(report)
    assert report.error_rates.false_alarm <= 0.01
    assert report.error_rates.simulations == 1000
    assert found["time_never"].detectable is None
    assert found["track_zero"].detectable is None
    assert THRESHOLD < found["time_same"].detectable < found["time_loud"].detectable
    nothing = a_check()
    nothing.cases = [a_case("time_never")]
    report = verdicts.report(nothing)
    assert report.error_rates is None
    assert report.exit_code == NOT_MEASURED


def test_what_the_budget_cut_short_could_see_less():
    whole, short = mixed_check(), mixed_check()
    found = by_name(mixed_report())
    assert found["time_started"].detectable is None  # could not even be selected
    assert found["time_unconfirmed"].detectable is None
    assert mixed_report().error_rates.detectable is None  # of eight that were timed, two could not be found
    looks = {case.name: list(verdicts._looks(whole, case)) for case in whole.cases}
    assert looks["time_short"] == [16, 20]
    assert looks["time_loud"] == list(LOOKS)
    assert looks["time_same"] == looks["time_slower"] == list(LOOKS)
    assert looks["time_started"] == looks["time_unconfirmed"] == []
    # Where all that were open had 20 rounds, another would have had no more.
    del short.cases[2]
    assert list(verdicts._looks(short, short.cases[0])) == [16, 20]
    assert list(verdicts._looks(short, short.cases[1])) == [16, 20]
    nothing_open = a_check()
    nothing_open.cases = [whole.cases[0]]
    assert list(verdicts._looks(nothing_open, whole.cases[0])) == list(LOOKS)


def test_what_was_not_selected_would_have_been_one_more(monkeypatch, no_simulation):
    families = {}

    def needed_shifts(noise, threshold, selected, rng, looks):
        families[float(noise.residuals[0])] = selected
        return np.array([0.05])

    monkeypatch.setattr(verdicts.error_rates, "needed_shifts", needed_shifts)
    check = mixed_check()
    verdicts.report(check)
    expected = {
        float(verdicts._noise(check, case).residuals[0]): 4 if case.key in check.screening else 5
        for case in check.cases
        if verdicts._noise(check, case) is not None and case.is_timing
    }
    assert families == expected
    assert set(families.values()) == {4, 5}


def test_the_same_rounds_and_seed_give_the_same_report():
    first, check = mixed_report(), mixed_check()
    again = verdicts.report(check)
    assert again.comparisons == first.comparisons
    assert again.error_rates == first.error_rates
    check.settings = Settings(budget=90.0, seed=4)
    other = verdicts.report(check)
    assert [c.verdict for c in other.comparisons] == [c.verdict for c in first.comparisons]
    assert [c.detectable for c in other.comparisons] != [c.detectable for c in first.comparisons]


# --- the study --------------------------------------------------------------------------------------------------------


def pool(values):
    def draw(rng, rows, rounds):
        return rng.choice(values, size=(rows, rounds))

    return draw


def found_alone(values):
    return study._found_alone(pool(values), np.random.default_rng(0))


def test_a_benchmark_alone_is_found_as_often_as_its_rounds_allow(monkeypatch):
    monkeypatch.setattr(study, "_RESAMPLED", 300)
    assert found_alone(noise(math.log(1.05), 0.01, 46)) > 0.99
    assert found_alone(noise(0.0, 0.01, 46)) == 0.0
    assert found_alone(noise(-0.1, 0.01, 46)) == 0.0
    some = found_alone(noise(0.04, 0.05, 46))
    assert 0.05 < some < 0.95
    assert some < found_alone(noise(0.06, 0.05, 46))


def test_what_the_screening_settles_counts_as_not_found(monkeypatch):
    monkeypatch.setattr(study.error_rates, "run_looks", lambda *_: {0: SLOWER})
    values = noise(0.02, 0.012, 46)
    _, low, high, _, _ = decide.estimates(pool(values)(np.random.default_rng(1), 1000, SCREEN_ROUNDS))
    selected = np.mean((high > math.log1p(THRESHOLD)) | (low < -math.log1p(THRESHOLD)))
    assert 0.1 < selected < 0.9
    assert found_alone(values) == pytest.approx(selected, abs=0.08)


def test_pools_hold_all_timings_that_did_not_fail():
    check = mixed_check()
    pools = study._Pools()
    pools.add(check)
    pools.add(mixed_check())
    described = {one["benchmark"]: one for one in pools.describe()}
    assert described["time_slower"]["rounds"] == 2 * (SCREEN_ROUNDS + LOOKS[0])
    assert described["time_slower"]["kind"] == "serial"
    assert "time_failed" not in described
    assert "time_left_out" not in described  # has no rounds to draw from
    assert "track_zero" not in described
    values = [*check.screening[f"{HEAD}:time_slower"], *check.cases[1].rounds]
    assert described["time_slower"]["median"] == pytest.approx(np.median([one.log_ratio for one in values]))
    drawn = pools.draw(f"{HEAD}:time_slower")(np.random.default_rng(0), 3, 7)
    assert drawn.shape == (3, 7)
    assert set(drawn.ravel()) <= {one.log_ratio for one in values}


def outcome(slower=0, same=28, seconds=70.0):
    return {"slower": slower, "faster": 0, "same": same, "undecided": 1, "failed": 0, "seconds": seconds}


RECORD = {
    "parts": {
        "identical": {
            "checks": [outcome(), outcome()],
            "real": {"checks": 2, "red": 0},
            "simulated": {"checks": 3000, "red": 1, "red_at_most": 0.00158},
            "benchmarks": [],
        },
        "busy": {
            "checks": [outcome(slower=1)],
            "real": {"checks": 1, "red": 1},
            "simulated": {"checks": 3000, "red": 0, "red_at_most": 0.001},
            "benchmarks": [],
        },
        "plus5": {
            "check": outcome(slower=27),
            "found": {"serial": {"benchmarks": 26, "slower": 25}, "parallel": {"benchmarks": 2, "slower": 1}},
            "benchmarks": [
                {"kind": "serial", "simulated_power": 0.98},
                {"kind": "serial", "simulated_power": 1.0},
                {"kind": "serial", "simulated_power": None},
            ],
        },
        "lost": {
            "scalar": {
                "check": outcome(slower=2),
                "kernel_changes": [{"kernel": "gelu", "benchmark": "time_x", "what": "lost vectorization: 16 → 1"}],
            }
        },
        "many_planted": {"check": outcome(slower=1, same=199, seconds=412.4), "slower": []},
        "asv": {"identical": {"slower": 3, "faster": 2, "seconds": 300.0}},
    }
}


def test_a_study_in_sentences():
    assert list(study_table.lines(RECORD)) == [
        "identical code: 0 of 2 real checks red",
        "  simulated from their rounds: 1 of 3000 red (below 0.16%)",
        "  0 slower, 0 faster, 28 same, 1 undecided, 0 failed, 70 s",
        "  0 slower, 0 faster, 28 same, 1 undecided, 0 failed, 70 s",
        "identical code, beside a process that keeps one core busy: 1 of 1 real checks red",
        "  simulated from their rounds: 0 of 3000 red (below 0.10%)",
        "  1 slower, 0 faster, 28 same, 1 undecided, 0 failed, 70 s",
        "+5 %, serial: found in 25 of 26; mean power, simulated: 99.0%",
        "+5 %, parallel: found in 1 of 2",
        "scalar: 2 slower, 0 faster, 28 same, 1 undecided, 0 failed",
        "  lost vectorization: 16 → 1: gelu",
        "many_planted: 1 slower, 0 faster, 199 same, 1 undecided, 0 failed, 412 s",
        "asv continuous, factor 1.05, identical: 3 slower, 2 faster",
    ]


def test_the_outcome_of_a_check_is_what_the_sentences_need():
    part = study._outcome(mixed_report())
    assert sum(part[verdict] for verdict in VERDICTS) == part["benchmarks"] == 10
    assert part["failures"] == ["time_failed: ValueError: no"]
    (line,) = study_table.lines({"parts": {"many_identical": {"check": part}}})
    assert line.startswith("many_identical: 1 slower, 0 faster, 1 same, 7 undecided, 1 failed, ")


def test_a_study_with_a_part_that_could_not_be_measured_says_so_and_keeps_the_others(tmp_path, monkeypatch, capsys):
    def unmeasured(*_):
        raise NotMeasurableError("no network")

    part = {"check": study._outcome(mixed_report())}
    monkeypatch.setattr(study, "PARTS", {"foreign": unmeasured, "many_identical": lambda *_: part})
    file = tmp_path / "study.json"
    assert cli.main(["check", "--study", "--json", str(file)]) == NOT_MEASURED
    assert "foreign: could not be measured: no network" in capsys.readouterr().out
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    assert parts["foreign"]["failed"] == "no network"
    assert parts["many_identical"]["check"] == part["check"]
