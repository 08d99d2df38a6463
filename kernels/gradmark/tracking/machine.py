"""What a result file says beside its results: which machine, which versions, which commit, when.

Everything is looked up without importing a backend, so that `gradmark verify` and `gradmark choose` pay nothing for it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradmark
from gradmark import processor

SCHEMA = 1
"""Of the result files. Raise it when a field changes its meaning or goes; a new field does not."""

_DISTRIBUTIONS = ("numpy", "numba", "llvmlite", "torch", "scipy")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def provenance(kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The head of a result file.

    Parameters
    ----------
    kind : str
        "choose" or "verify".
    arguments : sequence of str
        The arguments that `gradmark` was called with.

    Returns
    -------
    dict
        `schema`, `kind`, `command`, `created` (UTC, ISO 8601), `commit` (None where gradmark does not run from a git
        clone), `uncommitted` (whether the clone had changes beside it), `versions` and `machine`.
    """
    commit, uncommitted = _commit()
    return {
        "schema": SCHEMA,
        "kind": kind,
        "command": shlex.join(["gradmark", *arguments]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "uncommitted": uncommitted,
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str | None]:
    """The versions of gradmark, Python and the numerical libraries; None for one that is not installed."""
    found: dict[str, str | None] = {"gradmark": gradmark.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, the memory in bytes, the system, and how busy it is.

    One model name covers processors of different width (virtual machines often say no more than "AMD EPYC"), so
    `vectors` tells the widest vector extension; None where the system does not.
    """
    return {
        "cpu": processor.model(),
        "vectors": processor.vectors(),
        "cores": processor.usable_cores(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def other_cpu_seconds() -> float | None:
    """CPU seconds that others than this process have used since the system started, or None where it does not tell.

    What a hypervisor took away (steal) counts as well. The difference of two values tells how quiet a machine was in
    between, which the load average of the beginning does not.
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        ticks = os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None
    # cpu user nice system idle iowait irq softirq steal …, in ticks, see proc_stat(5).
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks - time.process_time()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _commit() -> tuple[str | None, bool | None]:
    package = Path(gradmark.__file__).resolve().parent
    root = _git(package, "rev-parse", "--show-toplevel")
    # An installed copy may lie in a virtual environment inside of some other clone: that commit is not gradmark's.
    if root is None or (Path(root) / "kernels" / "gradmark").resolve() != package:
        return None, None
    status = _git(package, "status", "--porcelain", "--untracked-files=no")
    return _git(package, "rev-parse", "HEAD"), None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
