"""Whole checks of tiny projects: what each kind of benchmark, well-behaved or not, costs and gets.

Both sides run the same suite; what differs is the package `tiny`, which knows its side.
"""

from __future__ import annotations

import collections
import errno
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

import tiny_projects as tiny
from gradmark.tracking.check import decide, engine, rounds, sides, surroundings
from gradmark.tracking.check.repository import CheckUsageError, NotMeasurableError
from gradmark.tracking.check.results import (
    DEVICE,
    FAILED,
    FASTER,
    MEMORY,
    NOT_MEASURED,
    PARALLEL,
    PEAK_MEMORY,
    SAME,
    SERIAL,
    SLOWER,
    UNDECIDED,
    VERDICTS,
)  # fmt: skip
from gradmark.tracking.check.sides import BASE, HEAD, TWIN
from gradmark.tracking.check.workers import BenchmarkError, Opened, Worker, WorkerLostError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

WORK = """
def work():
    return sum(range(300))
"""

PACKAGE = {side: f"SIDE = {side!r}\n{WORK}" for side in (BASE, HEAD)}

FAILING = """
import ctypes
import os
import signal
import sys
import time

import tiny
from asv_runner.benchmarks.mark import SkipNotImplemented


def on(side):
    return tiny.SIDE == side


def time_fine():
    tiny.work()


def time_raises_on_head():
    if on("head"):
        raise ValueError("the head's trouble")


def time_raises_on_base():
    if on("base"):
        raise ValueError("the base's trouble")


def time_raises_on_both():
    raise ValueError("trouble")


class SetupRaises:
    def setup(self):
        if on("head"):
            raise KeyError("no such input")

    def time_it(self):
        pass


class TeardownRaises:
    def teardown(self):
        if on("head"):
            raise OSError("cannot be removed")

    def time_it(self):
        pass


def time_hangs_on_head():
    if on("head"):
        time.sleep(60)


time_hangs_on_head.timeout = 1


def time_exits_on_base():
    if on("base"):
        print("I am leaving")
        os._exit(7)


def time_exits_in_silence_on_head():
    if on("head"):
        os._exit(0)


def time_quits_on_head():
    if on("head"):
        sys.exit(0)


def time_segfaults_on_head():
    if on("head"):
        ctypes.string_at(0)


def time_is_killed_on_head():
    if on("head"):
        os.kill(os.getpid(), signal.SIGKILL)


def time_calls_what_base_lacks():
    tiny.new()


if on("head"):
    def time_only_on_head():
        pass
else:
    def time_only_on_base():
        pass


def time_skipped_on_head():
    if on("head"):
        raise SkipNotImplemented("not with this head")


def time_skipped_on_both():
    raise SkipNotImplemented("not anywhere")


class Skipped:
    params = [[1, 2], ["a"]]
    param_names = ["n", "letter"]

    def setup(self, n, letter):
        if n == 2:
            print("two is too many")
            raise NotImplementedError

    def time_it(self, n, letter):
        tiny.work()


def time_last():
    tiny.work()
"""

BROKEN = {
    "broken_on_base": "import tiny\ntiny.new\n\ndef time_it():\n    pass\n",
    "quits_on_head": "import sys, tiny\nif tiny.SIDE == 'head':\n    sys.exit(3)\n\ndef time_it():\n    pass\n",
}

VALUES = """
import itertools
import random
import tiny


def on_head(head, base):
    return head if tiny.SIDE == "head" else base


def tracker(base, head, **attributes):
    def function():
        return head if tiny.SIDE == "head" else base

    # asv_runner takes the name from here.
    import linecache, sys
    function.__name__ = linecache.getline(__file__, sys._getframe(1).f_lineno).split()[0]
    for name, value in attributes.items():
        setattr(function, name, value)
    return function


track_equal = tracker(5, 5)
track_more = tracker(100, 120, unit="nodes")
track_little_more = tracker(100, 101)
track_less = tracker(100, 80)
track_rate_up = tracker(100, 120, higher_is_better=True)
track_rate_down = tracker(100, 80, higher_is_better=True)
track_zero = tracker(0, 0)
track_from_zero = tracker(0, 1)
track_to_zero = tracker(1, 0)
track_negative = tracker(-5, -5)
track_less_negative = tracker(-5, -3)
track_nan = tracker(float("nan"), float("nan"))
track_nan_on_head = tracker(1.0, float("nan"))
track_infinite_on_head = tracker(1.0, float("inf"))
track_nothing = tracker(None, None)


def mem_list():
    return [0] * (2000 if tiny.SIDE == "head" else 1000)


def mem_same():
    return [0] * 1000


def peakmem_allocates():
    return bytearray(60_000_000 if tiny.SIDE == "head" else 1)
"""

