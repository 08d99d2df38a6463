"""`gradmark check` as a user runs it: exit codes, streams, files, and what an end by a signal leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

import tiny_projects as tiny
from gradmark import cli

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

PACKAGE = """
def count(n):
    total = 0
    for number in range({times} * n):
        total += number
    return total


def add(n):
    return sum(range(n))
"""

SUITE = """
import random
import tiny

def time_count():
    tiny.count(5000)

def time_add():
    tiny.add(5000)

def track_nodes():
    return 7

def time_broken():
    raise ValueError("[bold]not a tag[/bold]")
"""


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    with tiny.apart(tmp_path_factory.mktemp("apart")) as folder:
        yield folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three commits: the base, one that is the same but for a comment, and one with a loop twice as long."""
    folder = tmp_path_factory.mktemp("project")
    first = {"tiny/__init__.py": PACKAGE.format(times=1), "benchmarks/bench.py": SUITE}
    same = {"tiny/__init__.py": PACKAGE.format(times=1) + "\n# A comment.\n"}
    commits = tiny.create(folder, first, same, {"tiny/__init__.py": PACKAGE.format(times=2)}, build=tiny.PIP)
    for name, commit in zip(("base", "same", "slow"), commits, strict=True):
        tiny.git(folder, "tag", name, commit)
    return folder


