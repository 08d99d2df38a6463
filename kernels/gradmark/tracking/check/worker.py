"""The process that runs benchmarks of one side. Not imported: the measured environment's Python runs it as a script.

Only the standard library and asv_runner are here. The process imports the suite once, as asv's fork server does, and
forks a child for each benchmark: so what one benchmark leaves behind is not the next one's, and what crashes, hangs or
eats the memory costs one benchmark. asv_runner finds the benchmarks, reads their attributes, runs their setup and
teardown and makes their timers; what it does not have is a burst of a given length on request.

Commands and replies are lines of JSON on two file descriptors of their own, because benchmarks print. The controller
sends a command only after the reply to the one before, so that either process may read from the same descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import math
import os
import pickle
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OUTPUT_TAIL = 2000
"""Characters of what a failed benchmark printed that go to the controller."""

# Attributes of a benchmark that the controller needs; asv's names.
_FACTS = (
    "name", "type", "unit", "params", "param_names", "version", "timeout", "number", "setup_cache_key",
    "setup_cache_timeout", "pretty_name", "code", "rounds", "repeat", "min_run_count", "sample_time", "warmup_time",
    "higher_is_better",
)  # fmt: skip


_FOR_A_CHILD = ("burst", "value", "kernels", "close")


def main() -> None:
    """Serve commands until the controller closes its end or is gone."""
    commands, replies, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _leave_our_folder()
    _die_with_parent()
    channel = _Channel(commands, replies)
    suite = _Suite(root)
    while True:
        command = channel.receive()
        if command is None:
            return
        action = command.pop("do")
        if action == "import":
            channel.send(_guarded(suite.load))
        elif action == "discover":
            channel.send(_guarded(suite.discover))
        elif action == "origins":
            channel.send(_guarded(lambda names=command["names"]: _origins(names)))
        elif action in ("open", "setup_cache"):
            channel.send({"ended": _in_child(channel, suite, action, command)})
        elif action in _FOR_A_CHILD:
            pass  # It died before it could read this; the controller has been told so.
        else:
            channel.send({"error": f"unknown command {action!r}"})


def _leave_our_folder() -> None:
    """Python puts a script's folder first on the path: `import markdown` would find ours, not the project's."""
    here = os.path.realpath(Path(__file__).parent)
    sys.path[:] = [place for place in sys.path if os.path.realpath(place) != here]


class _Channel:
    def __init__(self, commands: Any, replies: Any) -> None:
        self._commands = commands
        self._replies = replies

    def receive(self) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            # A byte at a time: what lies behind the newline may be for another process.
            byte = os.read(self._commands, 1)
            if not byte:
                return None
            line += byte
        return json.loads(line)

    def send(self, reply: Any) -> None:
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(self._replies, data) :]


class _Suite:
    """The benchmarks below `root`, as asv_runner sees them."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def load(self) -> Any:
        import asv_runner
        from asv_runner import _aux

        _aux.update_sys_path(self.root)
        broken: dict[str, str] = {}
        for _ in self._modules(broken):
            pass
        return {"broken": broken, "asv_runner": getattr(asv_runner, "__version__", None)}

    def discover(self) -> Any:
        from asv_runner import discovery

        broken: dict[str, str] = {}
        found: dict[str, Any] = {}
        for _ in self._modules(broken):
            pass
        for benchmark in discovery.disc_benchmarks(self.root, ignore_import_errors=True):
            facts = {key: getattr(benchmark, key, None) for key in _FACTS}
            facts["has_setup"] = bool(benchmark._setups)
            found.setdefault(benchmark.name, _json_safe(facts))
        return {"benchmarks": list(found.values()), "broken": broken}

    def _modules(self, broken: Any) -> Any:
        """Import all modules of the suite, one by one: one that fails must not hide the others."""
        pending = [Path(self.root).name]
        while pending:
            name = pending.pop(0)
            try:
                module = importlib.import_module(name)
            except BaseException as error:  # a suite may raise SystemExit
                if isinstance(error, KeyboardInterrupt):
                    raise
                broken[name] = _last_line(error)
                continue
            yield module
            pending += sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []), name + "."))


def _origins(names: Any) -> Any:
    """Where the project's own packages are imported from."""
    origins = {}
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        origins[name] = [place for place in places if place]
    return {"origins": origins}


# --- the child -------------------------------------------------------------------------------------------------------


def _in_child(channel: Any, suite: Any, action: Any, command: Any) -> Any:
    """Fork, let the child talk to the controller, and say how it ended."""
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setpgid(0, 0)  # so that the controller stops and kills it together with what it has started
                _die_with_parent()
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = _serve_benchmark(channel, suite, action, command)
                sys.stdout.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        _kill_group(pid)
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - _OUTPUT_TAIL))
        tail = output.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "output": tail}
    return {"code": os.WEXITSTATUS(status), "output": tail}


