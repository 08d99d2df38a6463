"""The command `gradmark choose`: what it saves, shows and explains, and what it refuses."""

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gradmark import cli, profiles
from gradmark.tracking import choice_profile, choice_table, choice_text, choose, one_choose, sizes
from test_choose_sweep import GELU, choice_of, found

HEAD = {
    "created": "2026-01-02T03:04:05+00:00",
    "command": "gradmark choose",
    "commit": None,
    "machine": {"cpu": "A processor", "system": "Linux"},
    "versions": {"numpy": "2.4"},
}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path / "cache"))
    # Another worker keeps a core busy.
    monkeypatch.setattr(choice_table, "DISTURBING_CORES", math.inf)
    return tmp_path / "cache"


def run(capsys, *arguments):
    code = cli.main(["choose", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


# --- the profile


def test_what_is_measured_is_saved_shown_and_explained(capsys, cache):
    code, out, err = run(capsys, "--ops", "identity", "--sizes", "64,2^12", "--budget", "30s")
    assert code == 0
    assert "identity" in out
    assert "saved in" in err
    profile = profiles.load()
    measured = {
        decision.operation_pass: {point.elements for point in decision.points} for decision in profile.decisions
    }
    assert set(measured) == {"forward", "backward"}
    assert all(elements >= {64, 4096} for elements in measured.values())
    assert profile.backend("identity", "forward", "float32", 100) in ("numpy", "numba", "torch")

    code, out, _ = run(capsys, "--show")
    assert code == 0
    assert re.search(r"identity +forward +float32 +\S+ 2\^6", out)
    assert str(profiles.path_of(profile.key)) in out

    code, out, _ = run(capsys, "--explain", "identity", "5e3")
    words = " ".join(out.split())
    assert code == 0
    assert "2^12 elements, the nearest measured to 5e3" in words
    assert "rounds x calls" in words
    assert "Numba's compilation" in words
    assert "by `gradmark choose --ops identity --sizes '64,2^12' --budget 30s`" in words
    assert max(map(len, out.splitlines())) <= 80


def test_a_second_run_adds_to_the_profile_and_wins_where_both_have_measured(cache):
    key = profiles.Key.here()
    choice_profile.save(choice_of(found(64, "numpy"), found(4096, "numba")), HEAD, key)
    relu = dataclasses.replace(GELU, operation="relu")
    choice_profile.save(choice_of(found(4096, "torch"), found(64, "numpy", workload=relu)), HEAD, key)
    profile = profiles.load(key)
    assert profile.backend("gelu", "forward", "float32", 64) == "numpy"
    assert profile.backend("gelu", "forward", "float32", 4096) == "torch"
    assert profile.backend("relu", "forward", "float32", 64) == "numpy"
    evidence = choice_profile.evidence(key)
    assert [(one["operation"], one["elements"], one["fastest"]) for one in evidence] == [
        ("gelu", 64, "numpy"), ("gelu", 4096, "torch"), ("relu", 64, "numpy"),
    ]  # fmt: skip
    assert not profiles.stale()


def test_threads_have_profiles_of_their_own(cache):
    key = profiles.Key.here()
    other = dataclasses.replace(key, threads=key.threads + 1)
    choice_profile.save(choice_of(found(64, "numpy")), HEAD, other)
    assert profiles.load(key) is None
    assert profiles.load(other) is not None


def test_the_saved_profile_is_not_touched_where_that_is_asked_for(capsys, cache):
    code, _, err = run(capsys, "--ops", "identity", "--sizes", "64", "--budget", "20s", "--no-save")
    assert code == 0
    assert "saved" not in err
    assert not (cache / "profiles").exists()


def test_results_are_printed_where_they_cannot_be_saved(capsys, cache, tmp_path):
    cache.mkdir()
    (cache / "profiles").write_text("in the way", encoding="utf-8")
    code, out, err = run(capsys, "--ops", "identity", "--sizes", "64", "--budget", "20s")
    assert code == 0
    assert "identity" in out
    assert "not saved" in err
    assert str(cache / "profiles") in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_folder_loses_no_results(capsys, cache):
    cache.mkdir(mode=0o500)
    code, out, err = run(capsys, "--ops", "identity", "--sizes", "64", "--budget", "20s")
    assert (code, "identity" in out, "not saved" in err) == (0, True, True)


def test_an_interrupted_run_saves_what_it_has_measured(capsys, cache, monkeypatch):
    measured = choice_of(found(64, "numba"), choose.Finding(dataclasses.replace(GELU, size="256"), choose.INTERRUPTED))
    measured.interrupted = True
    monkeypatch.setattr(choose, "choose", lambda *_, **__: measured)
    code, _, err = run(capsys, "--ops", "gelu", "--sizes", "64,256", "--budget", "20s")
    assert code == 130
    assert "saved in" in err
    (decision,) = profiles.load().decisions
    assert [point.elements for point in decision.points] == [64]


@pytest.mark.parametrize("failure", [BrokenPipeError, KeyboardInterrupt])
def test_it_is_saved_before_it_is_printed(cache, monkeypatch, failure):
    def leave(*_):
        raise failure

    monkeypatch.setattr(choose, "choose", lambda *_, **__: choice_of(found(64, "numba")))
    monkeypatch.setattr("gradmark.choose_command._print", leave)
    with contextlib.suppress(failure):
        cli.main(["choose", "--ops", "gelu", "--sizes", "64", "--budget", "20s"])
    assert profiles.load() is not None


def test_results_that_cannot_be_written_are_printed_and_saved(capsys, cache, monkeypatch):
    monkeypatch.setattr(choose, "choose", lambda *_, **__: choice_of(found(64, "numba")))
    code, out, err = run(capsys, "--ops", "gelu", "--sizes", "64", "--budget", "20s", "--json", "/dev/full")
    assert code == 2
    assert "gelu" in out
    assert "No space left" in err
    assert profiles.load() is not None


def test_what_was_measured_beside_busy_processes_is_not_saved(capsys, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(cache))
    measured = choice_of(found(64, "numba"))
    measured.others_cores = 0.7
    monkeypatch.setattr(choose, "choose", lambda *_, **__: measured)
    code, out, err = run(capsys, "--ops", "gelu", "--sizes", "64", "--budget", "20s")
    assert (code, "gelu" in out) == (0, True)
    assert "not saved: other processes kept 0.7 cores busy" in " ".join(err.split())
    assert profiles.load() is None


def test_the_size_that_explains_a_call_is_the_one_that_serves_it():
    results = [{"elements": 2**16}, {"elements": 2**20}]
    # As 2^18, halfway between: the first.
    assert choice_text.nearest(results, 300_000) == results[0]
    assert choice_text.nearest(results, 600_000) == results[1]


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "gradmark evidence", "schema": 1},
        {"kind": "gradmark evidence", "schema": 1, "results": [{}]},
        {"kind": "gradmark evidence", "schema": 1, "results": {"a": 1}},
        [],
    ],
)
def test_damaged_evidence_is_said_and_put_aside(capsys, cache, monkeypatch, content):
    path = choice_profile.evidence_path(profiles.Key.here())
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    code, _, err = run(capsys, "--explain", "gelu", "64")
    assert code == 2
    assert "damaged" in err
    monkeypatch.setattr(choose, "choose", lambda *_, **__: choice_of(found(64, "numba")))
    assert run(capsys, "--ops", "gelu", "--sizes", "64", "--budget", "20s")[0] == 0
    assert path.with_name(f"{path.name}.corrupt").exists()
    assert run(capsys, "--explain", "gelu", "64")[0] == 0