@pytest.fixture(scope="module")
def slower(project, tmp_path_factory):
    """The check of the slow commit, with all its outputs; whoever asks for it first measures, so all are `alone`."""
    files = tmp_path_factory.mktemp("outputs")
    before = tiny.state_of(project)
    process = tiny.start(
        project, "base", "slow", "--json", files / "out.json", "--markdown", files / "out.md",
        "--rounds", files / "rounds.jsonl", "--asv-results", "--all",
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    results = project / "results"
    written = sorted(path for path in results.rglob("*.json")) if results.is_dir() else []
    texts = {str(path.relative_to(results)): path.read_text() for path in written}
    shutil.rmtree(results, ignore_errors=True)
    return process.returncode, out, err, files, texts, before == tiny.state_of(project)


# --- a slowdown -----------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_slowdown_is_found_and_only_it(slower):
    code, _, err, files, _, _ = slower
    assert code == 1, err
    record = json.loads((files / "out.json").read_text())
    verdicts = {one["name"]: one["verdict"] for one in record["benchmarks"]}
    assert verdicts == {
        "bench.time_count": "slower", "bench.time_add": verdicts["bench.time_add"],
        "bench.track_nodes": "same", "bench.time_broken": "failed",
    }  # fmt: skip
    assert verdicts["bench.time_add"] in ("same", "undecided")
    count = next(one for one in record["benchmarks"] if one["name"] == "bench.time_count")
    assert 1.6 < count["low"] <= count["ratio"] <= count["high"] < 2.5


@pytest.mark.alone
def test_results_go_to_stdout_and_progress_to_stderr(slower):
    _, out, err, _, _, _ = slower
    assert "bench.time_count" in out
    assert "[bold]not a tag[/bold]" in out
    assert "screening" in err
    assert "screening" not in out
    assert "Traceback" not in err


@pytest.mark.alone
def test_files_that_options_name(slower):
    _, _, _, files, texts, _ = slower
    record = json.loads((files / "out.json").read_text())
    assert record["schema"] == 1 or record.get("version") == 1, sorted(record)
    assert "bench.time_count" in (files / "out.md").read_text().replace("\\", "").replace("&#95;", "_")
    lines = [json.loads(line) for line in (files / "rounds.jsonl").read_text().splitlines()]
    (count,) = [line for line in lines if line["name"] == "bench.time_count" and line["sides"] == ["base", "head"]]
    assert len(count["screening"]) == 10
    assert len(count["confirming"]) >= 16
    assert len([name for name in texts if name.endswith(".json") and "/" in name]) >= 2
    assert any("bench.time_count" in text for text in texts.values())


@pytest.mark.alone
def test_repository_stays_as_it_was(slower, scratch):
    assert slower[-1]
    assert not list(scratch.iterdir())
    assert not tiny.processes_below(scratch)


# --- usage: exit code 2, before anything is built -------------------------------------------------------------------


def in_process(folder, capsys, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    try:
        code = cli.main(["check", "-E", "existing", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-like-it"], "'nothing-like-it' is no revision of this repository"),
        (["base", "--worktree=yes"], "worktree"),
        (["base", "slow", "--worktree"], "--worktree and HEAD exclude each other"),
        (["base", "-b", "("], "no regular expression"),
        (["base", "--budget", "soon"], "'soon' is no duration"),
        (["base", "--threshold", "0"], "no threshold"),
        (["base", "--config", "other.json"], "there is no such file"),
        (["base", "--json", "/no/such/folder/x.json"], "/no/such/folder does not exist"),
        (["base", "-b", "no_such_benchmark"], "no benchmark matches -b no_such_benchmark"),
        (["base", "-E", "existing:/no/python"], "there is no program /no/python"),
    ],
)
def test_wrong_use(project, capsys, monkeypatch, scratch, arguments, message):
    code, out, err = in_process(project, capsys, monkeypatch, *arguments)
    assert code == 2, err
    assert message in " ".join(err.split())
    assert not out
    assert not list(scratch.iterdir())


def test_no_project(tmp_path, capsys, monkeypatch):
    code, _, err = in_process(tmp_path, capsys, monkeypatch)
    assert code == 2
    assert "is not in a git repository" in err


def test_missing_and_broken_configuration(tmp_path, capsys, monkeypatch):
    tiny.create(tmp_path / "p", {"asv.conf.json": '{"version": 1, "project": "tiny"'})
    code, _, err = in_process(tmp_path / "p", capsys, monkeypatch)
    assert code == 2
    assert "asv.conf.json" in err
    (tmp_path / "p" / "asv.conf.json").unlink()
    code, _, err = in_process(tmp_path / "p", capsys, monkeypatch)
    assert code == 2
    assert "no asv.conf.json in" in err


def test_build_that_fails(tmp_path, capsys, monkeypatch):
    broken = {"pyproject.toml": tiny.PYPROJECT.replace("hatchling.build", "hatchling.no_such_backend")}
    first = {"tiny/__init__.py": PACKAGE.format(times=1), "benchmarks/bench.py": SUITE}
    tiny.create(tmp_path / "p", first, broken, build=tiny.PIP)
    code, out, err = in_process(tmp_path / "p", capsys, monkeypatch, "HEAD~1")
    assert code == 3
    assert "building the head" in err
    assert "no_such_backend" in err
    assert not out


def test_same_commit_and_dirty_tree_are_said(tmp_path, capsys, monkeypatch):
    first = {"tiny/__init__.py": PACKAGE.format(times=1), "benchmarks/bench.py": "def track_it():\n    return 1\n"}
    tiny.create(tmp_path / "p", first)
    tiny.write(tmp_path / "p", {"new.txt": "untracked"})
    with tiny.quick():
        code, _, err = in_process(tmp_path / "p", capsys, monkeypatch)
    assert code == 0
    assert "uncommitted changes are not measured; --worktree includes them" in err
    assert "base and head are the same commit" in err


# --- signals --------------------------------------------------------------------------------------------------------

LONG = """
import tiny

def track_first():
    return 1

def time_count():
    tiny.count(2_000_000)

def time_add():
    tiny.add(5_000_000)
"""


@pytest.fixture(scope="module")
def long_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    first = {"tiny/__init__.py": PACKAGE.format(times=1), "benchmarks/bench.py": LONG}
    tiny.create(folder, first, {"tiny/__init__.py": PACKAGE.format(times=2)})
    return folder


def wait_for(process, text):
    """Read its stderr up to a line that begins so."""
    for line in process.stderr:
        if line.startswith(text):
            return
    pytest.fail(f"{text!r} was never said")


def wait_until_gone(scratch):
    end = time.monotonic() + 5
    while tiny.processes_below(scratch) and time.monotonic() < end:
        time.sleep(0.05)
    return not tiny.processes_below(scratch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(long_project, scratch, number):
    before = tiny.state_of(long_project)
    process = tiny.start(long_project, "HEAD~1", "--all")
    wait_for(process, "screening")
    second = None
    if number == signal.SIGTERM:
        second = tiny.start(long_project, "HEAD~1")
        refused = second.communicate(timeout=30)[1]
    time.sleep(2.0)
    assert process.poll() is None
    assert tiny.processes_below(scratch)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "bench.time_count" in out
    assert "interrupted" in out
    assert "Traceback" not in err
    assert not list(scratch.iterdir())
    assert wait_until_gone(scratch)
    assert tiny.state_of(long_project) == before
    if second is not None:
        assert second.returncode == 3
        assert f"another check is running (process {process.pid})" in refused


def test_kill_takes_the_workers_along_and_the_next_check_cleans_up(long_project, scratch):
    process = tiny.start(long_project, "HEAD~1")
    wait_for(process, "screening")
    time.sleep(0.5)
    assert tiny.processes_below(scratch)
    (left,) = scratch.glob("gradmark-check-*")
    process.kill()
    process.communicate(timeout=20)
    assert wait_until_gone(scratch)
    assert left.is_dir()
    following = tiny.start(long_project, "HEAD~1", "-b", "track_first")
    following.communicate(timeout=60)
    assert following.returncode == 0
    assert not left.exists()
    assert not list(scratch.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_disk_that_is_full(project, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    check = " ".join(tiny.command("base", "slow"))
    script = f"mount -t tmpfs -o size=40k tmpfs {small} && TMPDIR={small} exec {check}"
    done = subprocess.run([unshare, "-m", "sh", "-c", script], cwd=project, capture_output=True, text=True, timeout=60)
    if "mount" in done.stderr and "gradmark" not in done.stderr:
        pytest.skip(f"a tmpfs cannot be mounted: {done.stderr}")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
