"""Random weights at full size: how many a second, as what share of a fill; and orthogonal ones by every method.

Left to `-b large_matrices`, but for a few (asv_selection.py): a matrix takes up to minutes.

A rate is that of a call that makes a new matrix, in memory that was freed by the call before: pages that the system
maps for the first time cost a multiple of what fills them, by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _freed_memory
from ._bandwidth import median_over_pairs, parallel_copy
from ._cases import TARGETS, TimedOnce, benchmark, class_name, opened, prepared
from ._worktree import catalog, workloads

RANDOM = ("uniform", "normal", "trunc_normal")
"""What others are made of: they differ in shape and scale."""

SQUARES = ["4096x4096", "8192x8192"]
RECTANGLES = ["4096x1024", "1024x4096"]

_METHODS = {"qr": SQUARES + RECTANGLES, "householder": SQUARES + RECTANGLES, "polar": SQUARES + RECTANGLES}
_METHODS["cholesky_qr2"] = RECTANGLES
"""Method and sizes: the last one needs a side that is at least twice the other."""

_COMPILES = "64x16"
"""A matrix that a method compiles as much for as for a large one."""


def _workload(operation: str, size: str, method: str = "") -> Any:
    return workloads.Workload(operation=operation, operation_pass=catalog.FORWARD, size=size, variant=method)


def _random(row: Any) -> type:
    """The class of a random initializer: track_rate and track_fill."""
    methods = {track.__name__: track for track in (_rate(row), _share_of_fill(row))}
    return type(class_name(row.name), (), {"__module__": __name__, "__doc__": row.formula, "timeout": 300.0, **methods})


def _rate(row: Any) -> Callable[..., float]:
    def track(self: Any, target: str, size: str) -> float:
        ready = _in_freed_memory(row, target, size)
        elements = ready.bytes_moved / np.dtype(np.float32).itemsize
        return median_over_pairs(_nothing, ready.call, lambda _, seconds: 1e-9 * elements / seconds)

    return _tracked(track, "track_rate", "Gsamples/s", row)


def _share_of_fill(row: Any) -> Callable[..., float]:
    def track(self: Any, target: str, size: str) -> float:
        ready = _in_freed_memory(row, target, size)
        fill = _fill(ready.bytes_moved, workloads.TARGETS[target])
        return median_over_pairs(fill, ready.call, lambda yardstick, seconds: yardstick / seconds)

    return _tracked(track, "track_fill", "fill", row)


def _tracked(track: Any, name: str, unit: str, row: Any) -> Callable[..., float]:
    track.unit = unit
    track.higher_is_better = True  # for gradmark check; asv takes lower for better

    def prepare(target: str, size: str) -> Any:
        return _in_freed_memory(row, target, size)

    return benchmark(track, name, row, [TARGETS, SQUARES], ["target", "size"], prepare)


def _in_freed_memory(row: Any, target: str, size: str) -> Any:
    _freed_memory.keep_freed_memory()
    return prepared(_workload(row.name, size), target)


def _fill(size: int, target: Any) -> Callable[[], Any]:
    """A fill of as many bytes that exist already: on all cores, or on the device."""
    if target.device == "cpu":
        return parallel_copy(np.ones(size // 4, np.float32), np.array(1.0, np.float32))
    import torch

    tensor = torch.ones(size // 4, device=target.device)
    return lambda: tensor.fill_(1.0)


def _nothing() -> None:
    """Stands for a yardstick where there is none."""


def _orthogonal(row: Any) -> type:
    """The class of orthogonal matrices: a timing of each method."""
    methods = {f"time_{method}": _by_method(method, sizes, row) for method, sizes in _METHODS.items()}
    doc = f"{row.name}, by each of its methods: {row.formula}."
    # `polar` at 8192x8192 needs some 10^14 operations, and NumPy's backend has two cores on a small machine.
    return type("Orthogonal", (TimedOnce,), {"__module__": __name__, "__doc__": doc, "timeout": 3600.0, **methods})


def _by_method(method: str, sizes: list[str], row: Any) -> Callable[..., None]:
    def prepare(target: str, size: str) -> Any:
        prepared(_workload(row.name, _COMPILES, method), target)
        return opened(_workload(row.name, size, method), target)

    def time(self: Any, target: str, size: str) -> None:
        prepare(target, size).call()

    return benchmark(time, f"time_{method}", row, [TARGETS, sizes], ["target", "size"], prepare)


CLASSES = {class_name(name): _random(catalog.operation(name)) for name in RANDOM}
CLASSES["Orthogonal"] = _orthogonal(catalog.operation("orthogonal"))
globals().update(CLASSES)
