"""What surrounds a check: one at a time, a scratch folder that goes with it, an orderly end on signals, the GPU."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from gradmark.tracking import one_at_a_time
from gradmark.tracking.check.repository import NotMeasurableError

_PREFIX = "gradmark-check-"
_OWNED = "owned"


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Two checks at a time would measure each other. The lock goes with the process, so none is ever left behind."""
    folder = Path(platformdirs.user_cache_dir("gradmark", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((folder / "check.lock").open("a+"))
        try:
            stack.enter_context(one_at_a_time.held(file))
        except one_at_a_time.HeldError as error:
            raise NotMeasurableError(
                f"another check is running ({str(error) or 'of another process'});"
                " two at a time would disturb each other: wait for it, or end it"
            ) from error
        yield


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder; what a killed check has left is removed as well."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_abandoned(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / _OWNED).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether the check that made it is gone: its lock went with it."""
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        with (folder / _OWNED).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True  # Half removed. One that is being made has no rival: `only_one` holds its lock before.
    except OSError:
        return False
    return True


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a check as Ctrl-C does: verdicts so far, nothing left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gpu_state() -> str | None:
    """Names, clocks, temperature and reasons for throttling of the GPUs, in nvidia-smi's words; None without it."""
    fields = "name,clocks.sm,clocks.mem,temperature.gpu,clocks_event_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else None
