"""The sweep over all inputs: its reference, its points, how it counts errors, and the command."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
from benchmarks import _evidence, readme_tables
from benchmarks.accuracy import _DRAWN

import gradmark
from gradmark import catalog, reference
from gradmark.catalog import ACTIVATIONS, BACKWARD, FORWARD
from gradmark.families import families
from gradmark.verification import sweep, wide
from gradmark.verification.activations import parameter_sets

ROOT = Path(__file__).resolve().parent.parent

ROWS = pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)

# Of the value: what a few roundings of 64 bits leave, and a thousandth of an ULP of float32.
AGREEMENT = {"float64": 2.0**-58, "float32": 2.0**-34}


def test_every_activation_has_a_wide_reference():
    assert list(wide.REFERENCES) == [row.name for row in ACTIVATIONS]


@ROWS
@pytest.mark.parametrize("dtype", AGREEMENT)
def test_the_wide_reference_agrees_with_the_formula(row, dtype):
    # Values far below the smallest subnormal round to 0 whatever they are; a zero of f' is judged on f's scale.
    smallest = mpmath.ldexp(1, reference.SMALLEST_EXPONENT[dtype] - reference.MANTISSA_BITS[dtype] - 8)
    for parameters in parameter_sets(row):
        given = sweep.rounded(parameters, dtype)
        for family in families(row, dtype):
            x = family.values.astype(dtype)
            forward = wide.evaluate(row, FORWARD, x, given)
            backward = wide.evaluate(row, BACKWARD, x, given)
            for at, value, slope in zip(x, forward, backward, strict=True):
                where = f"{row.name} at {at!r} with {given}"
                agree(value, reference.forward(row, float(at), given), smallest, dtype, where)
                agree(slope, reference.derivative(row, float(at), given), mpmath.mpf(1) / 32, dtype, f"{where}, slope")


def agree(found, exact, floor, dtype, where):
    if mpmath.isnan(exact):
        assert np.isnan(found), where
        return
    beyond = abs(exact) >= mpmath.ldexp(1, 2 - reference.SMALLEST_EXPONENT[dtype])
    if beyond and np.isinf(found):
        assert np.sign(found) == mpmath.sign(exact), where
        return
    with mpmath.workprec(300):
        error = float(abs(wide.exactly(found) - exact) / max(abs(exact), floor))
    assert error < AGREEMENT[dtype], f"{where}: {found!r} instead of {mpmath.nstr(exact, 20)}"


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("row", [row for row in ACTIVATIONS if row.signed_zero], ids=lambda row: row.name)
def test_the_wide_reference_keeps_the_sign_of_zero(row, dtype):
    # Of as many as a vector has: np.minimum(-0.0, 0) is another zero there than alone.
    zeros = np.repeat(np.array([0.0, -0.0], dtype), 32)
    values = wide.evaluate(row, FORWARD, zeros, sweep.rounded(parameter_sets(row)[0], dtype))
    if (values == 0).all():
        assert np.array_equal(np.signbit(values), np.signbit(zeros))


def drawn_parameters(row, rng):
    """Parameters within what the row accepts, spread over orders of magnitude."""
    while True:
        sizes = 10.0 ** rng.uniform(-2.0, 1.5, len(row.parameters))
        signs = [rng.choice([1.0, -1.0]) if p.name in SIGNED else 1.0 for p in row.parameters]
        values = tuple(float(a * b) for a, b in zip(sizes, signs, strict=True))
        if row.unmet(values) is None:
            return values


SIGNED = ("lower", "min_val", "value", "negative_slope", "weight")


@pytest.mark.parametrize("row", [row for row in ACTIVATIONS if row.parameters], ids=lambda row: row.name)
def test_bars_hold_at_any_parameters(row):
    """Not only at the samples of the catalog, on which the backends were built."""
    rng = np.random.default_rng(20261125)
    for _ in range(6):
        parameters = drawn_parameters(row, rng)
        for dtype, which, stride in (
            ("float32", FORWARD, 2**15),
            ("float64", FORWARD, 2**15),
            ("float32", BACKWARD, 2**9),
        ):
            thin = sweep.Job(row.name, which, dtype, parameters, ("numpy", "numba"), stride)
            for piece in sweep.pieces(thin):
                for name, tally in sweep.judge(piece).items():
                    allowed = row.ulp[which] + sweep.RESOLUTION[dtype]
                    assert tally.worst <= allowed, (name, which, dtype, parameters, tally.where)
                    assert (tally.nan, tally.inf) == (0, 0), (name, which, dtype, parameters)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="accepted: float32, float64"):
        wide.wide("float16")


# --- points -----------------------------------------------------------------------------------------------------------


def job(operation="gelu", which=FORWARD, dtype="float32", stride=1, backends=("numpy",)):
    return sweep.jobs(catalog.operation(operation), which, dtype, backends, stride=stride)[0]


def test_a_forward_pass_in_float32_meets_every_bit_pattern_once():
    pieces = list(sweep.pieces(job()))
    assert job().exhaustive
    assert sum(piece.count for piece in pieces) == 2**32
    starts = [0, *np.cumsum([piece.count for piece in pieces])]
    for piece, start in (pieces[0], starts[0]), (pieces[700], starts[700]), (pieces[-1], starts[-2]):
        (region,) = sweep.regions(piece.job)
        patterns = region.at(piece.start, piece.count).view(np.uint32)
        assert np.array_equal(patterns, np.arange(start, start + piece.count, dtype=np.uint64).astype(np.uint32))


@pytest.mark.parametrize(("which", "dtype"), [(BACKWARD, "float32"), (FORWARD, "float64"), (BACKWARD, "float64")])
def test_the_other_sweeps_have_more_than_a_hundred_million_points(which, dtype):
    assert sum(piece.count for piece in sweep.pieces(job("gelu", which, dtype))) >= 10**8
    assert not job("gelu", which, dtype).exhaustive


def test_a_stride_thins_every_region_and_keeps_all_low_bits():
    thin = job("gelu", BACKWARD, "float32", stride=2**10)
    whole = sweep.regions(job("gelu", BACKWARD, "float32"))
    for few, many in zip(sweep.regions(thin), whole, strict=True):
        assert few.size == pytest.approx(many.size / 2**10, rel=0.02, abs=1)
    patterns = sweep.regions(job(stride=4))[0].at(0, 1024).view(np.uint32)
    assert set(patterns & 1) == {0, 1}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_regions_hold_the_tails_and_the_zeros_of_the_derivative(dtype):
    found = {region.name: region for region in sweep.spread_regions(job("gelu", BACKWARD, dtype))}
    tails = found["tails"].at(0, 10_000)
    assert (tails.min() < -13.0 and tails.max() < -12.0) if dtype == "float32" else tails.max() < -36.0
    around = found["surroundings"].at(0, 10_000)
    for centre in (0.0, -0.7517915246):
        assert np.abs(around - centre).min() < 1e-7
    kinked = {region.name: region for region in sweep.spread_regions(job("hard_swish", BACKWARD, dtype))}
    for centre in (-3.0, 3.0, -1.5):
        assert np.abs(kinked["surroundings"].at(0, 10_000) - centre).min() < 1e-7


def test_parameters_beside_the_usual_ones_get_fewer_points():
    row = catalog.operation("celu")
    usual, *others = sweep.jobs(row, FORWARD, "float32", ["numpy"])
    assert [one.parameters for one in (usual, *others)] == parameter_sets(row)
    assert {one.stride for one in others} == {sweep.SAMPLE_SHARE}
    assert not any(one.exhaustive for one in others)


# --- errors -----------------------------------------------------------------------------------------------------------


def errors(found, exact, grad=None, dtype="float32"):
    m = wide.wide(dtype)
    return sweep.errors_in_ulp(
        np.array(found, dtype=dtype),
        np.array(exact, dtype=m.real),
        None if grad is None else np.array(grad, dtype=dtype),
        dtype,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_count_in_ulp_of_the_exact_value(dtype):
    real = np.dtype(dtype).type
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    found = [1 + 3 * eps, 2.0, -1.5, tiny, 3 * tiny * eps]
    exact = [1.0, np.nextafter(real(2), real(0)), -1.5, 0.0, tiny * eps]
    counted, nan, inf = errors(found, exact, dtype=dtype)
    # Just below 2 an ULP is half of that above; below the smallest normal number it is that number's.
    assert list(counted) == [3.0, 1.0, 0.0, 1 / eps, 2.0]
    assert (nan, inf) == (0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_is_judged_on_the_scale_of_the_incoming_one(dtype):
    eps = np.finfo(dtype).eps
    counted, _, _ = errors([eps, 1 + eps], [0.0, 1.0], [64.0, 64.0], dtype=dtype)
    assert list(counted) == [1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_are_counted(dtype):
    largest, inf = np.finfo(dtype).max, np.inf
    found = [np.nan, np.nan, 1.0, inf, -inf, largest, inf, largest, inf]
    exact = [np.nan, 1.0, np.nan, inf, inf, inf, largest, largest, 1.0]
    counted, nans, infs = errors(found, exact, dtype=dtype)
    assert list(counted[:4]) == [0.0, np.inf, np.inf, 0.0]
    assert counted[4] > 1e6
    assert list(counted[5:8]) == [1.0, 1.0, 0.0]
    assert counted[8] > 1e6
    assert (nans, infs) == (2, 3)


def test_overflow_in_the_wide_format_is_an_infinity_as_well():
    counted, nans, infs = errors([np.inf, np.finfo("float32").max], [1e300, 1e300])
    assert list(counted) == [0.0, 1.0]
    assert (nans, infs) == (0, 1)


def planted(monkeypatch, spoil, operation="gelu"):
    """The sweep judges the NumPy backend with something spoilt in its results."""
    import gradmark

    honest = gradmark.backend("numpy")

    def function(*arguments):
        result = getattr(honest, operation)(*arguments)
        spoil(arguments[0], result)
        return result

    monkeypatch.setattr(sweep, "backend", lambda name: SimpleNamespace(**{operation: function}))


def test_a_planted_error_is_found_and_placed(monkeypatch):
    def spoil(x, result):
        at = np.flatnonzero(x == np.float32(0.3))
        result[at] += 5000 * np.spacing(result[at])

    planted(monkeypatch, spoil)
    pattern = int(np.array(0.3, np.float32).view(np.uint32))
    start = pattern - pattern % sweep.PIECE["float32"]
    tally = sweep.judge(sweep.Piece(job(), 0, start, sweep.PIECE["float32"]))["numpy"]
    assert tally.points == sweep.PIECE["float32"]
    assert tally.worst == pytest.approx(5000, abs=10)
    assert tally.where["x"] == "0.3"
    assert (tally.nan, tally.inf, tally.sign) == (0, 0, 0)


def test_planted_nans_and_signs_are_counted(monkeypatch):
    def spoil(x, result):
        result[:3] = np.nan
        result[3:5] *= -1

    planted(monkeypatch, spoil)
    start = int(np.array(0.25, np.float32).view(np.uint32))
    tally = sweep.judge(sweep.Piece(job(), 0, start, 1000))["numpy"]
    assert (tally.nan, tally.sign) == (3, 2)
    assert tally.worst == np.inf


def test_tallies_add_up():
    one = sweep.Tally(points=10, worst=1.5, where={"x": "1"}, beyond=(3, 1, 0), nan=1)
    two = sweep.Tally(points=5, worst=2.5, where={"x": "2"}, beyond=(2, 2, 1), inf=1, sign=4)
    both = one + two
    assert both == two + one
    assert (both.points, both.worst, both.where, both.beyond) == (15, 2.5, {"x": "2"}, (5, 3, 1))
    assert (both.nan, both.inf, both.sign) == (1, 1, 4)


@pytest.mark.parametrize("which", [FORWARD, BACKWARD])
def test_the_reference_measures_its_own_error(which):
    for dtype in ("float32", "float64"):
        assert sweep.reference_error(job("gelu", which, dtype), 0, 60) < sweep.RESOLUTION[dtype]


def test_a_wrong_reference_would_be_noticed(monkeypatch):
    monkeypatch.setitem(wide.REFERENCES, "relu6", lambda m: (lambda x: x * 1.00001, np.ones_like))
    wide._function.cache_clear()
    try:
        assert sweep.reference_error(job("relu6"), 0, 60) > 10
    finally:
        wide._function.cache_clear()


def test_the_readme_says_what_failed_and_what_is_missing(tmp_path):
    one = {
        **{"operation": "gelu", "pass": "forward", "backend": "numpy", "dtype": "float32"},
        **{"worst": 3.14159, "allowed": 2.0, "passed": False, "points": 2**32, "exhaustive": True},
        "disagreements": {"nan": 0, "inf": 7, "sign": 2},
        **{"reference_error": 1e-6, "measured": {"commit": "0123456789abcdef", "uncommitted": True}},
    }
    two = {**one, "pass": "backward", "backend": "numba", "worst": 0.5, "passed": True, "exhaustive": False}
    two["disagreements"] = {"nan": 0, "inf": 0, "sign": 0}
    record = {
        **{"schema": 1, "kind": "accuracy", "command": "python -m benchmarks.accuracy", "created": "2026-01-01"},
        **{"commit": None, "uncommitted": None, "versions": {"python": "3.11"}},
        "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux"},
        "entries": [one, two],
    }
    (tmp_path / "accuracy.json").write_text(json.dumps(record))
    text = readme_tables.tables(tmp_path)
    assert "| gelu | forward | 2 | **3.14*; 2 wrong sign** | not yet measured |" in text
    assert "| gelu | backward | 2 | not yet measured | 0.5 |" in text
    assert "1 of 2 beyond what is allowed" in text
    assert "Measured at 0123456789 with uncommitted changes." in text


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.accuracy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_command_merges_its_results_and_resumes(tmp_path):
    file = str(tmp_path / "accuracy.json")
    options = ("--backend", "numpy", "--stride", "65536", "--json", file)
    first = run("--ops", "relu", *options)
    assert first.returncode == 0, first.stderr
    assert "relu" in first.stdout
    assert "4 entries" in first.stdout
    second = run("--ops", "relu,leaky_relu", "--passes", "forward", "--resume", *options)
    assert second.returncode == 0, second.stderr
    record = json.loads(Path(file).read_text())
    assert (record["schema"], record["kind"]) == (1, "accuracy")
    keys = [(e["operation"], e["pass"], e["dtype"]) for e in record["entries"]]
    assert keys == [
        *(("relu", which, dtype) for which in catalog.PASSES for dtype in ("float32", "float64")),
        *(("leaky_relu", FORWARD, dtype) for dtype in ("float32", "float64")),
    ]
    for entry in record["entries"]:
        assert entry["passed"]
        assert entry["worst"] <= entry["allowed"]
        assert not entry["exhaustive"]
        assert entry["reference_error"] < 1e-3
        # What the file had was not measured again.
        assert ("relu,leaky_relu" in entry["measured"]["command"]) == (entry["operation"] == "leaky_relu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ops", "gelu2"), "unknown operation 'gelu2'"),
        (("--backend", "torch"), "unknown backend 'torch'"),
        (("--dtype", "float16"), "unknown dtype 'float16'"),
        (("--stride", "0"), "give 1 (all points) to 4194304"),
        (("--stride", "4194305"), "give 1 (all points) to 4194304"),
        (("--resume",), "--resume needs --json"),
    ],
)
def test_wrong_arguments_are_said(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


QUICK = ("--passes", "forward", "--dtype", "float32", "--backend", "numpy")


def test_a_coarser_run_does_not_replace_a_finer_one(tmp_path):
    file = tmp_path / "accuracy.json"
    assert run("--ops", "relu", *QUICK, "--stride", "65536", "--json", str(file)).returncode == 0
    before = json.loads(file.read_text())["entries"]
    refused = run("--ops", "relu", *QUICK, "--stride", "1048576", "--json", str(file))
    assert refused.returncode == 2
    assert "it has 1 results of this code with a smaller stride (relu forward numpy float32, …)" in refused.stderr
    resumed = run("--ops", "relu", *QUICK, "--stride", "1048576", "--resume", "--json", str(file))
    assert resumed.returncode == 0
    assert json.loads(file.read_text())["entries"] == before
    finer = run("--ops", "relu", *QUICK, "--stride", "32768", "--json", str(file))
    assert finer.returncode == 0
    assert json.loads(file.read_text())["entries"][0]["stride"] == 32768


def _record(entries):
    return {"schema": 1, "kind": "test", "entries": list(entries.values())}


def _key(entry):
    return (entry["name"],)


def test_two_runs_on_one_file_keep_both_results(tmp_path):
    file = str(tmp_path / "found.json")
    first, second = (_evidence.Growing(file, "test", _key) for _ in range(2))
    first.add([{"name": "a", "value": 1}], _record)
    second.add([{"name": "b", "value": 2}], _record)
    first.add([{"name": "c", "value": 3}], _record)
    assert set(_evidence.read(file, "test", _key)) == {("a",), ("b",), ("c",)}
    assert set(first.entries) == {("a",), ("b",), ("c",)}
    assert list(tmp_path.iterdir()) == [tmp_path / "found.json"]


def test_what_cannot_be_written_is_printed_nevertheless(tmp_path, monkeypatch, capsys):
    file = str(tmp_path / "found.json")
    growing = _evidence.Growing(file, "test", _key)
    growing.add([{"name": "a"}], _record)

    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    growing.add([{"name": "b"}], _record)
    assert growing.problem == f"--json {file}: No space left on device"
    assert "only printed" in capsys.readouterr().err
    assert set(growing.entries) == {("a",), ("b",)}
    assert set(_evidence.read(file, "test", _key)) == {("a",)}
    assert list(tmp_path.iterdir()) == [tmp_path / "found.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_only_a_regular_file_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("--ops", "relu", *QUICK, "--stride", "65536", "--json", str(pipe))
    assert done.returncode == 2
    assert "this is no regular file; give a file's name, or - for stdout" in done.stderr


def test_a_damaged_file_is_kept(tmp_path):
    file = tmp_path / "accuracy.json"
    assert run("--ops", "relu", *QUICK, "--stride", "65536", "--json", str(file)).returncode == 0
    record = json.loads(file.read_text())
    del record["entries"][0]["worst"]
    file.write_text(json.dumps(record))
    done = run("--ops", "elu", *QUICK, "--stride", "65536", "--json", str(file))
    assert done.returncode == 2
    assert "it is damaged, entries lack worst" in done.stderr
    assert json.loads(file.read_text()) == record


def test_a_file_of_another_kind_is_kept(tmp_path):
    file = tmp_path / "verify.json"
    file.write_text('{"schema": 1, "kind": "verify", "entries": []}')
    done = run("--ops", "relu", "--stride", "65536", "--json", str(file))
    assert done.returncode == 2
    assert "verify" in done.stderr
    assert json.loads(file.read_text())["kind"] == "verify"


def _workers(process):
    """The processes that multiprocessing has spawned for it, with all their starting behind them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == str(process.pid) and state != "Z" and b"spawn_main" in command:
            found.append(stat.parent)
    return found