def test_evidence_of_a_newer_gradmark_is_left_alone(capsys, cache, monkeypatch):
    path = choice_profile.evidence_path(profiles.Key.here())
    path.parent.mkdir(parents=True)
    newer = json.dumps({"kind": "gradmark evidence", "schema": 99})
    path.write_text(newer, encoding="utf-8")
    monkeypatch.setattr(choose, "choose", lambda *_, **__: choice_of(found(64, "numba")))
    _, _, err = run(capsys, "--ops", "gelu", "--sizes", "64", "--budget", "20s")
    assert "newer gradmark" in err
    assert path.read_text(encoding="utf-8") == newer


def test_a_lock_that_cannot_be_opened_is_said(capsys, cache, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"gradmark-choose-{os.getuid()}.lock").symlink_to("elsewhere")
    code, _, err = run(capsys, "--ops", "gelu", "--sizes", "64", "--budget", "20s")
    assert code == 3
    assert "cannot be opened" in err


def test_nothing_saved_says_how_to_get_it(capsys, cache):
    code, _, err = run(capsys, "--show")
    assert code == 2
    assert "run: gradmark choose" in err
    code, _, err = run(capsys, "--explain", "gelu", "1e6")
    assert code == 2
    assert "gradmark choose --ops gelu --dtype float32" in err


