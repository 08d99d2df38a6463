"""Results of a check in asv's own files, read back by `asv compare` and `asv publish` themselves."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from asv.results import Results, iter_results_for_machine

from gradmark.tracking.check.asv_results import write_asv_results
from gradmark.tracking.check.results import Comparison, Report, Revision, Unavailable

MACHINE = "tiny"
ENVIRONMENT = "virtualenv-py3.11"
FACTS = {"os": "Linux", "arch": "x86_64", "cpu": "a CPU", "num_cpu": "2", "ram": "8000000"}


def benchmark(name, params=(), version="1", kind="time", unit="seconds"):
    return {
        "name": name,
        "params": [list(values) for values in params],
        "param_names": [f"p{i}" for i in range(len(params))],
        "version": version,
        "type": kind,
        "unit": unit,
        "code": "",
        "timeout": 60.0,
    }


BENCHMARKS = {
    found["name"]: found
    for found in (
        benchmark("suite.time_plain"),
        benchmark("suite.time_params", (("'a'", "'b'"), ("1", "2"))),
        benchmark("suite.time_broken"),
        benchmark("suite.time_missing"),
        benchmark("suite.peakmem_x", kind="peakmemory", unit="bytes"),
    )
}


def case(name, params, base, head, verdict="same", **more):
    return Comparison(name, params, "serial", verdict, base=base, head=head, rounds=9, **more)


def report(commits):
    base, head = commits
    return Report(
        project="tiny",
        base=Revision("main~1", base),
        head=Revision("main", head),
        suite="head",
        threshold=0.03,
        confidence=0.99,
        comparisons=(
            case("suite.time_plain", (), 1e-3, 2e-3, "slower"),
            case("suite.time_params", ("'a'", "1"), 1e-6, 1e-6),
            case("suite.time_params", ("'b'", "2"), 4e-6, 3e-6, "faster"),
            case("suite.time_broken", (), 1e-3, None, "failed", side="head", reason="ValueError: x"),
            case("suite.peakmem_x", (), 2e8, 2e8),
        ),
        unavailable=(Unavailable("suite.time_missing", (), "no CUDA"),),
    )


def write(project, side="head", **more):
    folder, commits = project
    given = {
        "machine": MACHINE,
        "machine_facts": FACTS,
        "python": "3.11",
        "env_name": ENVIRONMENT,
        "requirements": {"numpy": "2.4.6"},
        "report": report(commits),
        "commit_date_ms": 1_700_000_000_000,
        "benchmarks": BENCHMARKS,
    }
    return write_asv_results(folder / "results", side=side, **{**given, **more})


def run(folder, *command):
    names = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    environment = {**os.environ, **names, "HOME": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """A git repository of two commits with an asv.conf.json, and the two hashes."""
    conf = {
        "version": 1,
        "project": "tiny",
        "repo": ".",
        "branches": ["main"],
        "environment_type": "virtualenv",
        "benchmark_dir": "benchmarks",
        "results_dir": "results",
        "html_dir": "html",
        # A relative file name in `repo` is cloned; this keeps it below the temporary folder.
        "env_dir": "env",
    }
    (tmp_path / "asv.conf.json").write_text(json.dumps(conf))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    run(tmp_path, "git", "init", "--quiet", "--initial-branch=main")
    commits = []
    for message in ("First", "Second"):
        (tmp_path / "file").write_text(message)
        run(tmp_path, "git", "add", "file", "asv.conf.json", "benchmarks")
        run(tmp_path, "git", "commit", "--quiet", "--message", message)
        commits.append(run(tmp_path, "git", "rev-parse", "HEAD").strip())
    return tmp_path, tuple(commits)


def rows(text):
    """What `asv compare` printed, by benchmark: change, before, after, ratio."""
    cells = ([cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "suite." in line)
    return {row[-1]: row[:-1] for row in cells}


def test_asv_compare_reads_both_sides(project):
    folder, commits = project
    for side in ("base", "head"):
        assert write(project, side).is_file()
    found = rows(run(folder, sys.executable, "-m", "asv", "compare", *commits))
    assert found["suite.time_plain"] == ["+", "1.00ms", "2.00ms", "2.00"]
    assert found["suite.time_params('b', 2)"][0] == "-"
    assert found["suite.time_params('b', 2)"][-1] == "0.75"
    assert found["suite.time_params('a', 1)"][-1] == "1.00"
    assert found["suite.time_params('a', 2)"][-1] == "n/a"
    assert found["suite.time_broken"][0] == "!"
    assert "failed" in found["suite.time_broken"]
    assert found["suite.time_missing"][-1] == "n/a"
    assert "200M" in found["suite.peakmem_x"]


def test_asv_publish_reads_them(project):
    folder, _ = project
    for side in ("base", "head"):
        write(project, side)
    run(folder, sys.executable, "-m", "asv", "publish", "--no-pull")
    index = json.loads((folder / "html" / "index.json").read_text())
    assert set(index["benchmarks"]) == set(BENCHMARKS)
    assert index["machines"][MACHINE]["cpu"] == "a CPU"
    (graph,) = (folder / "html" / "graphs" / "summary").glob("suite.time_plain.json")
    assert [value for _, value in json.loads(graph.read_text())] == [1e-3, 2e-3]


def load(path):
    return Results.load(str(path), machine_name=MACHINE)


def test_what_asv_has_measured_already_stays(project):
    _, commits = project
    path = write(project)
    data = json.loads(path.read_text())
    columns = data["result_columns"]
    params = [["'a'", "'b'"], ["1", "2"]]
    old = {"result": [1.0, 2.0, 3.0, 4.0], "params": params, "version": "1", "samples": [[1.0], [2.0], [3.0], [4.0]]}
    data["results"]["suite.time_params"] = [old.get(column) for column in columns]
    data["results"]["other.time_x"] = [{"result": [7.0], "params": [], "version": "1"}.get(c) for c in columns]
    path.write_text(json.dumps(data))
    known = path.parent.parent / "benchmarks.json"
    listed = json.loads(known.read_text())
    known.write_text(json.dumps({**listed, "other.time_x": benchmark("other.time_x")}))

    assert write(project) == path
    merged = load(path)
    assert merged.commit_hash == commits[1]
    assert merged.get_result_value("other.time_x", []) == [7.0]
    assert merged.get_result_value("suite.time_params", params) == [1e-6, 2.0, 3.0, 3e-6]
    assert merged.get_result_samples("suite.time_params", params) == [None, [2.0], [3.0], None]
    assert merged.get_result_value("suite.time_plain", []) == [2e-3]
    assert set(json.loads(known.read_text())) == {*BENCHMARKS, "other.time_x", "version"}


def test_results_of_another_version_of_a_benchmark_are_not_mixed_with_ours(project):
    path = write(project)
    partial = replace(report(project[1]), comparisons=report(project[1]).comparisons[1:2])
    newer = {**BENCHMARKS, "suite.time_params": {**BENCHMARKS["suite.time_params"], "version": "2"}}
    write(project, report=partial, benchmarks=newer)
    values = load(path).get_result_value("suite.time_params", BENCHMARKS["suite.time_params"]["params"])
    assert values[0] == 1e-6
    assert all(math.isnan(value) for value in values[1:])


def test_failed_is_null_and_not_available_is_nan_as_asv_writes_them(project):
    sides = {side: load(write(project, side)) for side in ("base", "head")}
    assert sides["base"].get_result_value("suite.time_broken", []) == [1e-3]
    assert sides["head"].get_result_value("suite.time_broken", []) == [None]
    assert math.isnan(sides["head"].get_result_value("suite.time_missing", [])[0])
    failed = case("suite.time_plain", (), None, None, "failed", side="head", reason="x")
    only = replace(report(project[1]), comparisons=(failed,), unavailable=())
    # The base was never reached: that is no failure of the base.
    assert math.isnan(load(write(project, "base", report=only)).get_result_value("suite.time_plain", [])[0])


def test_a_machine_that_asv_knows_keeps_its_facts(project):
    folder, _ = project
    path = folder / "results" / MACHINE / "machine.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"machine": MACHINE, "cpu": "known", "version": 1}))
    assert write(project).is_file()
    assert json.loads(path.read_text()) == {"machine": MACHINE, "cpu": "known", "version": 1}
    (found,) = iter_results_for_machine(str(folder / "results"), MACHINE)
    assert found.params == {"machine": MACHINE, "cpu": "known", "python": "3.11", "numpy": "2.4.6"}


def test_uncommitted_changes_and_unknown_benchmarks_are_refused(project):
    folder, commits = project
    dirty = report(commits)
    dirty = replace(dirty, head=replace(dirty.head, uncommitted=True))
    with pytest.raises(ValueError, match="uncommitted"):
        write(project, report=dirty)
    with pytest.raises(ValueError, match=r"suite\.time_plain"):
        write(project, benchmarks={k: v for k, v in BENCHMARKS.items() if k != "suite.time_plain"})
    assert not (folder / "results").exists()


@pytest.mark.parametrize("content", ["{", '{"version": 99}', "{}"])
def test_a_file_that_cannot_be_read_is_an_error_and_stays(project, content):
    path = write(project)
    path.write_text(content)
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
        write(project)
    assert path.read_text() == content


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_costs_nothing_that_was_there(project, monkeypatch, written):
    path = write(project)
    folder = path.parent.parent
    before = {file: file.read_text() for file in folder.rglob("*.json")}
    dump, calls = json.dump, []

    def full(data, stream, **keywords):
        calls.append(data)
        if len(calls) <= written:
            return dump(data, stream, **keywords)
        stream.write("{half of ")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("asv.util.json.dump", full)
    with pytest.raises(OSError, match="No space left"):
        write(project)
    assert {file: file.read_text() for file in folder.rglob("*") if file.is_file()} == before
