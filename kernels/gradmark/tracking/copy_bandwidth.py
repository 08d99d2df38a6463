"""The memory limit: how fast a copy on all cores moves bytes, measured in the same run as the kernels."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_MOST_SECONDS = 0.5
_LEAST_COPIES = 5


def bytes_per_second(bytes_moved: int, cores: int) -> float:
    """The best of some copies that move this many bytes: half of them read, half of them written.

    The best, since whatever else runs can only slow a copy, and a limit is what cannot be exceeded.

    Parameters
    ----------
    bytes_moved : int
        Beyond the last-level cache, or the limit is that of a cache.
    cores : int
        Threads that copy at a time.
    """
    source = np.ones(bytes_moved // 2, dtype=np.uint8)
    destination = np.ones_like(source)
    parts = list(zip(np.array_split(destination, cores), np.array_split(source, cores), strict=True))
    best, copies, ends = float("inf"), 0, time.perf_counter() + _MOST_SECONDS
    with ThreadPoolExecutor(cores) as pool:  # NumPy copies without the interpreter's lock
        while copies < _LEAST_COPIES or time.perf_counter() < ends:
            began = time.perf_counter()
            for _ in pool.map(lambda pair: np.copyto(*pair), parts):
                pass
            best, copies = min(best, time.perf_counter() - began), copies + 1
    return 2 * source.nbytes / best