def _serve_benchmark(channel: Any, suite: Any, action: Any, command: Any) -> Any:
    channel.send({"pid": os.getpid()})
    try:
        os.chdir(command["cwd"])
        if action == "setup_cache":
            _make_cache(suite, command["id"])
            channel.send({"made": True})
            return 0
        opened = _Opened(suite, command["id"])
        channel.send({"skip": opened.skip_reason})
        if opened.skip_reason is not None:
            return 0
        while True:
            request = channel.receive()
            if request is None or request["do"] == "close":
                opened.close()
                channel.send({"closed": True})
                return 0
            channel.send(opened.serve(request))
    except BaseException as error:
        traceback.print_exc()
        channel.send({"error": _last_line(error), "not_implemented": isinstance(error, NotImplementedError)})
        return 1


def _make_cache(suite: Any, identifier: Any) -> None:
    from asv_runner import discovery

    cache = discovery.get_benchmark_from_name(suite.root, identifier).do_setup_cache()
    with Path("cache.pickle").open("wb") as file:
        pickle.dump(cache, file)


class _Opened:
    """One benchmark with one combination of parameters, after its setup."""

    def __init__(self, suite: Any, identifier: Any) -> None:
        from asv_runner import discovery
        from asv_runner.benchmarks import mark

        self._skip_error = mark.SkipNotImplemented
        self.skip_reason = None
        self.benchmark = discovery.get_benchmark_from_name(suite.root, identifier)
        if self.benchmark.setup_cache_key is not None:
            with Path("cache.pickle").open("rb") as file:
                self.benchmark.set_cache(pickle.load(file))
        if self.benchmark.do_setup():
            self.skip_reason = _printed_reason()
            return
        self._arguments = self.benchmark._build_params()
        self._timer: Any = None
        self._used = False

    def serve(self, request: Any) -> Any:
        action = request["do"]
        try:
            if action == "burst":
                return self._burst(request["number"], request["samples"], request["warm"])
            if action == "value":
                return {"value": _number(self.benchmark.do_run())}
            if action == "kernels":
                return {"kernels": _compiled_kernels(request["assembly"], request["known"])}
        except self._skip_error as error:
            return {"skip": str(error) or "it says that it is not implemented here"}
        raise ValueError(f"unknown command {action!r}")

    def close(self) -> None:
        self.benchmark.do_teardown()

    def _burst(self, number: Any, samples: Any, warm: Any) -> Any:
        """Call `samples` times `number` calls, and say what they took per call.

        `cpu` is the CPU time of all threads over the wall time of the same calls: 1 for serial work, above for
        parallel.
        """
        if self._timer is None:
            self._timer = self._make_timer(number)
        timer, device = self._timer, _cuda()
        if warm:
            self._freshen()
            timer.timeit(warm)
        seconds = wall = cpu = 0.0
        for _ in range(samples):
            self._freshen()
            if device is not None:
                seconds += _device_seconds(device, timer, number)
                continue
            before, began = time.process_time(), time.perf_counter()
            seconds += timer.timeit(number)
            wall += time.perf_counter() - began
            cpu += time.process_time() - before
        return {
            "seconds": seconds / (number * samples),
            "cpu": cpu / wall if wall else None,
            "device": device is not None,
        }

    def _freshen(self) -> None:
        """As in asv_runner: a sample begins with teardown and setup, except where setup has only just run."""
        self.benchmark._redo_setup_next = self._used
        self._used = True

    def _make_timer(self, number: Any) -> Any:
        benchmark = self.benchmark
        isolate = benchmark._setups and getattr(benchmark, "_setup_isolates_timed_calls", False)
        if isolate and number > 1:
            return benchmark._get_interleaved_timer(*self._arguments)
        return benchmark._get_timer(*self._arguments)


def _cuda() -> Any:
    """torch.cuda if this process has used it, else None: a kernel's launch is no measure of its time."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _device_seconds(cuda: Any, timer: Any, number: Any) -> Any:
    begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    cuda.synchronize()
    begin.record()
    timer.timeit(number)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3  # it gives milliseconds


def _compiled_kernels(path: Any, known: Any) -> Any:
    spec: Any = importlib.util.spec_from_file_location("gradmark_check_assembly", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compiled_kernels(known)


def _number(value: Any) -> Any:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def _printed_reason() -> Any:
    """What a skipped benchmark printed: asv_runner says there why it was skipped, and so do suites."""
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(1).st_size
    text = os.pread(1, _OUTPUT_TAIL, max(0, size - _OUTPUT_TAIL)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # asv_runner's own line says nothing where the exception has no text; what the suite printed before it may.
    telling = [line for line in lines if line != "asv: skipped: NotImplementedError()"] or lines
    return telling[-1][:300] if telling else "its setup or skip_params says so"


# --- what both share -------------------------------------------------------------------------------------------------


def _guarded(action: Any) -> Any:
    try:
        return action()
    except BaseException as error:
        traceback.print_exc()
        return {"error": _last_line(error)}


def _last_line(error: Any) -> Any:
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.endswith("worker.py")]
    frames = [f for f in frames if "importlib" not in f.filename and "asv_runner" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return text.splitlines()[-1][:500] + where


def _json_safe(facts: Any) -> Any:
    def safe(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, (list, tuple)):
            return [safe(item) for item in value]
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        try:
            return float(value)
        except (TypeError, ValueError):
            return None

    return {key: safe(value) for key, value in facts.items()}


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that may end. Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _kill_group(pgid: Any) -> None:
    """End what a benchmark has started and left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


if __name__ == "__main__":
    main()
