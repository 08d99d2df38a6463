"""The controller's end of the worker processes: start, ask, stop, resume, and end them whatever they do."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gradmark.tracking.check.sides import Side

SCRIPT = Path(__file__).with_name("worker.py")
ASSEMBLY = Path(__file__).with_name("assembly.py")

IMPORT_TIMEOUT = 600.0
"""Seconds for importing a whole suite."""

_STOP_TIMEOUT = 1.0
_END_TIMEOUT = 30.0


class BenchmarkError(Exception):
    """A benchmark failed on one side: raised, crashed, was killed, or took too long. Costs that benchmark."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


class SkippedError(Exception):
    """A benchmark says that it cannot run here (asv's n/a)."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(reason)
        self.side = side


class WorkerLostError(Exception):
    """The process that holds the suite is gone, or could not import it."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


class Worker:
    """One process of one side, with the suite imported."""

    def __init__(self, side: Side, suite: Path, *, seed: int) -> None:
        """Start it; nothing is waited for.

        Parameters
        ----------
        suite : Path
            The folder of the benchmarks: the same for all sides.
        seed : int
            Of what differs from round to round: the seed of str hashes, and the size of the environment, which moves
            the stack (Mytkowicz, Diwan, Hauswirth, Sweeney, ASPLOS 2009). Both sides of a round get the same.
        """
        self.side = side
        draw = random.Random(seed)
        variables = {
            **side.env,
            "PYTHONHASHSEED": str(draw.randrange(2**32)),
            "GRADMARK_PADDING": "x" * draw.randrange(4096),
        }
        for folder in ("cache", "work"):
            (side.home / folder).mkdir(exist_ok=True)
        their_commands, self._commands = os.pipe()
        self._replies, their_replies = os.pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._pending = b""
        try:
            self._process = subprocess.Popen(
                [side.python, str(SCRIPT), str(their_commands), str(their_replies), str(suite)],
                cwd=side.home / "work", env=variables, stdin=subprocess.DEVNULL, stdout=self._output,
                stderr=subprocess.STDOUT, pass_fds=(their_commands, their_replies), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._close()
            raise WorkerLostError(side.name, f"{side.python} cannot be started: {error.strerror}") from error
        finally:
            os.close(their_commands)
            os.close(their_replies)
        self._children: set[int] = set()

    def start_import(self) -> None:
        """Begin importing the suite; `finish_import` waits for it."""
        self._send({"do": "import"})

    def finish_import(self) -> dict[str, str]:
        """The modules that could not be imported, each with its error."""
        broken: dict[str, str] = self._ask_suite(None)["broken"]
        return broken

    def discover(self) -> list[dict[str, Any]]:
        """What asv_runner finds in the suite, a dict a benchmark."""
        found: list[dict[str, Any]] = self._ask_suite({"do": "discover"})["benchmarks"]
        return found

    def origins(self, names: tuple[str, ...]) -> dict[str, list[str]]:
        """The places where this process imports these packages from."""
        found: dict[str, list[str]] = self._ask_suite({"do": "origins", "names": names})["origins"]
        return found

    def _ask_suite(self, command: dict[str, Any] | None) -> dict[str, Any]:
        if command is not None:
            self._send(command)
        reply = self._receive(IMPORT_TIMEOUT)
        if reply is None:
            raise WorkerLostError(self.side.name, f"importing the suite took more than {IMPORT_TIMEOUT:g} s")
        if "error" in reply:
            raise WorkerLostError(self.side.name, str(reply["error"]))
        return reply

    def start_open(self, identifier: str, cwd: Path, *, action: str = "open") -> None:
        """Have a child set a benchmark up; `Opened` waits for it."""
        self._send({"do": action, "id": identifier, "cwd": str(cwd)})

    def make_cache(self, identifier: str, cwd: Path, timeout: float) -> None:
        """Run a benchmark's setup_cache once; raises BenchmarkError."""
        self.start_open(identifier, cwd, action="setup_cache")
        opened = Opened(self, timeout)
        opened.expect("made")
        opened.finish()

    def end(self) -> None:
        """Kill it and everything that it has started."""
        for pid in self._children:
            _kill_group(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._commands, self._replies):
            os.close(descriptor)
        self._output.close()

    def _send(self, command: dict[str, Any]) -> None:
        try:
            os.write(self._commands, json.dumps(command).encode() + b"\n")
        except (BrokenPipeError, OSError) as error:
            raise WorkerLostError(self.side.name, self._last_words()) from error

    def _receive(self, timeout: float | None) -> dict[str, Any] | None:
        """The next reply; None where it does not come in time."""
        end = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._replies], [], [], left)[0]:
                return None
            data = os.read(self._replies, 1 << 16)
            if not data:
                raise WorkerLostError(self.side.name, self._last_words())
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            # A process that was killed while it wrote.
            raise WorkerLostError(self.side.name, "the worker process sent half a reply") from error
        return reply

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        ended = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return f"the worker process {ended}" + (f": {lines[-1]}" if lines else "")