def _until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the workers in /proc")
def test_a_stopped_command_takes_its_workers_along(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accuracy", "--ops", "relu", "--json", str(tmp_path / "found.json")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cores = len(os.sched_getaffinity(0))
    try:
        assert _until(lambda: len(_workers(process)) == cores, 60)
        time.sleep(2)
        workers = _workers(process)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted: what was finished is kept" in errors
    assert _until(lambda: not any(worker.exists() for worker in workers), 10)


# --- what an entry is about -------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_program(tmp_path):
    file = tmp_path / "module.py"

    def fingerprint(text: str) -> str:
        file.write_text(text)
        return _evidence.fingerprint(file)

    plain = fingerprint("A = 1\ndef f(x):\n    return x + A\n")
    assert plain == fingerprint('"""Doc."""\nA = 1  # one\n"""The A."""\ndef f(x):\n    "f."\n    return (x +\n A)\n')
    assert plain != fingerprint("A = 1\ndef f(x):\n    return A + x\n")
    assert plain != fingerprint("A = 1\ndef f(x, /):\n    return x + A\n")
    assert plain != fingerprint("A = '1'\ndef f(x):\n    return x + A\n")
    assert plain != fingerprint("A = 2\ndef f(x):\n    return x + A\n")


def test_what_is_swept_does_not_stand_on_random_numbers():
    """`accuracy._code` leaves their modules out."""
    folder = Path(gradmark.__file__).parent / "numerics"
    others = [file for file in folder.glob("*.py") if not file.name.startswith(_DRAWN)]
    assert others
    assert [file.name for file in others if re.search("philox|haar|blas", file.read_text())] == []
