"""Orthogonal weights of tensors and DTensors.

A DTensor is filled by the processes that hold it, each its own part. By `householder`, a column of Q depends on the
seed alone, and a row on sums over the processes that hold other rows (`numerics.haar_torch`); by `qr`, processes that
hold rows tell each other what R is (`_tsqr`). No process has the whole matrix, and all have the one that a single
process makes, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gradmark.nn import _messages, _tsqr
from gradmark.nn._fill import fill_normal, gaussian
from gradmark.nn._shards import Part, parts_of_all, sharding
from gradmark.numerics import haar, haar_torch


def orthogonal(tensor: Any, local: Any, part: Part, seed: int, *, gain: float, method: str) -> None:
    """Fill `local`, what this process has of `tensor`, with gain Q, or with its transpose where the weight is wide."""
    rows, columns = part.shape[0], math.prod(part.shape[1:])
    wide = rows < columns
    m, n = max(rows, columns), min(rows, columns)
    method = haar.chosen(method, m, n)
    matrix = _matrix(local)
    tall = matrix.T if wide else matrix
    # Not by what this process has: one alone has a single element, and the others would wait for its sums.
    if not sharding(tensor):
        haar_torch.fill(tall, method, gain, seed, fill_normal)
    elif method == "householder":
        haar_torch.fill_part(tall, _rectangle(tensor, part, (m, n), wide), seed, fill_normal)
        tall *= gain
    elif method == "qr":
        _check_rows(tensor, (m, n), wide)
        if local.numel():
            gaussian(matrix.view(local.shape), part, seed)
        _tsqr.replace_by_q(tall, tensor)
        tall *= gain
    else:
        raise ValueError(
            f"orthogonal_: method={method!r} makes whole matrices, and this process holds {part.local_shape} of shape"
            f" {part.shape}: take method='householder', or initialize before sharding"
        )
    if matrix.data_ptr() != local.data_ptr():
        local.copy_(matrix.view(local.shape))


def _check_rows(tensor: Any, size: tuple[int, int], wide: bool) -> None:
    """ValueError for a weight that TSQR does not make: of its shape and placements, so that all processes raise it."""
    m, n = size
    if m <= 2 * n:
        raise ValueError(
            f"orthogonal_: method='qr' of shards puts two matrices of {n} x {n} together on a process, which must be"
            f" less than the weight: one side more than twice the other, not {m} x {n}; take method='householder'"
        )
    cut = [d for d in sharding(tensor) if (tensor.placements[d].dim == 0) == wide]
    if cut:
        raise ValueError(
            f"orthogonal_: method='qr' of shards cuts the longer side alone, and placements {tensor.placements} cut the"
            f" shorter one of shape {tuple(tensor.shape)} along dimension {cut[0]} of the mesh;"
            " take method='householder', or redistribute it first"
        )


def _rectangle(tensor: Any, part: Part, size: tuple[int, int], wide: bool) -> haar_torch.Part:
    """The part of the tall matrix that this process holds; ValueError, on all processes, where one holds none."""
    # A process that alone refuses would leave the others waiting for its sums.
    for of_one in parts_of_all(tensor).flat:
        _sides(of_one)
    of_rows, of_columns = _sides(part)
    down, across = (of_columns, of_rows) if wide else (of_rows, of_columns)
    return haar_torch.Part(size, down, across, _sum_over_processes(tensor, outputs=not wide))


def _sides(part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
    """From and up to which row and column a part of the weight (out, rest) reaches; ValueError where it has gaps."""
    return _interval(part.shape[:1], part.intervals[:1]), _interval(part.shape[1:], part.intervals[1:])


def _interval(lengths: tuple[int, ...], intervals: tuple[tuple[range, ...], ...]) -> tuple[int, int]:
    inner = math.prod(lengths[1:])
    if len(intervals[0]) > 1 or any(i != (range(n),) for n, i in zip(lengths[1:], intervals[1:], strict=True)):
        raise ValueError(
            f"orthogonal_ fills whole rows or columns of the weight as a matrix (out, rest), or a rectangle of it;"
            f" of the dimensions {lengths} a process holds {intervals}: shard dimension 0 or 1, in one piece"
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
    dimensions = [d for d in sharding(tensor) if (tensor.placements[d].dim == 0) == outputs]
    groups = [tensor.device_mesh.get_group(d) for d in dimensions]

    def add_up(share: Any) -> None:
        for group in groups:
            _messages.add_up(share, group)

    return add_up
