"""Sizes, winners along them, places, and what is done with the time that is left: all by fakes that sleep or count."""

import dataclasses
import time

import pytest

from gradmark import catalog, profiles, workloads
from gradmark.tracking import choice_plot, choice_profile, choice_table, choose, compile_ahead, curves, sizes
from gradmark.tracking import measure as ruler
from gradmark.workloads import Prepared, Workload

GELU = Workload(operation="gelu", operation_pass="forward", size="1024")


def found(elements, fastest, *tied, workload=GELU, place="host", **seconds):
    """A finding as if it had been measured: `fastest` leads, alone or tied with others."""
    names = dict.fromkeys((fastest, *tied, "numpy", "numba"))
    seconds = {name: seconds.get(name, 1e-6 * (1 + position)) for position, name in enumerate(names)}
    ratios = {name: ruler.Interval(value / seconds[fastest], 0.9, 3.0, 0.99) for name, value in seconds.items()}
    runner_up = next(name for name in names if name != fastest)
    return choose.Finding(
        dataclasses.replace(workload, size=str(elements)),
        choose.MEASURED,
        place,
        times={n: choose.Timed(ruler.Interval(s, 0.9 * s, 1.1 * s, 0.99), 8, 100) for n, s in seconds.items()},
        over_first=ratios,
        verdict=ruler.Verdict(None if tied else fastest, (fastest, *tied), runner_up, ratios[runner_up]),
        bytes_moved=8 * elements,
    )


def choice_of(*findings, **more):
    return choose.Choice(list(findings), dict.fromkeys(("numpy", "numba", "torch")), 1.0, interrupted=False, **more)


# --- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", "65536"), ("2^20", "1048576"), ("2**20", "1048576"), ("1e6", "1000000"), ("1.5E3", "1500"),
     (" 64 ", "64"), ("cache", "cache"), ("memory", "memory")],
)  # fmt: skip
def test_sizes_as_they_are_written(text, size):
    assert sizes.parse(text) == size


@pytest.mark.parametrize("text", ["", "huge", "-5", "1.5", "2^", "^3", "1e", "0x10", "inf", "nan", "1e6 7", "small"])
def test_what_is_no_size_lists_what_is(text):
    with pytest.raises(ValueError, match=r"unknown size .*; accepted: cache, memory, or numbers of elements"):
        sizes.parse(text)


@pytest.mark.parametrize("text", ["0", "3", "2^49", "10^100"])
def test_a_size_beyond_what_is_accepted_is_told_the_limits(text):
    with pytest.raises(ValueError, match=r"elements; accepted: 16 to 2\^48"):
        sizes.parse(text)


def test_the_sizes_of_the_sweep_are_sizes():
    assert [sizes.parse(size) for size in sizes.SWEEP] == list(sizes.SWEEP)
    assert (min(map(int, sizes.SWEEP)), max(map(int, sizes.SWEEP))) == (2**6, 2**24)


@pytest.mark.parametrize(("elements", "text"), [(2**6, "2^6"), (10**6, "1e6"), (48, "48"), (1500, "1500"), (0, "0")])
def test_sizes_as_they_are_shown(elements, text):
    assert sizes.shown(elements) == text


def test_what_does_not_fit_into_memory_is_told_what_would():
    large = dataclasses.replace(GELU, size=str(2**30), dtype="float64")
    refused = sizes.too_large([GELU, large], 3, 16 * 2**30)
    assert list(refused) == [large]
    assert "2^30 elements of float64 need about 144.0 GiB" in refused[large]
    assert "16.0 GiB are free; at most 2^26 fit" in refused[large]
    fits = dataclasses.replace(large, size=str(2**26))
    assert not sizes.too_large([fits], 3, 16 * 2**30)


def test_where_the_system_does_not_tell_its_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(sizes, "_lines", lambda path: {})
    assert sizes.free_memory() is None
    assert sizes.too_large([dataclasses.replace(GELU, size=str(2**40))], 3, None) == {}


def test_a_containers_limit_counts(monkeypatch):
    lines = {"/proc/meminfo": {"MemAvailable:": "  1000 kB"}, "max": {"600000": ""}, "current": {"100000": ""}}
    monkeypatch.setattr(sizes, "_lines", lambda path: lines.get(path) or lines[path.rpartition(".")[2]])
    assert sizes.free_memory() == 500_000
    lines["max"] = {"max": ""}
    assert sizes.free_memory() == 1_024_000


