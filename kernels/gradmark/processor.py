"""The processor that this process runs on, without importing anything heavy."""

from __future__ import annotations

import os
import platform
from pathlib import Path

VECTOR_EXTENSIONS = ("avx512f", "avx2", "avx", "sse2", "sve", "asimd")
"""As Linux calls them, the widest of a family first."""


def model() -> str:
    """The model's name, such as "AMD EPYC"."""
    # platform.processor() is empty on many Linux distributions, and "x86_64" on others.
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def vectors() -> str | None:
    """The widest vector extension, of `VECTOR_EXTENSIONS`; None where the system does not tell."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return next((name for name in VECTOR_EXTENSIONS if name in flags), None)


def usable_cores() -> int:
    """How many logical processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo(field: str) -> str | None:
    """A field of the first processor, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == field and value.strip():
            return value.strip()
    return None
