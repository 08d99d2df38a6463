"""Orthogonal weights of tensors and DTensors.

A DTensor is filled by the processes that hold it, each its own part: a column of Q depends on the seed alone, and a
row on sums over the processes that hold other rows (`numerics.haar_torch`). No process has the whole matrix, and all
have the one that a single process makes, up to rounding.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

import torch

from gradmark.nn._fill import fill_normal
from gradmark.nn._shards import Part
from gradmark.numerics import haar, haar_torch

TIMEOUT = datetime.timedelta(minutes=5)
"""How long a process waits for the sums of the others. A block of reflectors takes milliseconds to seconds."""


def orthogonal(tensor: Any, local: Any, part: Part, seed: int, *, gain: float, method: str) -> None:
    """Fill `local`, what this process has of `tensor`, with gain Q, or with its transpose where the weight is wide."""
    rows, columns = part.shape[0], math.prod(part.shape[1:])
    wide = rows < columns
    m, n = max(rows, columns), min(rows, columns)
    of_rows, of_columns = _interval(part.shape[:1], part.intervals[:1]), _interval(part.shape[1:], part.intervals[1:])
    down, across = (of_columns, of_rows) if wide else (of_rows, of_columns)
    matrix = _matrix(local)
    tall = matrix.T if wide else matrix
    method = haar.chosen(method, m, n)
    if part.whole:
        haar_torch.fill(tall, method, gain, seed, fill_normal)
    elif method == "householder":
        add_up = _sum_over_processes(tensor, outputs=not wide)
        haar_torch.fill_part(tall, haar_torch.Part((m, n), down, across, add_up), seed, fill_normal)
        tall *= gain
    else:
        raise ValueError(
            f"orthogonal_: method={method!r} makes whole matrices, and this process holds {part.local_shape} of shape"
            f" {part.shape}: take method='householder', or initialize before sharding"
        )
    if matrix.data_ptr() != local.data_ptr():
        local.copy_(matrix.view(local.shape))


def _interval(lengths: tuple[int, ...], intervals: tuple[tuple[range, ...], ...]) -> tuple[int, int]:
    """From and up to which index of these dimensions, as one, a part reaches; ValueError where it has gaps."""
    inner = math.prod(lengths[1:])
    if len(intervals[0]) > 1 or any(i != (range(n),) for n, i in zip(lengths[1:], intervals[1:], strict=True)):
        raise ValueError(
            f"orthogonal_ fills whole rows or columns of the weight as a matrix (out, rest), or a rectangle of it;"
            f" of the dimensions {lengths} this process holds {intervals}: shard dimension 0 or 1, in one piece"
        )
    (interval,) = intervals[0] or (range(0),)
    return interval.start * inner, interval.stop * inner


def _matrix(local: Any) -> Any:
    """(out, rest) in the dtype that is computed in: `local` itself where its layout and dtype allow it."""
    dtype = torch.promote_types(local.dtype, torch.float32)
    plain = type(local) is torch.Tensor and local.is_contiguous() and local.dtype == dtype
    matrix = local if plain else torch.empty(local.shape, dtype=dtype, device=local.device)
    return matrix.view(local.shape[0], math.prod(local.shape[1:]))


def _sum_over_processes(tensor: Any, *, outputs: bool) -> Callable[[Any], None]:
    """The sum, in place, over the processes that hold other rows of the tall matrix: other outputs, or other inputs."""
    mesh = tensor.device_mesh
    groups = [
        mesh.get_group(dimension)
        for dimension, placement in enumerate(tensor.placements)
        if not placement.is_replicate() and (placement.dim == 0) == outputs
    ]

    def add_up(share: Any) -> None:
        for group in groups:
            try:
                work = torch.distributed.all_reduce(share, group=group, async_op=True)
                work.wait(timeout=TIMEOUT) if share.device.type == "cpu" else work.wait()
            except RuntimeError as error:
                raise RuntimeError(
                    f"orthogonal_: a process that holds other rows has died, or has not answered for"
                    f" {TIMEOUT.total_seconds():g} s; this part of the weight is not initialized ({error})"
                ) from error

    return add_up
