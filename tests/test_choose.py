"""The chooser: what it plans, what it does with its budget, and that nothing is silently left out."""

import json
import subprocess
import sys
import time

import pytest

from gradmark import catalog, processor, workloads
from gradmark.tracking import choice_record, choice_table, choose, machine
from gradmark.workloads import Prepared, UnavailableError, Workload


class Fake:
    """Stands in for the workloads: each target sleeps for its time, or raises."""

    def __init__(self, monkeypatch, **seconds):
        self.seconds = seconds
        self.prepared = []
        monkeypatch.setattr(workloads, "open_target", lambda gradmark, name: (self, name))
        monkeypatch.setattr(Workload, "prepare", self.prepare)

    def prepare(self, namespace, target):
        self.prepared.append(target)
        what = self.seconds[target]
        if isinstance(what, BaseException):
            raise what
        return Prepared(lambda: time.sleep(what), 8, lambda: None)


def cells(count):
    names = [row.name for row in catalog.ACTIVATIONS]
    return [Workload(operation=name, operation_pass="forward", size="cache") for name in names[:count]]


def shown(choice, capsys, budget=60.0):
    from rich.console import Console

    console = Console(width=80)
    for table in choice_table.tables(choice):
        console.print(table)
    for note in choice_table.footnotes(choice, budget=budget):
        console.print(note, highlight=False, markup=False)
    return capsys.readouterr().out


ALL = {"numpy": None, "numba": None}


def test_every_operation_and_pass_is_planned_cheap_ones_first():
    planned = choose.plan(catalog.OPERATIONS, ("cache", "memory"), ["float64"])
    assert {w.operation for w in planned} == set(catalog.OPERATIONS)
    for row in catalog.OPERATIONS.values():
        passes = {w.operation_pass for w in planned if w.operation == row.name}
        assert passes == ({"forward"} if row.family == "initializers" else {"forward", "backward"})
    assert {w.dtype for w in planned} == {"float64"}
    sizes = [w.size for w in planned]
    assert sizes.index("memory") > max(i for i, size in enumerate(sizes) if size != "memory")
    assert len(set(planned)) == len(planned)


def test_only_the_sizes_that_were_asked_for_are_planned():
    assert {w.size for w in choose.plan(["gelu"], ["memory"], ["float32"])} == {"memory"}
    assert {w.size for w in choose.plan(["orthogonal", "zeros"], ["cache"], ["float32"])} == {"512x512", "1024x1024"}
    assert {w.size for w in choose.plan(["dirac", "delta_orthogonal"], ["cache"], ["float32"])} == {"512x512x3"}


@pytest.mark.alone
def test_the_faster_one_is_named(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.012, numba=0.006)
    choice = choose.choose(cells(1), ALL, budget=20.0)
    (finding,) = choice.findings
    assert finding.status == choose.MEASURED
    assert finding.verdict.fastest == "numba"
    assert finding.over_first["numpy"].median > 1.3
    out = shown(choice, capsys)
    assert "numba" in out
    assert "not measured" not in out


@pytest.mark.alone
def test_the_budget_is_kept_and_the_rest_is_named(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.05, numba=0.05)
    began = time.perf_counter()
    choice = choose.choose(cells(10), ALL, budget=4.0)
    assert time.perf_counter() - began < 5.0
    states = [finding.status for finding in choice.findings]
    assert states.count(choose.MEASURED) >= 1
    assert states.count(choose.BUDGET) >= 1
    assert set(states) == {choose.MEASURED, choose.BUDGET}
    out = shown(choice, capsys, budget=4.0)
    assert out.count("not measured") == states.count(choose.BUDGET) + 1  # each row, and the note below
    assert "(budget)" in out


def test_ctrl_c_keeps_what_was_measured(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.006, numba=0.006)

    def before(workload):
        if workload.operation == "relu":
            raise KeyboardInterrupt

    choice = choose.choose(cells(5), ALL, budget=60.0, before=before)
    assert choice.interrupted
    states = {finding.workload.operation: finding.status for finding in choice.findings}
    assert states == {
        "sigmoid": choose.MEASURED,
        "tanh": choose.MEASURED,
        "relu": choose.INTERRUPTED,
        "leaky_relu": choose.INTERRUPTED,
        "prelu": choose.INTERRUPTED,
    }
    assert "2 of 5 were measured" in shown(choice, capsys)


def test_ctrl_c_within_a_measurement_stops_everything(monkeypatch):
    Fake(monkeypatch, numpy=0.006, numba=0.006)
    ticks = []

    def tick():
        ticks.append(1)
        if len(ticks) == 9:
            raise KeyboardInterrupt

    choice = choose.choose(cells(2), ALL, budget=60.0, tick=tick)
    assert choice.interrupted
    assert [finding.status for finding in choice.findings] == [choose.INTERRUPTED] * 2
    assert max(timed.rounds for timed in choice.findings[0].times.values()) == 9
    assert not choice.findings[1].times


