"""Which elements of a weight a tensor holds: all of them, or the part of a DTensor that is on this process.

A part is described by intervals of global indices along each dimension, and turned into runs: stretches of equal
length whose elements are next to each other in the whole weight, which is all that a counter-based generator needs.
Nothing here communicates, and nothing takes memory that grows with the weight.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """A part of a weight."""

    shape: tuple[int, ...]
    """The shape of the whole weight."""
    intervals: tuple[tuple[range, ...], ...]
    """Of each dimension, the global indices that the part holds, in its order."""

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(sum(map(len, intervals)) for intervals in self.intervals)

    @property
    def whole(self) -> bool:
        """Whether it holds all elements, in their order."""
        return all(map(_complete, self.intervals, self.shape))


def local_part(tensor: Any) -> tuple[Any, Part]:
    """The tensor on this process, and which part of the whole it is.

    Raises
    ------
    ValueError
        A DTensor of which that cannot be said, such as one with partial sums; the message says why.
    """
    if not _is_dtensor(tensor):
        shape = tuple(tensor.shape)
        return tensor, Part(shape, tuple((range(length),) for length in shape))
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(
            f"this process is not in the mesh of the DTensor, {tensor.device_mesh}; initialize it on the mesh's own"
        )
    local = tensor.to_local()
    part = sharded(tuple(tensor.shape), tuple(tensor.device_mesh.shape), coordinate, tensor.placements)
    _check_order(tensor)
    if part.local_shape != tuple(local.shape):
        raise ValueError(
            f"the local tensor has shape {tuple(local.shape)}; a DTensor of shape {part.shape} with placements"
            f" {tensor.placements} has {part.local_shape} on this process: give one that torch's own rule made"
        )
    return local, part


def sharding(tensor: Any) -> tuple[int, ...]:
    """The dimensions of its mesh along which processes hold different elements of a tensor; the same on all of them."""
    if not _is_dtensor(tensor):
        return ()
    placements = enumerate(tensor.placements)
    return tuple(d for d, placement in placements if not placement.is_replicate() and tensor.device_mesh.size(d) > 1)


def parts_of_all(tensor: Any) -> Any:
    """What each process holds of a DTensor, by its place in the mesh, as an array of `Part`; of replicas, the first."""
    mesh, dimensions = tuple(tensor.device_mesh.shape), sharding(tensor)
    places = tuple(size if d in dimensions else 1 for d, size in enumerate(mesh))
    parts = np.empty(places, object)
    for place in np.ndindex(places):
        parts[place] = sharded(tuple(tensor.shape), mesh, place, tensor.placements)
    return parts


def sharded(shape: tuple[int, ...], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]) -> Part:
    """The part that the process at `coordinate` of a mesh holds; ValueError for a placement that is no sharding.

    The rule is that of torch.distributed.tensor: mesh dimensions from left to right, each cuts what the ones before
    it left into pieces of ⌈length / processes⌉, the last of them smaller or empty.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    intervals: list[tuple[range, ...]] = [(range(length),) for length in shape]
    for processes, index, placement in zip(mesh, coordinate, placements, strict=True):
        if isinstance(placement, Replicate):
            continue
        # The strided one first: in some versions of PyTorch it is a kind of Shard.
        if isinstance(placement, _StridedShard):
            pieces = _strided_pieces(_length(intervals[placement.dim]), int(placement.split_factor), processes, index)
        elif isinstance(placement, Shard):
            pieces = (_piece(range(_length(intervals[placement.dim])), processes, index),)
        else:
            raise ValueError(
                f"a DTensor with placement {placement!r} holds no elements that could be set;"
                " accepted: Shard and Replicate. Redistribute it first"
            )
        taken = [interval for piece in pieces for interval in _take(intervals[placement.dim], piece)]
        intervals[placement.dim] = _joined(taken)
    return Part(shape, tuple(intervals))