# --- winners along the sizes


def test_neighbours_with_one_answer_are_one_range_and_ties_are_no_winner():
    curve = [found(64, "numpy"), found(256, "numpy"), found(1024, "numba", "numpy"), found(4096, "numba")]
    assert [choice_table.range_text(one) for one in curves.ranges(curve)] == [
        "numpy 2^6–2^8",
        "numba=numpy 2^10",
        "numba 2^12",
    ]
    assert curves.crossovers(curve) == [curves.Crossover(256, "numpy", 4096, "numba")]


def test_a_tie_between_two_sizes_of_one_winner_is_no_crossover():
    assert not curves.crossovers([found(64, "numba"), found(256, "numba", "numpy"), found(1024, "numba")])


def test_what_was_not_measured_does_not_end_a_range():
    missing = choose.Finding(dataclasses.replace(GELU, size="256"), choose.BUDGET)
    (one,) = curves.ranges([found(64, "numba"), missing, found(1024, "numba")])
    assert (one.first, one.last) == (64, 1024)


def test_the_widest_crossover_is_refined_first_and_only_down_to_a_factor_of_two():
    relu = dataclasses.replace(GELU, operation="relu")
    narrow = [found(1024, "numpy", workload=relu), found(2048, "numba", workload=relu)]
    wide = [found(64, "numpy"), found(2**20, "numba")]
    ((finding, middle),) = curves.to_refine([*narrow, *wide])
    assert (finding.workload.operation, middle) == ("gelu", 2**13)


@pytest.mark.parametrize("name", ["gelu", "dirac", "glu", "batch_norm"])
def test_bisection_ends_even_where_shapes_have_fewer_elements_than_were_asked_for(name):
    workload = workloads.of_row(catalog.operation(name), small=True)[0]
    findings = [found(1000, "numpy", workload=workload), found(10**6, "numba", workload=workload)]
    for _ in range(40):
        waiting = list(curves.to_refine(findings))
        if not waiting:
            break
        findings.append(found(waiting[0][1], "numba", "numpy", workload=workload))
    assert not list(curves.to_refine(findings))


# --- measuring