def test_a_target_that_cannot_take_part_is_named_with_the_reason(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.006, numba=UnavailableError("no numba today"), torch=ZeroDivisionError("oh"))
    choice = choose.choose(cells(1), {**ALL, "torch": None, "torch-cuda": "no device"}, budget=20.0)
    (finding,) = choice.findings
    assert finding.verdict.fastest == "numpy"
    assert finding.absent == {"numba": "no numba today", "torch": "failed with ZeroDivisionError: oh"}
    out = shown(choice, capsys)
    for part in (
        "alone / 1.00",
        "no numba today",
        "failed with ZeroDivisionError",
        "torch-cuda: not measured: no CUDA device (no device)",
    ):
        assert part in " ".join(out.split())


def test_what_no_target_has_is_not_available(monkeypatch, capsys):
    Fake(monkeypatch, numpy=UnavailableError("not written yet"), numba=UnavailableError("not written yet"))
    choice = choose.choose(cells(1), ALL, budget=20.0)
    assert choice.findings[0].status == choose.UNAVAILABLE
    assert "(not available)" in shown(choice, capsys)


def test_a_target_without_the_dtype_is_unusable_for_it():
    assert "not bfloat16" in choose.usable_targets(["bfloat16"])["numpy"]
    assert choose.usable_targets(["float32"])["numpy"] is None


def test_the_table_fits_eighty_columns(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.006, numba=0.006)
    names = ("batch_norm_inference", "residual_add", "xavier_uniform")
    planned = choose.plan(names, ["cache"], ["float32"])
    out = shown(choose.choose(planned, ALL, budget=10.0), capsys)
    assert max(map(len, out.splitlines())) <= 80
    assert "residual_add+relu" in out
    assert "batch_norm_inference" in out


def test_nothing_is_cut_at_eighty_columns_beside_the_longest_names(capsys):
    planned = choose.plan(list(catalog.OPERATIONS), ["cache"], ["float32"])
    findings = [choose.Finding(workload, status=choose.INTERRUPTED) for workload in planned]
    choice = choose.Choice(findings, dict(ALL), 1.0, True, None)
    out = shown(choice, capsys)
    assert out.count("(interrupted)") == len(planned)
    assert "…" not in out


@pytest.mark.alone
def test_the_record_is_json_without_nan_or_infinity(monkeypatch):
    Fake(monkeypatch, numpy=0.03, numba=0.006)
    choice = choose.choose(cells(1), ALL, budget=20.0)
    record = json.loads(json.dumps(choice_record.record(choice, budget=20.0), allow_nan=False))
    (result,) = record["results"]
    assert result["fastest"] == "numba"
    assert result["numpy_over_first"]["median"] > 2
    assert result["numpy_over_first"]["high"] is None  # given up after the trial rounds
    assert result["backends"]["numba"]["rounds"] >= 8


def test_a_result_file_says_where_it_comes_from():
    head = machine.provenance("choose", ["choose", "--ops", "relu gelu"])
    assert head["schema"] == 1
    assert head["command"] == "gradmark choose --ops 'relu gelu'"
    assert head["versions"]["numpy"]
    assert head["machine"]["cores"] >= 1
    assert head["machine"]["cpu"]
    assert head["machine"]["vectors"] in (*processor.VECTOR_EXTENSIONS, None)
    assert head["commit"] is None or len(head["commit"]) == 40


def test_others_at_work_are_told_from_ourselves():
    if machine.other_cpu_seconds() is None:
        pytest.skip("this system does not tell")
    before = machine.other_cpu_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert machine.other_cpu_seconds() - before > 0.4


def test_a_machine_that_was_not_quiet_is_said_to_be(monkeypatch, capsys):
    Fake(monkeypatch, numpy=0.006, numba=0.006)
    choice = choose.choose(cells(1), ALL, budget=20.0)
    choice.others_cores = 0.0
    assert "NOT QUIET" not in shown(choice, capsys)
    choice.others_cores = 1.5
    assert "NOT QUIET: other processes kept 1.5 cores busy" in " ".join(shown(choice, capsys).split())


def test_the_real_workloads_of_one_operation_are_measured():
    targets = {"numpy": None}
    choice = choose.choose(choose.plan(["relu"], ["cache"], ["float32"]), targets, budget=20.0)
    assert [finding.status for finding in choice.findings] == [choose.MEASURED] * 2
    assert all(finding.bytes_moved > 0 for finding in choice.findings)