class Runs(NamedTuple):
    """A part as runs of `length` elements with consecutive indices in the whole weight."""

    number: int
    length: int
    axes: tuple[_Axis, ...]

    def first(self, begin: int, end: int) -> Any:
        """The index in the whole weight of the first element of the runs begin, ..., end - 1: an int64 array."""
        index = np.unravel_index(np.arange(begin, end), [axis.steps for axis in self.axes])
        return np.sum([axis.offsets(i) for axis, i in zip(self.axes, index, strict=True)], axis=0, dtype=np.int64)


class _Axis(NamedTuple):
    """Steps of `step` along one dimension of a part."""

    intervals: tuple[range, ...]
    step: int
    stride: int
    """How far apart in the whole weight neighbours along this dimension are."""

    @property
    def steps(self) -> int:
        """How many there are."""
        return _length(self.intervals) // self.step

    def offsets(self, index: Any) -> Any:
        """What the steps of these indices add to the index in the whole weight."""
        begins = np.cumsum([0, *map(len, self.intervals[:-1])])
        shifts = np.array([interval.start for interval in self.intervals]) - begins
        local = index * self.step
        return (local + shifts[np.searchsorted(begins, local, side="right") - 1]) * self.stride


def runs(part: Part) -> Runs:
    """The runs of a part that is not empty, as long as they can all be."""
    dimension, inner = len(part.shape), 1
    while dimension > 0 and _complete(part.intervals[dimension - 1], part.shape[dimension - 1]):
        dimension -= 1
        inner *= part.shape[dimension]
    if dimension == 0:
        return Runs(1, inner, (_Axis((range(1),), 1, inner),))
    # The innermost dimension that is not complete is cut where all its intervals can be.
    step = math.gcd(*map(len, part.intervals[dimension - 1]))
    strides = [math.prod(part.shape[d + 1 :]) for d in range(dimension)]
    outer = [_Axis(part.intervals[d], 1, strides[d]) for d in range(dimension - 1)]
    axes = (*outer, _Axis(part.intervals[dimension - 1], step, inner))
    return Runs(math.prod(axis.steps for axis in axes), step * inner, axes)


def _is_dtensor(tensor: Any) -> bool:
    # Who has a DTensor has imported its module; to import it here would cost everybody else half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _length(intervals: tuple[range, ...]) -> int:
    return sum(map(len, intervals))


def _complete(intervals: tuple[range, ...], length: int) -> bool:
    return intervals == (range(length),)


def _piece(interval: range, pieces: int, index: int) -> range:
    """The piece of this index of an interval, as torch.chunk cuts it."""
    size = -(-len(interval) // pieces)
    return interval[index * size : (index + 1) * size]


def _strided_pieces(length: int, split_factor: int, processes: int, index: int) -> tuple[range, ...]:
    """The pieces of this index of each of `split_factor` pieces: what FSDP takes of what is sharded already."""
    split = (_piece(range(length), split_factor, s) for s in range(split_factor))
    return tuple(_piece(piece, processes, index) for piece in split)


def _take(intervals: tuple[range, ...], local: range) -> list[range]:
    """The global indices at the local ones, interval by interval."""
    taken, begin = [], 0
    for interval in intervals:
        taken.append(interval[max(local.start - begin, 0) : max(local.stop - begin, 0)])
        begin += len(interval)
    return taken


def _joined(intervals: list[range]) -> tuple[range, ...]:
    """The intervals without the empty ones, and those that continue each other as one."""
    joined: list[range] = []
    for interval in filter(len, intervals):
        if joined and joined[-1].stop == interval.start:
            joined[-1] = range(joined[-1].start, interval.stop)
        else:
            joined.append(interval)
    return tuple(joined)


def _check_order(tensor: Any) -> None:
    """Raise where mesh dimensions shard one dimension in another order than from left to right."""
    order = getattr(tensor._spec, "shard_order", None) or ()
    if any(list(entry.mesh_dims) != sorted(entry.mesh_dims) for entry in order):
        raise ValueError(f"the DTensor is sharded in the order {order}; accepted: mesh dimensions from left to right")
