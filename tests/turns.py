"""Turns of the workers of one run: a test marked `alone` runs while no other worker runs a test.

Readers and a writer over two file locks. Every test passes the turnstile into the room: ordinary ones share the room, a
test that is alone has it to itself. Who waits for the room holds the turnstile, so that nobody overtakes, and a test
that wants to be alone is not starved by those that come after it. The kernel releases the locks of a worker that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path


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
