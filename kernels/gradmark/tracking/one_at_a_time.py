"""A lock file that tells who holds it: what would disturb each other's timings runs one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import TextIO


class HeldError(RuntimeError):
    """Another process holds the lock; the message is what it has written there, "" where that is nothing."""


@contextlib.contextmanager
def held(file: TextIO) -> Iterator[None]:
    """Hold the lock of a file that is open for reading and writing, or raise HeldError.

    The system releases the lock of a process that dies, so none is ever left behind.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise HeldError(file.read(100).strip()) from error
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
    try:
        yield
    finally:
        file.truncate(0)
