"""A test marked `alone` has the machine to itself: small suites, distributed over two workers as the tests here are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import turns

TESTS = Path(__file__).resolve().parent

SUITE = """
import json, os, time
from pathlib import Path
import pytest

LOG = Path({log!r})


def spend(what, seconds):
    began = time.monotonic()
    time.sleep(seconds)
    with LOG.open("a") as log:
        log.write(json.dumps([os.environ["PYTEST_XDIST_WORKER"], what, began, time.monotonic()]) + "\\n")


@pytest.fixture(scope="module")
def measured():
    spend("alone", 0.3)


@pytest.mark.parametrize("number", range(6))
def test_before(number):
    spend("together", 0.1)


@pytest.mark.alone
def test_alone(measured):
    {alone}


@pytest.mark.parametrize("number", range(6))
def test_after(number):
    spend("together", 0.1)
"""


def run(folder, *alone):
    """One file for each of `alone`, the body of its marked test; gives what pytest ended with, and the log."""
    log = folder / "log"
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    for number, body in enumerate(alone):
        (folder / f"test_{number}.py").write_text(SUITE.format(log=str(log), alone=body))
    command = [sys.executable, "-m", "pytest", "-c", TESTS.parent / "pyproject.toml", "-p", "no:cacheprovider"]
    command += ["-n", "2", "--dist", "loadfile", "--basetemp", folder / "basetemp", folder]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done, [json.loads(line) for line in log.read_text().splitlines()]


def overlaps(one, other):
    return one[0] != other[0] and one[2] < other[3] and other[2] < one[3]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    done, log = run(tmp_path_factory.mktemp("suite"), "spend('alone', 0.1)", "spend('alone', 0.5)")
    assert done.returncode == 0, done.stdout + done.stderr
    return log


def test_nothing_runs_beside_a_test_that_is_alone(log):
    apart = [one for one in log if one[1] == "alone"]
    assert len(apart) == 4
    for one in apart:
        assert not [other for other in log if overlaps(one, other)]
    # The others do run side by side, or this would be true of any run.
    together = [one for one in log if one[1] == "together"]
    assert [one for one in together if any(overlaps(one, other) for other in together)]


def test_who_wants_to_be_alone_is_not_overtaken(log):
    for worker in {one[0] for one in log}:
        began = min(one[2] for one in log if one[0] == worker and one[1] == "alone")
        before = max(one[3] for one in log if one[0] == worker and one[3] <= began)
        # What the other worker does then ends, and the next one waits; at most one slips in before the turnstile.
        between = [one for one in log if one[0] != worker and one[1] == "together" and before < one[2] < began]
        assert len(between) <= 1


def test_a_worker_that_dies_gives_its_turn_back(tmp_path):
    # pytest-xdist runs it once more in another worker.
    dies = "LOG.with_name('died').exists() or (LOG.with_name('died').touch(), os._exit(1))"
    done, log = run(tmp_path, dies, "spend('alone', 0.1)")
    assert "crashed while running 'test_0.py::test_alone'" in done.stdout
    assert "1 failed, 26 passed" in done.stdout
    assert len([one for one in log if one[1] == "together"]) == 24


def test_without_workers_nobody_waits():
    assert turns.folder_of_run(SimpleNamespace(option=SimpleNamespace(basetemp="/somewhere/here"))) is None


def test_the_longest_files_are_there():
    assert [name for name in turns.LONGEST_FIRST if not (TESTS / name).is_file()] == []