def test_stale_profiles_are_said(capsys, cache):
    key = profiles.Key.here()
    old = dataclasses.replace(key, versions={**key.versions, "numpy": "1.0"})
    choice_profile.save(choice_of(found(64, "numpy")), HEAD, old)
    code, out, _ = run(capsys, "--show")
    assert code == 2
    assert "not used" in out
    assert "numpy 1.0" in out


@pytest.mark.parametrize("what", ["profiles", "evidence"])
def test_a_damaged_file_is_said_and_put_aside_by_the_next_run(capsys, cache, what):
    key = profiles.Key.here()
    choice_profile.save(choice_of(found(64, "numpy")), HEAD, key)
    path = {"profiles": profiles.path_of(key), "evidence": choice_profile.evidence_path(key)}[what]
    path.write_text("{", encoding="utf-8")
    arguments = {"profiles": ("--show",), "evidence": ("--explain", "gelu", "64")}[what]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert str(path) in "".join(err.split("\n"))
    choice_profile.save(choice_of(found(64, "numpy")), HEAD, key)
    assert run(capsys, *arguments)[0] == 0
    assert path.with_name(path.name + ".corrupt").exists()


def test_evidence_of_a_newer_gradmark_is_refused(cache):
    path = choice_profile.evidence_path(profiles.Key.here())
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"kind": choice_profile.KIND, "schema": 99, "results": []}), encoding="utf-8")
    with pytest.raises(profiles.ProfileError, match="update gradmark"):
        choice_profile.evidence(profiles.Key.here())


def test_an_explanation_names_the_crossovers_beside_it(cache):
    key = profiles.Key.here()
    curve = [found(64, "numpy"), found(256, "numba", "numpy"), found(4096, "numba"), found(2**20, "torch")]
    choice_profile.save(choice_of(*curve), HEAD, key)
    text = " ".join(filter(None, (part for part in choice_text.explanation(choice_profile.evidence(key), 5000)
                                  if isinstance(part, str))))  # fmt: skip
    assert "gelu forward, float32, 2^12 elements, the nearest measured to 5e3: numba; numpy takes" in text
    assert "Crossover between 2^6 (numpy) and 2^12 elements (numba)." in text
    assert "Crossover between 2^12 (numba) and 2^20 elements (torch)." in text


# --- one at a time


def test_a_second_choose_says_that_another_is_running(capsys, cache):
    code = (
        "from gradmark.tracking.one_choose import only_one\n"
        "with only_one():\n    print('holds', flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "holds\n"
            code, out, err = run(capsys, "--ops", "identity", "--sizes", "64", "--no-save")
            assert (code, out) == (3, "")
            assert f"another `gradmark choose` is running (process {holder.pid})" in err
            assert run(capsys, "--show")[0] == 2  # Looking at what is saved disturbs nobody.
        finally:
            holder.kill()
    with one_choose.only_one():  # The lock went with the process that died.
        pass


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "1e6,huge"), "unknown size 'huge'; accepted: cache, memory, or numbers of elements"),
        (("--sizes", "3"), "accepted: 16 to 2^48"),
        (("--sizes", "2^48", "--ops", "gelu"), "GiB are free; at most 2^"),
        (("--dtype", "float32,int8"), "unknown dtype 'int8'; accepted: float16"),
        (("--threads", "100000"), "this process may use"),
        (("--plot", "x.pdf"), "must end in .png or .svg"),
        (("--plot", "/no/such/x.png"), "does not exist"),
        (("--explain", "gelo", "64"), "unknown operation 'gelo'; accepted"),
        (("--explain", "gelu", "x"), "unknown size 'x'"),
        (("--show", "--explain", "gelu", "64"), "give one of"),
        (("--commit", "abc"), "belong to --from-asv"),
        (("--from-asv", "/no/such"), "no results of asv"),
    ],
)
def test_wrong_use_is_said_before_anything_is_measured(capsys, cache, monkeypatch, arguments, said):
    monkeypatch.setattr(choose, "choose", lambda *_, **__: pytest.fail("it measured"))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_sizes_of_the_sweep_that_do_not_fit_are_left_out_and_said(capsys, cache, monkeypatch):
    monkeypatch.setattr(sizes, "free_memory", lambda: 2**28)
    planned = []
    monkeypatch.setattr(
        choose, "choose", lambda given, *_, **__: planned.extend(given) or choice_of(found(64, "numpy"))
    )
    code, _, err = run(capsys, "--ops", "identity", "--no-save")
    assert code == 0
    assert {workload.elements for workload in planned} == set(map(int, sizes.SWEEP)) - {2**22, 2**24}
    assert "left out: 2^24 elements of float32 need" in err


