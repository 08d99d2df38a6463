"""The libraries of all backends, imported.

asv's fork server imports every module of the suite, and forks a process for each benchmark: so they share one import
of torch, where spawned processes would each take seconds for it. Nothing is run in the server: no thread pool may
start, and CUDA may not be initialised, before the fork. A process that runs one benchmark without the fork server
imports that benchmark's module only, not this one.
"""

from __future__ import annotations

import contextlib
import importlib

for _name in ("numpy", "numba", "torch"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
