"""What a user waits for before the first number: imports, and Numba's compilation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ._cases import CPU_TARGETS, NotHere, SkipNotImplemented, installed
from ._worktree import catalog, workloads

_FIRST_CALL = {
    "numpy": "import numpy; x = numpy.ones(4, 'float32')",
    "numba": "import numpy; x = numpy.ones(4, 'float32')",
    "torch": "import torch; x = torch.ones(4)",
}

_COMPILE = """
import time, numpy, gradmark
backend = gradmark.backend("numba")
backend.relu(numpy.ones(4, "float32"))
x = numpy.ones((64, 64), "float32")
arguments = (x, x) if {function!r}.endswith("_backward") else (x,)
start = time.perf_counter()
getattr(backend, {function!r})(*arguments)
print(time.perf_counter() - start)
"""


def _usable(target_name: str, operation: str = "relu", *_: Any) -> None:
    try:
        namespace, target = workloads.open_target(installed(), target_name)
        workload = workloads.of_row(catalog.operation(operation), small=True)[0]
        workload.prepare(namespace, target)
    except workloads.UnavailableError as error:
        raise SkipNotImplemented(str(error)) from error


class Import:
    """`import gradmark`, which loads neither NumPy, Numba nor PyTorch, in a fresh interpreter."""

    version = "1"
    number = 1
    rounds = 1
    repeat = 5
    warmup_time = 0

    def timeraw_import(self) -> str:
        """Seconds."""
        return "import gradmark"


class FirstUse:
    """Import, and relu of four numbers, in a fresh interpreter; Numba's kernels come from its cache."""

    version = "1"
    number = 1
    rounds = 1
    repeat = 3
    warmup_time = 0
    timeout = 120.0
    params = (CPU_TARGETS,)
    param_names = ("target",)
    skip_params = NotHere(_usable)

    def timeraw_first_use(self, target: str) -> str:
        """Seconds."""
        return f"import gradmark; {_FIRST_CALL[target]}; gradmark.backend({target!r}).relu(x)"


class Compilation:
    """The first call of a Numba kernel: compiled into an empty cache, then loaded from it by another process."""

    version = "1"
    timeout = 180.0
    params = (["gelu", "gelu_backward"],)
    param_names = ("function",)
    unit = "seconds"
    skip_params = NotHere(lambda function: _usable("numba", function.removesuffix("_backward")))

    def track_cold(self, function: str) -> float:
        """Seconds with an empty cache."""
        return _in_fresh_cache(lambda run: run(function))

    def track_cached(self, function: str) -> float:
        """Seconds when another process has filled the cache."""

        def second(run: Callable[[str], float]) -> float:
            run(function)
            return run(function)

        return _in_fresh_cache(second)


def _in_fresh_cache(measure: Callable[[Callable[[str], float]], float]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GRADMARK_CACHE_DIR": folder, "NUMBA_CACHE_DIR": folder}

        def run(function: str) -> float:
            script = _COMPILE.format(function=function)
            done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            return float(done.stdout)

        return measure(run)
