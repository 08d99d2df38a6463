"""The table and the sentences of `gradmark check` in a terminal."""

from __future__ import annotations

import doctest
import io
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gradmark.tracking.check import report_table, results
from gradmark.tracking.check.results import (
    Comparison,
    ErrorRates,
    KernelChange,
    Report,
    Revision,
    Sentinel,
    Unavailable,
)

BASE, HEAD = "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d", "0f2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"


def timing(name, verdict, ratio=None, **more):
    if ratio is not None:
        more = {"low": ratio - 0.011, "high": ratio + 0.011, "rounds": 24, "base": 12.3e-6, "head": 12.9e-6, **more}
    return Comparison(name, more.pop("params", ()), more.pop("kind", results.SERIAL), verdict, ratio=ratio, **more)


def report(*comparisons, **more):
    revisions = (Revision("main", BASE), Revision("feature", HEAD))
    return Report("project", *revisions, "head", 0.03, 0.99, tuple(comparisons), **more)


ALL_FIVE = (
    timing("suite.time_slower", "slower", 1.052, detectable=0.034, params=("'numba'", "3")),
    timing("suite.time_faster", "faster", 0.9, detectable=0.02),
    timing("suite.time_same", "same", 1.001, detectable=0.02),
    timing("suite.time_undecided", "undecided", 1.02, detectable=0.12, kind="parallel", reason="96 rounds would do"),
    timing("suite.time_failed", "failed", reason="Traceback:\n  a line\nValueError: no matrix\n", side="head"),
)


