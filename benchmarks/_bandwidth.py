"""Achieved bandwidth as a fraction of a copy's, both measured in turn in one process.

A busy or throttled machine slows both, so the fraction moves less than seconds do. The copy moves as many bytes as
the kernel has to (it reads half and writes half), on all the cores that the process may use: one yardstick for all
CPU targets, so that a serial backend shows what it leaves unused. It is memcpy's bandwidth, not the memory's: a kernel
may exceed 1 where the C library's copy is not the fastest way to move bytes.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ._cases import TARGETS, benchmark, class_name, clock, prepared
from ._worktree import workloads

_PAIRS = 7
_LEAST_PAIRS = 2
_SECONDS = 1.0
"""A slow kernel gets fewer pairs than _PAIRS, but _LEAST_PAIRS."""


def add_bandwidth(classes: dict[str, type], row: Any) -> None:
    """Give the class of `row` its track_bandwidth_forward and track_bandwidth_backward, at the size "memory"."""
    for workload in workloads.of_row(row):
        if workload.size == "memory":
            cls = classes[class_name(row.name, workload.variant)]
            name = f"track_bandwidth_{workload.operation_pass}"
            setattr(cls, name, _track(workload, name, row))


def _track(workload: Any, name: str, row: Any) -> Callable[..., float]:
    def prepare(target: str) -> Any:
        return prepared(workload, target)

    def track(self: Any, target: str) -> float:
        return fraction_of_copy(prepare(target), workloads.TARGETS[target])

    track.unit = "copy"
    track.higher_is_better = True  # for gradmark check; asv takes lower for better
    return benchmark(track, name, row, [TARGETS], ["target"], prepare)


def fraction_of_copy(ready: Any, target: Any) -> float:
    """Median of copy seconds / kernel seconds over pairs that are measured in turn."""
    copy = _device_copy(ready.bytes_moved, target) if target.device != "cpu" else _copy(ready.bytes_moved)
    return median_over_pairs(copy, ready.call, lambda yardstick, kernel: yardstick / kernel)


def median_over_pairs(
    yardstick: Callable[[], Any], kernel: Callable[[], Any], of: Callable[[float, float], float]
) -> float:
    """Median of `of(seconds of the yardstick, seconds of the kernel)` over pairs that are measured in turn."""
    _seconds(yardstick)
    values: list[float] = []
    end = clock() + _SECONDS
    while len(values) < _LEAST_PAIRS or (len(values) < _PAIRS and clock() < end):
        values.append(of(_seconds(yardstick), _seconds(kernel)))
    return statistics.median(values)


def _seconds(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return clock() - start


def _copy(bytes_moved: int) -> Callable[[], None]:
    source = np.ones(bytes_moved // 2, dtype=np.uint8)
    return parallel_copy(np.ones_like(source), source)


def parallel_copy(destination: np.ndarray, source: np.ndarray) -> Callable[[], None]:
    """A function that writes `source` into `destination`, on all the cores that the process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = np.array_split(destination, cores), np.array_split(np.broadcast_to(source, destination.shape), cores)
    pairs = list(zip(*parts, strict=True))
    pool = ThreadPoolExecutor(cores)  # NumPy copies without the interpreter's lock

    def copy() -> None:
        for _ in pool.map(lambda pair: np.copyto(*pair), pairs):
            pass

    return copy


def _device_copy(bytes_moved: int, target: Any) -> Callable[[], None]:
    import torch

    source = torch.ones(bytes_moved // 2, dtype=torch.uint8, device=target.device)
    destination = torch.ones_like(source)

    def copy() -> None:
        destination.copy_(source)

    return copy