WELL_BEHAVED = """
import os
import tiny


def note(what):
    with open(os.environ["TINY_LOG"], "a") as log:
        log.write(f"{tiny.SIDE} {os.getpid()} {what}\\n")


class Logged:
    number = 2

    def setup(self):
        note("S")

    def teardown(self):
        note("T")

    def time_it(self):
        note("C")


class Cached:
    params = [[10, 20]]

    def setup_cache(self):
        note("cache")
        return {"side": tiny.SIDE, "numbers": list(range(50))}

    def time_sum(self, cache, n):
        if cache["side"] != tiny.SIDE:
            raise AssertionError("the cache of the other side")
        sum(cache["numbers"][:n])


class CacheRaises:
    def setup_cache(self):
        if tiny.SIDE == "head":
            raise RuntimeError("no data")

    def time_it(self, cache):
        pass


def time_number():
    tiny.work()


time_number.number = 7


def time_waits():
    import time
    time.sleep(0.003)
"""


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    with tiny.apart(tmp_path_factory.mktemp("apart")) as folder:
        yield folder


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    suite = {"benchmarks/failing.py": FAILING, **{f"benchmarks/{name}.py": text for name, text in BROKEN.items()}}
    head = PACKAGE[HEAD] + "\n\ndef new():\n    return work()\n"
    tiny.create(folder, {"tiny/__init__.py": PACKAGE[BASE], **suite}, {"tiny/__init__.py": head})
    before = tiny.state_of(folder)
    with tiny.quick():
        report, check = tiny.run(folder)
    assert tiny.state_of(folder) == before
    return report, check


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    first = {"tiny/__init__.py": PACKAGE[BASE], "benchmarks/values.py": VALUES}
    tiny.create(folder, first, {"tiny/__init__.py": PACKAGE[HEAD]})
    with tiny.quick():
        return tiny.run(folder)[0]


