"""One `gradmark choose` at a time: two would measure each other."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gradmark.tracking import one_at_a_time


class AnotherRunsError(RuntimeError):
    """Another `gradmark choose` is measuring, or may be; the message says which process, or why it cannot be told."""


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock, or raise AnotherRunsError. The system releases the lock of a process that dies.

    It lies in the folder for temporary files: a cache folder that cannot be written to must not keep anybody from
    measuring.
    """
    path = Path(tempfile.gettempdir()) / f"gradmark-choose-{os.getuid()}.lock"
    # Nobody else shall lead us to another file by a link of that name.
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AnotherRunsError(
            f"whether another `gradmark choose` is running cannot be told: {path} cannot be opened"
            f" ({error.strerror}); delete it, or set TMPDIR to a folder that can be written to"
        ) from error
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(os.fdopen(handle, "r+", encoding="ascii", errors="replace"))
        try:
            stack.enter_context(one_at_a_time.held(file))
        except one_at_a_time.HeldError as error:
            raise AnotherRunsError(
                f"another `gradmark choose` is running ({str(error) or 'another process'}), and timings would disturb"
                " each other: wait for it, or end it"
            ) from error
        yield