def test_a_device_that_is_not_there_is_said(capsys, cache):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    code, _, err = run(capsys, "--device", "cuda", "--ops", "gelu")
    assert code == 2
    assert "not measured: no CUDA device" in err


def test_threads_are_limited_for_all_libraries():
    probe = (
        "import sys; from gradmark import choose_command; choose_command._limit_threads(1)\n"
        "import gradmark, numba, torch; print(numba.get_num_threads(), torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


# --- from asv


@pytest.fixture
def asv_results(tmp_path):
    """Two commits on one machine, as `asv run` writes them."""
    results = pytest.importorskip("asv.results")
    from asv.machine import Machine
    from asv.runner import BenchmarkResult

    folder = tmp_path / "results"
    facts = Machine()
    facts.__dict__.update(machine="box", os="Linux", arch="x86_64", cpu="A processor", num_cpu="2", ram="8")
    facts.save(str(folder))
    params = [["'numpy'", "'numba'", "'torch'", "'torch-cuda'"], ["'cache'", "'memory'"]]
    benchmark = {"name": "activations.Gelu.time_forward", "version": "1", "params": params, "type": "time"}
    for commit, date, slower in (("a" * 40, 1_000, 1.0), ("b" * 40, 2_000, 3.0)):
        stored = results.Results({"machine": "box", "python": "3.11"}, {}, commit, date, "3.11", "env", {})
        values = [1e-3, 2e-1, 1e-4, 1e-2 * slower, 1.5e-4, 1e-2, np.nan, np.nan]
        samples = [None if np.isnan(v) else [v * (1 + 1e-3 * k) for k in range(20)] for v in values]
        # Of two values, the interval says next to nothing.
        samples[1] = [1e-1, 3e-1]
        row = BenchmarkResult(result=values, samples=samples, number=[5] * 8, errcode=0, stderr="", profile=None)
        stored.add_result(benchmark, row, record_samples=False)
        stored.save(str(folder))
    return folder


def test_what_asv_has_recorded_decides_too(capsys, cache, asv_results, tmp_path):
    file = tmp_path / "c.json"
    code, out, _ = run(capsys, "--from-asv", str(asv_results), "--commit", "aaaa", "--json", str(file))
    assert code == 0
    assert "commit aaaaaaaa on box" in out
    assert "not paired" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["from_asv"]["commit"] == "a" * 40
    small, large = record["results"]
    assert (small["elements"], small["fastest"], small["runner_up"]) == (2**16, "numba", "torch")
    assert small["runner_up_over_first"]["median"] == pytest.approx(1.5, rel=0.01)
    assert small["numpy_over_first"]["low"] > 9
    assert large["fastest"] is None
    assert set(large["leaders"]) == {"numba", "torch"}
    assert not (cache / "profiles").exists()


def test_the_newest_of_asvs_results_by_default(capsys, asv_results):
    code, out, _ = run(capsys, "--from-asv", str(asv_results))
    assert code == 0
    assert re.search(r"numba 2\^16 \| torch\s+2\^24", " ".join(out.split()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--commit", "cccc"), "no results of a commit 'cccc'; there are: aaaaaaaa (box), bbbbbbbb (box)"),
        (("--machine", "other"), "no results of a machine 'other'; there are: box"),
        (("--ops", "glu"), "hold no time of glu"),
    ],
)
def test_results_that_asv_has_not_list_those_that_it_has(capsys, asv_results, arguments, said):
    code, _, err = run(capsys, "--from-asv", str(asv_results), *arguments)
    assert code == 2
    assert said in err


def test_a_damaged_result_of_asv_is_no_traceback(capsys, asv_results):
    next((asv_results / "box").glob("a*.json")).write_text("{", encoding="utf-8")
    code, _, err = run(capsys, "--from-asv", str(asv_results))
    assert code == 2
    assert "cannot be read" in err