def printed(content, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(content)
    return console.file.getvalue()


def row(text, name):
    """The line with this name, and those that go on below it, in one."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if name in line)
    rest = []
    for line in lines[first + 1 :]:
        if not line.startswith(" "):
            break
        rest.append(line)
    return " ".join(" ".join([lines[first], *rest]).split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_each_ratio_with_its_interval_and_what_it_sees(width):
    text = printed(report_table.table(report(*ALL_FIVE), width=width), width)
    assert max(map(len, text.splitlines())) <= width
    slower = row(text, "suite.time_slower")
    for part in ("slower", "('numba', 3)", "1.052 (1.041–1.063)", "+3.4 %"):
        assert part in slower
    assert "on head: ValueError: no matrix" in row(text, "suite.time_failed")
    assert "a line" not in text
    undecided = row(text, "suite.time_undecided")
    assert "96 rounds would do" in undecided
    assert "parallel" in undecided
    assert ("12.3 µs" in text) == (width == 120)


def test_what_is_the_same_is_shown_only_when_asked_for():
    found = report(*ALL_FIVE)
    assert "time_same" not in printed(report_table.table(found), 80)
    everything = printed(report_table.table(found, verdicts=results.VERDICTS), 80)
    assert all(comparison.name in everything for comparison in ALL_FIVE)
    assert report_table.table(report(timing("a", "same", 1.0))) is None
    assert report_table.table(report()) is None


def test_the_largest_slowdown_comes_first_and_parallel_benchmarks_last():
    found = report(
        timing("wide", "slower", 1.9, kind="parallel"), timing("small", "slower", 1.05), timing("large", "slower", 1.4)
    )
    assert [c.name for c in report_table.ranked(found, "slower")] == ["large", "small", "wide"]


def test_a_reason_that_many_share_is_printed_once():
    failed = [timing(f"time_{i}", "failed", reason="ImportError: no numba", side="base") for i in range(5)]
    text = printed(report_table.table(report(*failed)), 80)
    assert text.count("ImportError") == 1
    assert text.count("as above") == 4


def test_the_counts_are_of_all_five_verdicts_and_their_sum_is_the_number_of_benchmarks():
    found = report(*ALL_FIVE, *ALL_FIVE[:2], unavailable=(Unavailable("a", (), "no CUDA"),) * 9)
    first = report_table.summary(found)[0]
    assert first == "7 benchmarks: 2 slower, 2 faster, 1 same, 1 undecided, 1 failed."
    assert sum(map(int, re.findall(r"(\d+) [a-z]+(?=[,.])", first))) == 7


def test_what_is_not_available_is_grouped_by_reason():
    missing = [Unavailable(f"a{i}", (), "no CUDA") for i in range(7)] + [Unavailable("b", (), "no JAX")]
    text = "\n".join(report_table.summary(report(unavailable=tuple(missing), only_in_base=("old.time_x",))))
    assert "8 benchmarks; 7 because no CUDA; 1 because no JAX." in text
    assert "Only in base, not compared and not counted (1): old.time_x." in text


def test_the_error_rates_stand_below_the_table_and_are_never_rounded_down():
    text = "\n".join(report_table.summary(report(*ALL_FIVE, error_rates=ErrorRates(0.0, 0.0029912, 1000, 0.0412))))
    assert "0 of 1,000 simulated checks of identical code came out red: below 0.30 %." in text
    assert "a slowdown of 4.2 % in one benchmark would have been caught with 90 % probability" in text
    nothing = "\n".join(report_table.summary(report(*ALL_FIVE, error_rates=ErrorRates(0.012, 0.0191, 1000, None))))
    assert "12 of 1,000" in nothing
    assert "below 2.0 %" in nothing
    assert "No slowdown up to 100 %" in nothing
    assert any("Error rates: none" in line for line in report_table.summary(report(*ALL_FIVE)))


def test_a_biased_sentinel_is_loud_and_names_what_differed():
    control = (timing("suite.time_a", "slower", 1.08), timing("suite.time_b", "same", 1.0))
    loud = "\n".join(report_table.summary(report(*ALL_FIVE, sentinel=Sentinel(control, biased=True))))
    assert "SENTINEL WAS BIASED" in loud
    assert "suite.time_a slower 1.080 (1.069–1.091)" in loud
    assert "suite.time_b" not in loud
    calm = "\n".join(report_table.summary(report(*ALL_FIVE, sentinel=Sentinel(control[1:], biased=False))))
    assert "BIASED" not in calm
    assert "A/A sentinel, base against its own copy: 1 benchmark, none slower or faster." in calm


def test_a_lost_vectorization_is_reported_though_the_time_is_undecided():
    change = KernelChange("gelu(float32[::1])", "suite.time_undecided", "lost vectorization: 16 lanes → 1", {}, {})
    text = "\n".join(report_table.summary(report(*ALL_FIVE, kernel_changes=(change,))))
    assert (
        "Kernel gelu(float32[::1]): lost vectorization: 16 lanes → 1"
        " (called by suite.time_undecided, whose time is undecided)."
    ) in text


def test_the_summary_says_what_was_compared_and_what_it_cost():
    found = report(*ALL_FIVE, notes=("Two environments.",), environment="2 cores", seconds=72.4, rounds=24)
    found = replace(found, head=replace(found.head, uncommitted=True))
    text = "\n".join(report_table.summary(found))
    assert "base main (1a2b3c4d) with head feature (0f2b3c4d, with uncommitted changes) of project" in text
    assert "the benchmarks are those of head" in text
    for part in ("Note: Two environments.", "Environment: 2 cores.", "72 s in all, 24 rounds."):
        assert part in text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "1 of 5 benchmarks slower, 1 of 5 failed"),
        ({"comparisons": ALL_FIVE[:4]}, "1 of 4 benchmarks slower"),
        ({"comparisons": ALL_FIVE[1:]}, "nothing slower, 1 of 4 undecided, 1 of 4 failed"),
        ({"comparisons": ALL_FIVE[1:3]}, "nothing slower"),
        ({"comparisons": ALL_FIVE[4:]}, "nothing could be measured"),
        ({"sentinel": Sentinel((), biased=True)}, "no verdict, the A/A sentinel was biased"),
        ({"interrupted": True}, "interrupted, the verdicts reached before"),
    ],
)
def test_the_headline_agrees_with_the_exit_code(more, expected):
    assert report_table.headline(replace(report(*ALL_FIVE), **more)) == expected


HOSTILE = "a\x1b[2J\x1b]0;x\x07\r\n\t\u202eb\u200b\ud800\u0301[red]:bomb:[/]é"


def test_no_control_character_of_the_project_reaches_the_terminal():
    found = report(
        timing(HOSTILE, "slower", 1.1, params=(HOSTILE,), unit=HOSTILE),
        timing(HOSTILE, "failed", side="head", reason=HOSTILE),
        unavailable=(Unavailable(HOSTILE, (HOSTILE,), HOSTILE),),
        only_in_base=(HOSTILE,),
        kernel_changes=(KernelChange(HOSTILE, HOSTILE, HOSTILE, {}, {}),),
        sentinel=Sentinel((timing(HOSTILE, "slower", 1.1),), biased=True),
        notes=(HOSTILE,),
        environment=HOSTILE,
    )
    found = replace(found, project=HOSTILE, base=Revision(HOSTILE, BASE), head=Revision(HOSTILE, HEAD))
    text = printed(report_table.table(found, width=200), 200) + "\n".join(report_table.summary(found))
    assert {c for c in text if unicodedata.category(c).startswith("C")} == {"\n"}
    assert r"a\x1b[2J" in text
    assert r"\u202eb" in text
    # Neither markup nor an emoji code for rich.
    assert "[red]:bomb:[/]é" in text


@given(st.text(st.characters(codec=None)), st.integers(1, 60))
def test_visible_text_is_printable_and_short(text, limit):
    shown = report_table.visible(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert not any(unicodedata.bidirectional(c) in ("R", "AL", "RLE", "RLO", "RLI") for c in shown)


def test_visible_leaves_other_alphabets_alone():
    for text in ("Füße µs × ≤ naïve", "基准", "ガス", "Бенчмарк", "→ 16"):
        assert report_table.visible(text) == unicodedata.normalize("NFC", text)
    # Composition makes a backtick of this one.
    assert report_table.visible("\u1fef", but="`") == r"\x60"


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (12.34e-6, "seconds", "12.3 µs"),
        (0.9999e-3, "seconds", "1 ms"),
        (75.0, "seconds", "75 s"),
        (0.0, "seconds", "0 ns"),
        (2.1e8, "bytes", "210 MB"),
        (17.0, "bytes", "17 B"),
        (0.83, "copy", "0.83 copy"),
        (3.0, "", "3"),
        (None, "seconds", ""),
    ],
)
def test_a_value_has_a_unit_that_fits(number, unit, expected):
    assert "".join(report_table.value(number, unit)) == expected


@pytest.mark.parametrize("ratio", [1e300, -1e300, 1e-300, 123456789.0, 0.0, -2.5])
def test_a_ratio_takes_little_room_whatever_it_is(ratio):
    text = report_table.interval(timing("a", "slower", ratio))
    assert len(text) < 40
    assert not re.search(r"\d{7}", text)


def test_the_examples_run():
    assert doctest.testmod(report_table).failed == 0
