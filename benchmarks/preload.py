"""The libraries of all backends, imported.

asv's fork server imports every module of the suite, and forks a process for each benchmark: so they share one import
of torch, where spawned processes would each take seconds for it. No thread pool may start, and CUDA may not be
initialised, before the fork: so nothing of gradmark, and nothing parallel, runs here. A process that runs one
benchmark without the fork server imports that benchmark's module only, not this one.
"""

from __future__ import annotations

import contextlib
import importlib

for _name in ("numpy", "scipy.linalg", "numba", "torch"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)

with contextlib.suppress(ImportError):
    import numba

    # The first compilation, or loading from the cache, imports some 250 modules: half a second for each process.
    numba.njit(lambda x: x)(1.0)