@pytest.fixture(scope="module")
def well_behaved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("well_behaved")
    first = {"tiny/__init__.py": PACKAGE[BASE], "benchmarks/well.py": WELL_BEHAVED}
    tiny.create(folder, first, {"tiny/__init__.py": PACKAGE[HEAD]})
    log = folder.parent / "log"
    with tiny.quick(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_LOG", str(log))
        report, check = tiny.run(folder)
    return report, check, [line.split() for line in log.read_text().splitlines()]


def by_name(report):
    return {comparison.label: comparison for comparison in report.comparisons}


# --- benchmarks that fail ---------------------------------------------------------------------------------------------

FAILURES = {
    "failing.time_raises_on_head": ("head", r"ValueError: the head's trouble \(failing\.py:\d+\)"),
    "failing.time_raises_on_base": ("base", r"ValueError: the base's trouble"),
    "failing.time_raises_on_both": ("base and head", r"ValueError: trouble"),
    "failing.SetupRaises.time_it": ("head", r"KeyError: 'no such input'"),
    "failing.TeardownRaises.time_it": ("head", r"OSError: cannot be removed"),
    "failing.time_hangs_on_head": ("head", r"timed out after 1 s"),
    "failing.time_exits_on_base": ("base", r"ended with code 7: I am leaving"),
    "failing.time_exits_in_silence_on_head": ("head", r"ended with code 0 before it was done"),
    "failing.time_quits_on_head": ("head", r"SystemExit"),
    "failing.time_segfaults_on_head": ("head", r"killed by SIGSEGV"),
    "failing.time_is_killed_on_head": ("head", r"killed by SIGKILL \(out of memory, most likely\)"),
    "failing.time_calls_what_base_lacks": ("base", r"AttributeError: module 'tiny' has no attribute 'new'"),
    "failing.time_only_on_head": ("base", r"its suite does not have it"),
    "failing.time_only_on_base": ("head", r"its suite does not have it"),
    "failing.time_skipped_on_head": ("head", r"cannot run there: .*not with this head"),
    "broken_on_base.time_it": ("base", r"benchmarks\.broken_on_base cannot be imported: AttributeError"),
    "quits_on_head.time_it": ("head", r"benchmarks\.quits_on_head cannot be imported: SystemExit"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_names_side_and_error(failing, name):
    side, reason = FAILURES[name]
    found = by_name(failing[0])[name]
    assert (found.verdict, found.side) == (FAILED, side)
    assert re.search(reason, found.reason), found.reason


def test_failures_cost_their_own_benchmark_only(failing):
    report, _ = failing
    others = {label for label, found in by_name(report).items() if found.verdict != FAILED}
    assert others == {"failing.time_fine", "failing.time_last", "failing.Skipped.time_it(1, 'a')"}
    for label in others:
        assert by_name(report)[label].rounds >= 2


def test_unavailable_on_both_sides_is_not_counted(failing):
    report, _ = failing
    found = {(one.name, one.params): one.reason for one in report.unavailable}
    assert set(found) == {("failing.Skipped.time_it", ("2", "'a'")), ("failing.time_skipped_on_both", ())}
    # What the suite printed says more than asv_runner's own line.
    assert found["failing.Skipped.time_it", ("2", "'a'")] == "two is too many"
    assert "not anywhere" in found["failing.time_skipped_on_both", ()]
    assert not {"failing.Skipped.time_it(2, 'a')", "failing.time_skipped_on_both"} & set(by_name(report))


def test_verdicts_add_up(failing, values):
    for report in (failing[0], values):
        assert sum(report.count(verdict) for verdict in VERDICTS) == len(report.comparisons)
    assert len(failing[0].comparisons) == len(FAILURES) + 3


def test_nothing_is_left_after_a_check(failing, scratch):
    assert not list(scratch.iterdir())
    assert not tiny.processes_below(scratch)


# --- values -----------------------------------------------------------------------------------------------------------

VALUE_VERDICTS = {
    "track_equal": SAME, "track_more": SLOWER, "track_little_more": SAME, "track_less": FASTER,
    "track_rate_up": FASTER, "track_rate_down": SLOWER, "track_zero": SAME, "track_from_zero": SLOWER,
    "track_to_zero": FASTER, "track_negative": SAME, "track_less_negative": SLOWER, "track_nan": UNDECIDED,
    "track_nan_on_head": UNDECIDED, "track_infinite_on_head": UNDECIDED, "track_nothing": UNDECIDED,
    "mem_list": SLOWER, "mem_same": SAME,
}  # fmt: skip


@pytest.mark.parametrize("name", VALUE_VERDICTS)
def test_values_have_rules_of_their_own(values, name):
    assert by_name(values)[f"values.{name}"].verdict == VALUE_VERDICTS[name]


def test_values_have_their_class_and_unit(values):
    found = by_name(values)
    assert (found["values.track_more"].kind, found["values.track_more"].unit) == ("track", "nodes")
    assert (found["values.mem_list"].kind, found["values.mem_list"].unit) == (MEMORY, "bytes")
    peak = found["values.peakmem_allocates"]
    assert peak.kind == PEAK_MEMORY
    assert 1.2 < peak.ratio < 20


def test_values_that_are_no_numbers_say_so(values):
    for name in ("track_nan", "track_infinite_on_head", "track_nothing"):
        found = by_name(values)[f"values.{name}"]
        assert "not positive numbers" in found.reason
        assert found.ratio is None


@pytest.mark.parametrize(("higher_is_better", "verdict"), [(False, FASTER), (True, SLOWER)])
def test_varying_values_know_their_direction(tmp_path, higher_is_better, verdict):
    suite = f"""
        import random, tiny

        def track_rate():
            return random.uniform(0.95, 1.05) * (50 if tiny.SIDE == "head" else 100)

        track_rate.higher_is_better = {higher_is_better}
    """
    first = {"tiny/__init__.py": PACKAGE[BASE], "benchmarks/values.py": suite}
    tiny.create(tmp_path / "p", first, {"tiny/__init__.py": PACKAGE[HEAD]})
    with tiny.quick(looks=(10,)):
        report, _ = tiny.run(tmp_path / "p")
    (found,) = report.comparisons
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(0.5, abs=0.05)


# --- what asv defines -------------------------------------------------------------------------------------------------


def test_setup_and_teardown_enclose_every_sample(well_behaved):
    _, _, log = well_behaved
    events = collections.defaultdict(str)
    for side, pid, what in log:
        if what != "cache":
            events[side, pid] += what
    assert {side for side, _ in events} == {BASE, HEAD}
    for one in events.values():
        # asv_runner isolates the calls of a benchmark with setup: even with number = 2, each has its own.
        assert re.fullmatch(r"(SCT)+", one), one


def test_setup_cache_runs_once_a_side_and_is_read_there(well_behaved):
    report, _, log = well_behaved
    counts = collections.Counter(side for side, _, what in log if what == "cache")
    # The twin is another copy of the base, with a cache of its own where a sentinel needs one.
    assert counts[HEAD] == 1
    assert counts[BASE] in (1, 2)
    for n in (10, 20):
        assert by_name(report)[f"well.Cached.time_sum({n})"].verdict != FAILED
    failed = by_name(report)["well.CacheRaises.time_it"]
    assert (failed.verdict, failed.side) == (FAILED, HEAD)
    assert failed.reason.startswith("setup_cache: RuntimeError: no data")


def test_number_is_kept_and_frozen(well_behaved):
    _, check, _ = well_behaved
    cases = {case.label: case for case in check.cases}
    assert cases["well.time_number"].number == 7
    assert cases["well.Logged.time_it"].number == 2
    assert cases["well.Cached.time_sum(10)"].number > 10
    assert cases["well.time_waits"].number == 1


def test_classes_of_timings(well_behaved):
    _, check, _ = well_behaved
    cases = {case.label: case for case in check.cases}
    assert cases["well.time_number"].kind == SERIAL
    assert cases["well.time_waits"].kind == SERIAL
    assert not cases["well.time_waits"].pinned


def test_recorded_rounds_hold_every_burst(well_behaved):
    _, check, _ = well_behaved
    record = next(line for line in check.recorded_rounds() if line["name"] == "well.time_number")
    assert len(record["screening"]) == 3
    assert all(len(first) == len(second) >= 1 for first, second in record["screening"])


# --- the whole check --------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path):
    suite = "import tiny\n\ndef time_a():\n    tiny.work()\n\ndef time_b():\n    tiny.work()\n"
    first = {"tiny/__init__.py": PACKAGE[BASE], "benchmarks/plain.py": suite}
    folder = tmp_path / "plain"
    tiny.create(folder, first, {"tiny/__init__.py": PACKAGE[HEAD]})
    return folder


def amend(folder, files):
    tiny.write(folder, files)
    tiny.git(folder, "add", "--all")
    tiny.git(folder, "commit", "--quiet", "--amend", "-m", "amended")


def test_too_small_budget_is_undecided_never_same(plain):
    with tiny.quick():
        report, _ = tiny.run(plain, budget=0.01)
    assert [one.verdict for one in report.comparisons] == [UNDECIDED] * 2
    for one in report.comparisons:
        assert "budget" in one.reason
    assert report.exit_code == NOT_MEASURED


@pytest.mark.alone
def test_budget_that_ends_in_the_screening(plain):
    with tiny.quick(screening=500, looks=(500,)):
        report, _ = tiny.run(plain, budget=1.5)
    assert report.seconds < 15
    assert [one.verdict for one in report.comparisons] == [UNDECIDED] * 2
    assert all("budget" in one.reason for one in report.comparisons)


def test_interruption_keeps_the_verdicts(plain, scratch):
    def interrupt(display):
        if display.steps == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    with tiny.quick(screening=3, looks=(200,)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "screened_out", lambda found, threshold: True)
        patch.setattr(engine, "_confirm", lambda check, session: os.kill(os.getpid(), signal.SIGTERM))
        report, _ = tiny.run(plain)
    assert report.interrupted
    assert report.exit_code == 130
    assert [one.verdict for one in report.comparisons] == [SAME] * 2
    # Of more rounds a busy machine foresees that they take longer than the budget, and leaves a benchmark out.
    with tiny.quick(screening=60):
        report, _ = tiny.run(plain, display=tiny.Silent(interrupt))
    assert report.interrupted
    assert [one.reason for one in report.comparisons] == ["interrupted before it was settled"] * 2
    assert not list(scratch.iterdir())
    assert not tiny.processes_below(scratch)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_suite_that_fails_on_one_side(plain):
    amend(plain, {"tiny/__init__.py": "raise RuntimeError('not finished')\n"})
    with pytest.raises(NotMeasurableError, match=r"cannot be imported on the head: .*RuntimeError: not finished"):
        tiny.run(plain)


def test_suite_that_itself_fails_is_not_blamed_on_one_side(plain):
    amend(plain, {"benchmarks/plain.py": "import nosuchmodule\n"})
    message = r"suite \(it is the head's on both sides\) cannot be imported on the base and the head: .*nosuchmodule"
    with pytest.raises(NotMeasurableError, match=message):
        tiny.run(plain)


def test_build_that_is_interrupted_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import pathlib, tempfile, time; pathlib.Path(tempfile.mkdtemp(), 'x').touch(); print('!'); time.sleep(60)"
    ended, _ = sides._run_to_end([sys.executable, "-c", code], tmp_path, os.environ, 1.0)
    assert str(ended).startswith("nothing after 1 s")
    assert not list(tmp_path.iterdir())


def test_build_that_fails_shows_the_last_lines(plain, scratch):
    amend(plain, {"make_wheel.py": "print('tiny.c:12: error: expected a semicolon')\nraise SystemExit(4)\n"})
    with pytest.raises(NotMeasurableError, match=r"building the head .* ended with 4") as caught:
        tiny.run(plain)
    assert "tiny.c:12: error: expected a semicolon" in str(caught.value)
    assert not list(scratch.iterdir())


def test_build_that_leaves_no_wheel(plain):
    amend(plain, {"make_wheel.py": ""})
    with pytest.raises(NotMeasurableError, match=r"must leave one wheel in {build_cache_dir}; it left: none"):
        tiny.run(plain)


def test_broken_configuration_in_a_revision(plain):
    amend(plain, {"asv.conf.json": '{"version": 1, "project": '})
    with pytest.raises(CheckUsageError, match=r"asv\.conf\.json"):
        tiny.run(plain)


def test_pattern_without_a_match_lists_what_there_is(plain):
    with pytest.raises(CheckUsageError, match=r"no benchmark matches -b nothing; there are 2, such as plain\.time_a"):
        tiny.run(plain, patterns=("nothing",))


def test_requirements_that_differ_are_noted(plain):
    amend(plain, {"asv.conf.json": tiny.conf(matrix={"req": {"numpy": ["1.26"]}})})
    with tiny.quick():
        report, _ = tiny.run(plain, patterns=("time_a",))
    assert [one.name for one in report.comparisons] == ["plain.time_a"]
    assert any("requirements differ (matrix), and are ignored: -E existing" in note for note in report.notes)


def test_other_definitions_and_removed_benchmarks_are_noted(plain):
    amend(plain, {"benchmarks/plain.py": "import tiny\n\ndef time_a():\n    tiny.work()\n    tiny.work()\n"})
    with tiny.quick():
        report, _ = tiny.run(plain)
    assert report.only_in_base == ("plain.time_b",)
    assert any("define 1 benchmarks differently (plain.time_a)" in note for note in report.notes)


def test_editable_installation_is_not_measured(plain, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    tiny.write(elsewhere, {"tiny/__init__.py": PACKAGE[HEAD]})
    # As an import hook of an editable installation does, the suite's first import goes before the path.
    amend(plain, {"benchmarks/__init__.py": f"import sys\nsys.path.insert(0, {str(elsewhere)!r})\n"})
    with pytest.raises(NotMeasurableError, match=r"imports tiny from .*elsewhere.* instead of from its own build"):
        tiny.run(plain)


def test_full_disk(plain, scratch, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")

    monkeypatch.setattr(sides, "_top_level", full)
    with pytest.raises(NotMeasurableError, match="No space left on device: /a/file"):
        tiny.run(plain)
    assert not list(scratch.iterdir())


def test_disk_that_fills_up_while_measuring(plain, scratch):
    def full(display):
        if display.steps == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with tiny.quick(screening=3, looks=(20,)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "screened_out", lambda found, threshold: False)
        report, check = tiny.run(plain, display=tiny.Silent(full))
    assert report.exit_code == NOT_MEASURED
    assert "No space left on device" in report.aborted
    assert any(case.rounds or check.screening.get(case.key) for case in check.cases)
    assert len(report.comparisons) == len(check.cases)
    assert not list(scratch.iterdir())


def test_import_that_fails_once_costs_one_benchmark(plain, scratch, monkeypatch):
    finish, calls = Worker.finish_import, []

    def failing_once(one):
        calls.append(one)
        if len(calls) == 6:  # two for the discovery, one for the other suite, two for the preparation
            os.killpg(one._process.pid, signal.SIGKILL)
        return finish(one)

    monkeypatch.setattr(Worker, "finish_import", failing_once)
    with tiny.quick():
        report, _ = tiny.run(plain)
    assert sum(one.verdict == FAILED for one in report.comparisons) <= 1
    assert not tiny.processes_below(scratch)


def test_one_check_at_a_time(plain):
    with surroundings.only_one():
        with pytest.raises(NotMeasurableError, match=rf"another check is running \(process {os.getpid()}\)"):
            tiny.run(plain)
        # The refused one has not taken the lock from the first.
        with pytest.raises(NotMeasurableError, match=rf"another check is running \(process {os.getpid()}\)"):
            tiny.run(plain)


def test_scratch_removes_what_a_killed_check_left(scratch):
    old = scratch / "gradmark-check-old"
    old.mkdir()
    (old / "file").touch()
    other = scratch / "something else"
    other.mkdir()
    with surroundings.scratch() as folder:
        assert folder.parent == scratch
        assert not old.exists()
        assert other.exists()
    assert not folder.exists()
    other.rmdir()


# --- rounds -----------------------------------------------------------------------------------------------------------


def case_of(**more):
    case = rounds.new_case({"name": "m.time_x", "type": "time", "timeout": None}, None, (), 60.0)
    case.number, case.samples, case.burst_seconds = 1000, 1, 5e-3
    for name, value in more.items():
        setattr(case, name, value)
    return case


def test_schedule_is_abba_or_baab_and_both_occur():
    draw, seen = random.Random(1), collections.Counter()
    for _ in range(50):
        turns = [name for name, _ in rounds._schedule(case_of(), draw)]
        assert len(turns) == 4 * rounds.QUADS
        for start in range(0, len(turns), 4):
            a, b, c, d = turns[start : start + 4]
            assert a == d != b == c
            seen[a] += 1
    assert set(seen) == {BASE, HEAD}
    assert min(seen.values()) > 60


def test_schedule_pins_both_sides_to_the_same_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    turns = rounds._schedule(case_of(pinned=True), random.Random(1))
    counts = collections.Counter(turns)
    assert set(counts) == {(name, core) for name in (BASE, HEAD) for core in (3, 5)}
    assert len(set(counts.values())) == 1
    assert {core for _, core in rounds._schedule(case_of(pinned=False), random.Random(1))} == {None}


def test_schedule_of_slow_calls_and_values_is_one_each():
    for case in (case_of(burst_seconds=2 * rounds._VERY_LONG_BURST), case_of(kind="track")):
        orders = {tuple(name for name, _ in rounds._schedule(case, random.Random(seed))) for seed in range(20)}
        assert orders == {(BASE, HEAD), (HEAD, BASE)}


def test_schedule_of_sentinels_uses_their_sides():
    turns = rounds._schedule(case_of(sides=(BASE, TWIN)), random.Random(1))
    assert {name for name, _ in turns} == {BASE, TWIN}


@pytest.mark.parametrize(
    ("cpu", "device", "expected"),
    [
        ([1.0, 0.99, 1.0], False, (SERIAL, True)),
        ([0.5, 0.6, 0.4], False, (SERIAL, False)),
        ([1.9, 1.8, 2.0], False, (PARALLEL, False)),
        # Once may be an accident, but one core would be too few if it was none.
        ([1.0, 1.0, 2.0], False, (SERIAL, False)),
        # Several threads beside a busy neighbour.
        ([1.0, 0.98, 1.4, 1.02, 1.0, 1.6], False, (PARALLEL, False)),
        ([None, None, None], False, (SERIAL, False)),
        ([0.1, 0.1, 0.1], True, (DEVICE, False)),
    ],
)
def test_class_of(cpu, device, expected):
    assert rounds._class_of([{"cpu": value, "device": device} for value in cpu]) == expected


def test_typical_is_the_mean_of_the_fastest_third():
    assert rounds.typical([3.0]) == 3.0
    assert rounds.typical([5.0, 1.0]) == 1.0
    assert rounds.typical([9.0, 1.0, 8.0, 2.0, 7.0, 100.0]) == 1.5


def test_log_ratio_of_a_round():
    assert rounds.Round([1.0, 9.0], [2.0, 9.0]).log_ratio == pytest.approx(math.log(2.0))
    assert math.isnan(rounds.Round([0.0], [1.0]).log_ratio)
    assert math.isnan(rounds.Round([1.0], [math.nan]).log_ratio)


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def side(tmp_path):
    tiny.write(tmp_path, {"suite/__init__.py": "", "suite/bench.py": BENCH, "home/.keep": "", "site/.keep": ""})
    home = tmp_path / "home"
    return sides.Side(
        BASE, None, sides.sys.executable, tmp_path / "site", tmp_path, tmp_path, home, None, env=dict(os.environ)
    )


BENCH = """
import subprocess
import threading
import time


def spin():
    while True:
        pass


def time_spins():
    threading.Thread(target=spin, daemon=True).start()
    time.sleep(0.01)


def time_starts_a_process():
    subprocess.Popen(["sleep", "1000"])


def time_short():
    pass
"""


@pytest.fixture
def started(side):
    one = Worker(side, side.tree / "suite", seed=0)
    one.start_import()
    assert one.finish_import() == {}
    yield one
    if not one._output.closed:
        one.end()


def open_in(one, name):
    one.start_open(name, one.side.home / "work")
    opened = Opened(one, 10.0)
    opened.expect("skip")
    opened.stop()
    return opened


def state_of_process(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux
def test_idle_side_is_stopped_with_all_its_threads(started):
    opened = open_in(started, "bench.time_spins")
    assert state_of_process(opened._pid) == "T"
    opened.ask({"do": "burst", "number": 1, "samples": 1, "warm": 0}, "seconds")
    tasks = list(Path(f"/proc/{opened._pid}/task").iterdir())
    assert len(tasks) >= 2
    # A thread that waits for a core stops as soon as it gets one.
    deadline = time.monotonic() + 5
    while (states := [state_of_process(task.name) for task in tasks]) != ["T"] * len(
        tasks
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert states == ["T"] * len(tasks)
    opened.kill()


@linux
def test_end_takes_everything_along(started):
    opened = open_in(started, "bench.time_starts_a_process")
    opened.ask({"do": "burst", "number": 1, "samples": 1, "warm": 0}, "seconds")
    group = [pid for pid in tiny.processes_below(started.side.home) if os.getpgid(pid) == opened._pid]
    assert len(group) == 2
    started.end()
    deadline = time.monotonic() + 5
    while tiny.processes_below(started.side.home) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not tiny.processes_below(started.side.home)


@linux
def test_benchmark_that_dies_while_it_is_idle(started):
    opened = open_in(started, "bench.time_short")
    os.kill(opened._pid, signal.SIGKILL)
    with pytest.raises(BenchmarkError, match="SIGKILL"):
        opened.ask({"do": "burst", "number": 1, "samples": 1, "warm": 0}, "seconds")
    again = open_in(started, "bench.time_short")
    assert again.ask({"do": "burst", "number": 1, "samples": 1, "warm": 0}, "seconds")["seconds"] >= 0
    again.close()


def test_worker_that_is_gone(started):
    os.killpg(started._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="was killed by SIGKILL"):
        open_in(started, "bench.time_short")


def test_worker_that_cannot_be_started(side):
    side.python = "/no/such/python"
    with pytest.raises(WorkerLostError, match="/no/such/python cannot be started"):
        Worker(side, side.tree / "suite", seed=0)