class Opened:
    """A benchmark that a child process holds ready. The child is stopped whenever it has nothing to do."""

    def __init__(self, worker: Worker, timeout: float) -> None:
        """Wait until the child is there; `expect` then waits for its setup."""
        self._worker = worker
        self._side = worker.side.name
        self._timeout = timeout
        self._pid = 0
        self._core: int | None = None
        self._ended = False
        reply = self._reply()
        if "pid" not in reply:
            raise WorkerLostError(self._side, f"unexpected reply of the worker: {sorted(reply)}")
        self._pid = int(reply["pid"])
        worker._children.add(self._pid)

    def expect(self, key: str) -> dict[str, Any]:
        """The reply that has this key; anything else is an error of the benchmark."""
        reply = self._reply()
        if reply.get("skip"):
            self.kill()
            raise SkippedError(self._side, str(reply["skip"]))
        if key not in reply:
            self.kill()
            raise BenchmarkError(self._side, f"unexpected reply of the worker: {sorted(reply)}")
        return reply

    def ask(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        """Wake the child, let it do something, and stop it again."""
        self._signal(signal.SIGCONT)
        self._worker._send(request)
        reply = self.expect(key)
        self.stop()
        return reply

    def stop(self) -> None:
        """Freeze the child with all its threads: a pool that spins would slow the other side."""
        self._signal(signal.SIGSTOP)
        _wait_until_stopped(self._pid)

    def move_to(self, core: int) -> None:
        """Let the child's main thread run on this core only."""
        if core != self._core:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._pid, {core})
                self._core = core

    def close(self) -> None:
        """Have it run its teardown and end."""
        if self._ended:
            return
        self._signal(signal.SIGCONT)
        self._worker._send({"do": "close"})
        self.expect("closed")
        self.finish()

    def finish(self) -> None:
        """Wait for the end of a child that is about to end."""
        while not self._ended:
            reply = self._worker._receive(self._timeout)
            if reply is None:
                self.kill()
                return
            self._note_end(reply)

    def kill(self) -> None:
        """End the child at once; what it says any more is not listened to."""
        if self._ended:
            return
        _kill_group(self._pid)
        while not self._ended:
            reply = self._worker._receive(_END_TIMEOUT)
            if reply is None:
                raise WorkerLostError(self._side, "the worker process does not answer after its child was killed")
            self._note_end(reply)

    def _reply(self) -> dict[str, Any]:
        reply = self._worker._receive(self._timeout)
        if reply is None:
            message = f"timed out after {self._timeout:g} s"
            if not self._pid:
                raise WorkerLostError(self._side, message)
            self.kill()
            raise BenchmarkError(self._side, message)
        if "error" in reply:
            if not self._pid:
                raise WorkerLostError(self._side, str(reply["error"]))
            self.finish()
            raise BenchmarkError(self._side, str(reply["error"]))
        if self._note_end(reply):
            ended = reply["ended"]
            if "signal" in ended:
                raise BenchmarkError(self._side, _how_it_died(ended))
            early = " before it was done" if ended["code"] == 0 else ""
            raise BenchmarkError(self._side, f"ended with code {ended['code']}{early}{_quoted(ended['output'])}")
        return reply

    def _note_end(self, reply: dict[str, Any]) -> bool:
        if "ended" not in reply:
            return False
        self._ended = True
        self._worker._children.discard(self._pid)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, number)


def _how_it_died(ended: dict[str, Any]) -> str:
    number = ended["signal"]
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = " (out of memory, most likely)" if number == signal.SIGKILL else ""
    return f"killed by {name}{hint}{_quoted(ended['output'])}"


def _quoted(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _wait_until_stopped(pid: int) -> None:
    """SIGSTOP takes effect a moment after it is sent; without /proc that moment is not waited for."""
    if not sys.platform.startswith("linux"):
        return
    path = f"/proc/{pid}/stat"
    end = time.monotonic() + _STOP_TIMEOUT
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (called between bursts: no Path is made)
                state = file.read().rpartition(b")")[2].split()[0]
        except (OSError, IndexError):
            return
        if state in (b"T", b"t", b"Z", b"X"):
            return
        time.sleep(20e-6)


def _kill_group(pgid: int) -> None:
    if pgid <= 0:
        raise ValueError(f"no process group {pgid}")  # 0 would be our own
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)