class Sleepers:
    """Stand in for the workloads: `seconds(target, elements)` for each call; `prepared` remembers who was asked."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.prepared = seconds, []
        monkeypatch.setattr(workloads, "open_target", lambda gradmark, name: (self, workloads.TARGETS[name]))
        monkeypatch.setattr(Workload, "prepare", lambda w, _, target: self._prepared(w, target, target.name))
        monkeypatch.setattr(
            Workload, "prepare_from_host", lambda w, _, target: self._prepared(w, target, f"{target.name}+copies")
        )

    def _prepared(self, workload, target, name):
        self.prepared.append((name, workload.elements))
        seconds = self.seconds(name, workload.elements)
        return Prepared(lambda: time.sleep(seconds), 8, lambda: None)


@pytest.mark.alone
def test_time_that_is_left_goes_into_the_crossover(monkeypatch):
    def seconds(name, elements):
        faster = "numpy" if elements < 500 else "numba"
        return 0.003 if name == faster else 0.006

    Sleepers(monkeypatch, seconds)
    planned = choose.plan(["gelu"], ["64", "4096"], ["float32"])[:1]
    planned += [dataclasses.replace(planned[0], size="4096")]
    choice = choose.choose(planned, {"numpy": None, "numba": None}, budget=60.0, refine=True)
    assert [finding.workload.elements for finding in choice.findings] == [64, 128, 256, 512, 4096]
    (crossover,) = curves.crossovers(choice.findings)
    assert crossover == curves.Crossover(256, "numpy", 512, "numba")
    assert choice.seconds < 60


@pytest.mark.alone
def test_a_device_is_measured_with_the_data_there_and_from_the_host_and_back(monkeypatch, capsys):
    times = {"numpy": 0.02, "torch": 0.008, "torch-cuda": 0.003, "torch-cuda+copies": 0.012}
    fake = Sleepers(monkeypatch, lambda name, elements: times[name])
    targets = dict.fromkeys(("numpy", "torch", "torch-cuda"))
    choice = choose.choose([GELU], targets, budget=30.0)
    by_place = {finding.place: finding for finding in choice.findings}
    assert list(by_place) == list(profiles.PLACES)
    assert set(by_place["host"].times) == {"numpy", "torch"}
    assert set(by_place["device"].times) == {"torch-cuda"}
    assert set(by_place["host-to-device-and-back"].times) == {"numpy", "torch", "torch-cuda"}
    assert {name: finding.verdict.fastest for name, finding in by_place.items()} == {
        "host": "torch",
        "device": "torch-cuda",
        "host-to-device-and-back": "torch",
    }
    assert ("torch-cuda+copies", 1024) in fake.prepared
    from rich.console import Console

    console = Console(width=80)
    for table in choice_table.tables(choice):
        console.print(table)
    out = " ".join(capsys.readouterr().out.split())
    assert "float32, arrays on the device already" in out
    assert "a device includes the copies there and back" in out
    points = choice_profile.profile(choice, "2026-01-01", profiles.Key.here())
    assert points.backend("gelu", "forward", "float32", 1000, "device") == "torch-cuda"
    assert points.backend("gelu", "forward", "float32", 1000, "host-to-device-and-back") == "torch"


def test_a_dtype_that_one_backend_lacks_costs_only_that_backend(monkeypatch):
    Sleepers(monkeypatch, lambda name, elements: 0.006)
    half = dataclasses.replace(GELU, dtype="float16")
    choice = choose.choose([half], {"numpy": None, "numba": None, "torch": None}, budget=20.0)
    (finding,) = choice.findings
    assert set(finding.times) == {"numpy", "torch"}
    assert finding.absent == {"numba": "numba takes float32, float64, not float16"}


def test_an_orthogonal_matrix_is_kept_small_enough_to_be_called_ten_times():
    planned = choose.plan(["orthogonal", "uniform"], ["1024", "16777216"], ["float32"])
    assert [(w.operation, w.elements) for w in planned] == [
        ("uniform", 1024), ("orthogonal", 1024), ("uniform", 2**24), ("orthogonal", 2**18),
    ]  # fmt: skip


# --- compiling ahead


def test_what_is_in_the_cache_is_not_compiled_and_starts_no_process(monkeypatch):
    asked = []
    monkeypatch.setattr(compile_ahead, "compile_all", lambda of_kernel: asked.append(of_kernel) or 0.0)
    monkeypatch.setattr(compile_ahead, "_in_processes", lambda *_: pytest.fail("a process was started"))
    planned = choose.plan(["gelu", "relu"], ["64", "65536", "16777216"], ["float32"])
    done = compile_ahead.compile_ahead(planned, deadline=time.perf_counter() + 60, processes=2)
    assert (done.processes, sum(done.seconds.values())) == (1, 0.0)
    assert len(asked) == 4
    assert all([workload.size for workload in of_kernel] == ["64", "65536"] for of_kernel in asked)


def test_the_first_compilation_brings_in_the_other_processes(monkeypatch):
    monkeypatch.setattr(compile_ahead, "compile_all", lambda of_kernel: 0.5)
    monkeypatch.setattr(compile_ahead, "_cache_is_writable", lambda: True)
    monkeypatch.setattr(compile_ahead, "_in_processes", lambda waiting, *_: [(kernel, 0.25) for kernel, _ in waiting])
    planned = choose.plan(["gelu", "relu"], ["64"], ["float32"])
    done = compile_ahead.compile_ahead(planned, deadline=time.perf_counter() + 60, processes=2)
    assert done.processes == 2
    assert sorted(done.seconds.values()) == [0.25, 0.25, 0.25, 0.5]


def test_what_takes_longest_to_compile_comes_last(monkeypatch):
    asked = []
    monkeypatch.setattr(compile_ahead, "compile_all", lambda of_kernel: asked.append(of_kernel[0].operation) or 0.0)
    planned = choose.plan(["softmax", "batch_norm", "zeros", "gelu"], ["64"], ["float32"])
    compile_ahead.compile_ahead(planned, deadline=1e99, processes=1)
    assert asked == ["gelu", "gelu", "zeros", "softmax", "softmax", "batch_norm", "batch_norm"]


def test_a_cache_that_cannot_be_written_to_leaves_compilation_to_this_process(monkeypatch):
    monkeypatch.setattr(compile_ahead, "compile_all", lambda of_kernel: 0.5)
    monkeypatch.setattr(compile_ahead, "_cache_is_writable", lambda: False)
    monkeypatch.setattr(compile_ahead, "_in_processes", lambda *_: pytest.fail("a process was started"))
    done = compile_ahead.compile_ahead([GELU, dataclasses.replace(GELU, operation="relu")], deadline=1e99, processes=2)
    assert (done.processes, len(done.seconds)) == (1, 2)


def test_processes_really_compile(monkeypatch, tmp_path):
    pytest.importorskip("numba")
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))
    planned = choose.plan(["hard_tanh"], ["64"], ["float32"])
    waiting = [(compile_ahead.kernel_of(workload), [workload]) for workload in planned]
    done = dict(compile_ahead._in_processes(waiting, 2, time.perf_counter() + 120, None))
    assert set(done) == {kernel for kernel, _ in waiting}
    assert all(seconds > 0 for seconds in done.values())
    assert list(tmp_path.rglob("*.nbi"))


def test_compilation_is_told_apart_from_the_rest_of_the_setup(monkeypatch):
    Sleepers(monkeypatch, lambda name, elements: 0.006)
    compilation = compile_ahead.Compilation({compile_ahead.kernel_of(GELU): 1.5}, 2, 1.0)
    choice = choose.choose([GELU], {"numpy": None, "numba": None}, budget=20.0, compilation=compilation)
    (finding,) = choice.findings
    assert finding.compile_seconds == 1.5
    assert finding.setup_seconds["numba"] < 1.5
    notes = " ".join(choice_table.footnotes(choice, budget=20.0))
    assert "Numba's compilation, which is in no time above either: 1.5 s (in 2 processes, 1 s)." in notes


def test_where_there_is_no_time_to_compile_the_others_answer_without_numba(monkeypatch):
    fake = Sleepers(monkeypatch, lambda name, elements: 0.006)
    nothing = compile_ahead.Compilation()
    choice = choose.choose([GELU], {"numpy": None, "numba": None}, budget=4.0, compilation=nothing)
    (finding,) = choice.findings
    assert finding.status == choose.MEASURED
    assert set(finding.times) == {"numpy"}
    assert fake.prepared == [("numpy", 1024)]
    (table,) = choice_table.tables(choice)
    assert [*table.columns[2].cells] == ["numpy 2^10 (without numba)"]
    assert "not compiled within the budget" in " ".join(choice_table.footnotes(choice, budget=4.0))
    # That is no answer for a call.
    assert not choice_profile.profile(choice, "2026-01-01", profiles.Key.here()).decisions

    # What Numba does not take would not be compiled in any time.
    half = dataclasses.replace(GELU, dtype="float16")
    choice = choose.choose([half], {"numpy": None, "numba": None}, budget=4.0, compilation=nothing)
    assert choose.NOT_COMPILED not in choice.findings[0].absent.values()

    choice = choose.choose([GELU], {"numpy": None, "numba": None}, budget=60.0, compilation=nothing)
    assert set(choice.findings[0].times) == {"numpy", "numba"}
    # From then on it is compiled.
    assert compile_ahead.kernel_of(GELU) in nothing.seconds


# --- the plot


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_has_a_panel_for_each_operation_and_pass(tmp_path, ending):
    pytest.importorskip("matplotlib")
    relu = dataclasses.replace(GELU, operation="relu")
    curve = [found(64, "numpy"), found(4096, "numba"), found(2**20, "numba", workload=relu)]
    file = tmp_path / f"p.{ending}"
    choice_plot.plot(choice_of(*curve), str(file), title="here", copy_bytes_per_second=1e10)
    content = file.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])
    if ending == "svg":
        text = content.decode()
        assert "gelu forward" in text
        assert "memory limit" in text


def test_a_plot_of_nothing_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    nothing = choice_of(choose.Finding(GELU, choose.BUDGET))
    with pytest.raises(choice_plot.NoPlotError, match="nothing was measured"):
        choice_plot.plot(nothing, str(tmp_path / "p.png"), title="", copy_bytes_per_second=None)


def test_a_plot_is_refused_before_anything_is_measured(monkeypatch):
    with pytest.raises(choice_plot.NoPlotError, match=r"must end in \.png or \.svg"):
        choice_plot.check_possible("x.pdf")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(choice_plot.NoPlotError, match=r"pip install 'gradmark\[plot\]'"):
        choice_plot.check_possible("x.png")
