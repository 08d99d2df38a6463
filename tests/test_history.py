"""asv from end to end: run two commits, publish, look at the page in a browser; and interrupt a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from published_page import open_browser

ROOT = Path(__file__).resolve().parent.parent
MACHINE = "tiny"


@pytest.fixture
def environment(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    # Compiled kernels stay where they are: HOME is asv's here, so that its machine file is not the user's.
    cache = os.environ.get("GRADMARK_CACHE_DIR") or platformdirs.user_cache_dir("gradmark", appauthor=False)
    names = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    return {**os.environ, **names, "HOME": str(home), "GRADMARK_CACHE_DIR": cache, "COLUMNS": "100"}


def _git(folder, environment, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _commit_all(folder, environment, message):
    _git(folder, environment, "add", "--all")
    _git(folder, environment, "commit", "--quiet", "--message", message)
    return _git(folder, environment, "rev-parse", "HEAD")


def _asv(folder, environment, *arguments):
    command = [sys.executable, "-m", "asv", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def history(tmp_path, environment):
    """A repository with this working tree as its first commit, and a second one."""
    folder = tmp_path / "history"
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in ("benchmarks", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("asv.conf.json", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    _git(folder, environment, "init", "--quiet", "--initial-branch=main")
    first = _commit_all(folder, environment, "First")
    (folder / "NOTES").write_text("A second commit.\n")
    second = _commit_all(folder, environment, "Second")
    _asv(folder, environment, "machine", "--yes", "--machine", MACHINE)
    return folder, (first, second)


def test_two_commits_run_publish_and_draw_a_graph_in_a_browser(history, environment, tmp_path):
    folder, commits = history
    for commit in commits:
        selection = ["--bench", r"activations\.Relu\.(time|track)_forward", "--bench", "track_last_level_cache"]
        arguments = ["--python=same", "--machine", MACHINE, "--set-commit-hash", commit, "--quick", *selection]
        _asv(folder, environment, "run", *arguments)
    results = [p for p in (folder / "benchmarks" / "results" / MACHINE).glob("*.json") if p.name != "machine.json"]
    assert len(results) == len(commits)
    for path in results:
        _check_results(json.loads(path.read_text()))
    _asv(folder, environment, "publish")
    cache = Path(platformdirs.user_cache_dir("gradmark-tests", appauthor=False))
    with open_browser(folder / ".asv" / "html", cache) as (page, address, errors):
        page.goto(address)
        page.wait_for_selector("#summarygrid-display:visible >> text=time_forward")
        grid = page.inner_text("#summarygrid-display")
        assert "Relu" in grid
        assert "track_last_level_cache" in grid
        page.goto(f"{address}#activations.Relu.time_forward")
        page.wait_for_selector("#main-graph canvas.flot-base")
        page.wait_for_function(f"({_DRAWN_PIXELS})() > 0")
        screenshot = os.environ.get("GRADMARK_SCREENSHOTS")
        if screenshot:
            page.screenshot(path=str(Path(screenshot) / "graph.png"))
        assert errors == []


_DRAWN_PIXELS = """() => {
    const canvas = document.querySelector('#main-graph canvas.flot-base');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] > 0 && Math.max(pixels[i], pixels[i + 1], pixels[i + 2])
            - Math.min(pixels[i], pixels[i + 1], pixels[i + 2]) > 60)
            colours.add(pixels.slice(i, i + 3).join());
    return colours.size;
}"""
"""Axes and grid lines are grey; a line of data has a colour."""


def _check_results(saved):
    columns = saved["result_columns"]
    row = dict(zip(columns, saved["results"]["activations.Relu.time_forward"], strict=False))
    targets, sizes = row["params"]
    by_case = dict(zip(((t, s) for t in targets for s in sizes), row["result"], strict=True))
    assert by_case["'numpy'", "'cache'"] > 0
    assert row["version"] == "1"


_SLOW_SUITE = """
import os
import time


def track_after():
    return 7


class Slow:
    params = [0, 1, 2, 3, 4, 5]
    version = "1"

    def track_slow(self, i):
        if i == 3:
            open(os.environ["MARKER"], "w").close()
            time.sleep(60)
        return i
"""


@pytest.fixture
def tiny_project(tmp_path, environment):
    folder = tmp_path / "project"
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "__init__.py").touch()
    (folder / "benchmarks" / "a_suite.py").write_text(_SLOW_SUITE)
    shutil.copy(ROOT / "benchmarks" / "asv_plugin.py", folder / "benchmarks")
    _git(folder, environment, "init", "--quiet", "--initial-branch=main")
    (folder / ".gitignore").write_text("results/\n")
    _commit_all(folder, environment, "Only")
    return folder


def _interrupted_run(folder, environment, tmp_path, launch_method, plugins):
    """Results that are on disk after SIGINT in the middle of a benchmark's fourth combination of six."""
    configuration = {
        "version": 1,
        "project": "tiny",
        "repo": ".",
        "branches": ["main"],
        "environment_type": "virtualenv",
        "launch_method": launch_method,
        "plugins": plugins,
    }
    (folder / "asv.conf.json").write_text(json.dumps(configuration))
    _asv(folder, environment, "machine", "--yes", "--machine", MACHINE)
    marker = tmp_path / "fourth-has-begun"
    command = [sys.executable, "-m", "asv", "run", "--python=same", "--machine", MACHINE, "--set-commit-hash", "main"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        run = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "MARKER": str(marker)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # A process started in the background of a shell ignores SIGINT, and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            _wait_for(marker, run, log)
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=120) == 1, log.read_text()
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
    files = [p for p in (folder / "results" / MACHINE).glob("*.json") if p.name != "machine.json"]
    if not files:
        return None
    saved = json.loads(files[0].read_text())
    return {name: dict(zip(saved["result_columns"], row, strict=False)) for name, row in saved["results"].items()}


def _wait_for(marker, run, log):
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("launch_method", ["forkserver", "spawn"])
def test_an_interrupted_run_keeps_what_was_measured(tiny_project, environment, tmp_path, launch_method):
    saved = _interrupted_run(tiny_project, environment, tmp_path, launch_method, [".benchmarks.asv_plugin"])
    assert saved is not None
    slow = saved["a_suite.Slow.track_slow"]
    assert slow["result"] == [0, 1, 2, None, None, None]
    # asv runs benchmarks in the order of their names: this one comes after Slow.
    assert "a_suite.track_after" not in saved


def test_asv_alone_keeps_nothing_of_an_interrupted_commit(tiny_project, environment, tmp_path):
    # The day that this fails, asv has learnt it and benchmarks/asv_plugin.py can go.
    assert _interrupted_run(tiny_project, environment, tmp_path, "forkserver", []) is None
