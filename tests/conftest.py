"""Hooks of pytest that all tests share."""

from __future__ import annotations

import os
import tempfile

import pytest

import turns

# Before NumPy and PyTorch start their threads, which otherwise wait busily for the next call, on the cores of the
# other workers: that took half of the time of all tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def pytest_configure(config):
    # In a plain run benchmarks only show that they run; `pytest --benchmark-only` times them.
    if not config.getoption("benchmark_only"):
        config.option.benchmark_disable = True
    config.option.loadscopereorder = False
    folder = turns.folder_of_run(config)
    if folder is not None:
        # Of two `gradmark choose` of one user at a time one is refused, by a lock in the folder for temporary files.
        own = folder / f"temporary-{config.workerinput['workerid']}"
        own.mkdir(exist_ok=True)
        os.environ["TMPDIR"], tempfile.tempdir = str(own), None


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(turns.LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True, scope="session")
def shipped_default():
    """Who serves a call of `gradmark.gelu` depends on no profile that this machine has, and on no variable."""
    from gradmark import dispatch

    dispatch.read_nothing()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    # Around all of it: what a test times is often run by a fixture of its module.
    folder = turns.folder_of_run(item.config)
    if folder is None:
        return (yield)
    with turns.turn(folder, alone=item.get_closest_marker("alone") is not None):
        return (yield)
