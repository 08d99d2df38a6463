"""The memory's own speed: a copy for a forward pass, a triad for a backward one, in Numba on all threads.

Each thread has one contiguous part. LLVM makes the copy a call of memcpy, which past the caches stores without reading
(non-temporally); the triad is STREAM's (McCalpin, 1995), with ordinary stores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """copy(x, out) and triad(a, b, out)."""
    import numba

    @numba.njit(parallel=True)
    def copy(x: Any, out: Any) -> None:
        parts = numba.get_num_threads()
        for part in numba.prange(parts):
            low, high = part * x.size // parts, (part + 1) * x.size // parts
            out[low:high] = x[low:high]

    @numba.njit
    def triad_of_part(a: Any, b: Any, out: Any) -> None:
        scale = out.dtype.type(3.0)
        for i in range(out.size):
            out[i] = a[i] + scale * b[i]

    @numba.njit(parallel=True)
    def triad(a: Any, b: Any, out: Any) -> None:
        parts = numba.get_num_threads()
        for part in numba.prange(parts):
            low, high = part * a.size // parts, (part + 1) * a.size // parts
            # Of slices: a loop from `low` on looks at each index for being negative, and then gathers.
            triad_of_part(a[low:high], b[low:high], out[low:high])

    return copy, triad
