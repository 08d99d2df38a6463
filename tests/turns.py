"""Turns of the workers of one run: a test marked `alone` runs while no other worker runs a test.

Readers and a writer over two file locks. Every test passes the turnstile into the room: ordinary ones share the room, a
test that is alone has it to itself. Who waits for the room holds the turnstile, so that nobody overtakes, and a test
that wants to be alone is not starved by those that come after it. The kernel releases the locks of a worker that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

LONGEST_FIRST = (
    "test_verification.py",
    "test_rowwise.py",
    "test_numerics.py",
    "test_nn_modules.py",
    "test_check_engine.py",
    "test_check_command.py",
    "test_stabilizers_batch_norm.py",
    "test_accuracy.py",
    "test_nn_sharded.py",
    "test_history.py",
    "test_workloads.py",
    "test_gated.py",
    "test_orthogonal.py",
    "test_dispatch.py",
    "test_stabilizers_residual.py",
    "test_philox.py",
    "test_check_kernels.py",
)
"""Files that take a minute or more, in the order in which the workers take them: a worker that begins with such a file
when the others are done is waited for. pytest-xdist would go by the number of tests."""


def folder_of_run(config):
    """A folder that the workers of this run share, and no other run; None where pytest-xdist distributes nothing.

    Not told from the environment: a pytest that a test starts inherits that, and would wait for the test to end.
    """
    if not hasattr(config, "workerinput"):
        return None
    return Path(config.option.basetemp).parent


@contextlib.contextmanager
def turn(folder, *, alone):
    """Wait for a turn, and hold it meanwhile."""
    with contextlib.ExitStack() as held:
        with _locked(folder / "turnstile", fcntl.LOCK_EX):
            held.enter_context(_locked(folder / "room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


@contextlib.contextmanager
def _locked(path, how):
    with path.open("a") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            # Closing is not enough where a test has forked: the child holds the file, and with it the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
