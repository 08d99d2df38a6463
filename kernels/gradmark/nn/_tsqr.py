"""The QR factorization of a tall matrix whose rows are spread over processes: TSQR, by messages of n x n numbers.

    Z_i = Q_i R_i                               each process, of its rows of Z (m, n)
    (R_a, R_b) = Q_ab R_ab                      where two R's meet, up a binary tree, until it is the R of all rows
    S = sign(diag R), (S_a, S_b) = Q_ab S_ab    down the same tree
    Q_i S_i                                     each process: its rows of the Q whose R is positive on the diagonal

Which rows are whose does not matter, nor in which order. Of processes in a line, R's meet on all but the first, once
on each, so that none holds more than its part of Z and Q, Q_ab of 2n x n, and what it sends or receives, whatever
their number. Where a mesh shards along several of its dimensions, lines along the last come first, then one of what
has their R's; there is a Q_ab for each then. A process with less than n rows has an R with as many.

Source: Demmel, Grigori, Hoemmen, Langou, Communication-optimal parallel and sequential QR and LU factorizations, SIAM
J. Sci. Comput. 34(1), 2012.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from gradmark.nn._messages import receive, send
from gradmark.nn._shards import parts_of_all, sharding


def replace_by_q(rows: Any, tensor: Any) -> None:
    """Replace this process's rows of a matrix by those of its Q; all processes that hold the DTensor `tensor` call it.

    Parameters
    ----------
    rows : torch.Tensor
        (k, n), float32 or float64: the elements of `tensor` on this process, or their transpose. The short dimension n
        is whole, the matrix of all processes has at least n rows.
    tensor : DTensor
        Says who holds the other rows.

    Raises
    ------
    RuntimeError
        A process that holds other rows has died or does not answer.
    """
    q, r = torch.linalg.qr(rows)
    torch.mm(q, _share(r, tuple(_steps(tensor, rows.shape[1]))), out=rows)


class _Peer(NamedTuple):
    """Another process, and how many rows the R has that goes from or to it."""

    rank: int
    group: Any
    rows: int


class _Send(NamedTuple):
    """The R that a process has goes to another, and the S of it comes back."""

    parent: _Peer


class _Meet(NamedTuple):
    """Two R's meet. The lower one comes from another process; so does the upper, but where it is the process's own."""

    lower: _Peer
    upper: _Peer | None


def _share(r: Any, steps: Sequence[_Send | _Meet]) -> Any:
    """S of an R that the process has: what the Q of it is to be multiplied with."""
    if not steps:
        # The R of all rows. With a positive diagonal the factorization is unique, and Q is Haar where Z is Gaussian.
        return torch.diag(torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(r.dtype))
    step, *others = steps
    if isinstance(step, _Send):
        send(r, step.parent.rank, step.parent.group)
        if others:
            _share(r, others)
        return _received(r, step.parent)
    lower = _received(r, step.lower)
    q, both = torch.linalg.qr(torch.cat((lower, r if step.upper is None else _received(r, step.upper))))
    s = q @ _share(both, others)
    send(s[: step.lower.rows], step.lower.rank, step.lower.group)
    s = s[step.lower.rows :]
    if step.upper is not None:
        send(s, step.upper.rank, step.upper.group)
    return s


def _received(like: Any, peer: _Peer) -> Any:
    return receive(like.new_empty((peer.rows, like.shape[1])), peer.rank, peer.group)


def _steps(tensor: Any, n: int) -> Iterator[_Send | _Meet]:
    """What this process does on the way up, in its order; on the way down it undoes it in the opposite one.

    Nobody waits for what stands higher in the tree, so that no two processes wait for each other, even where a message
    leaves only when it is received.
    """
    mesh, dimensions = tensor.device_mesh, sharding(tensor)
    here, rows = tuple(mesh.get_coordinate()), _rows(tensor, n)
    replicas = tuple(index if d in dimensions else 0 for d, index in enumerate(here))

    def peer(dimension: int, index: int, line: range) -> _Peer:
        there = (*here[:dimension], index, *here[dimension + 1 :])
        of_line = rows[(*replicas[:dimension], slice(line.start, line.stop))]
        # By its rank among all: in a group, ranks are in their own order, not in that of the mesh.
        return _Peer(int(mesh.mesh[there]), mesh.get_group(dimension), min(int(of_line.sum()), n))

    for dimension in reversed(dimensions):
        index = here[dimension]
        lines = _lines(index, mesh.size(dimension))
        for line, both in itertools.pairwise((*lines, None)):
            if line is None or _owner(line) != index:
                continue
            if len(line) > 1:
                lower, upper = _halves(line)
                of_upper = None if _owner(upper) == index else peer(dimension, _owner(upper), upper)
                yield _Meet(peer(dimension, _owner(lower), lower), of_upper)
            if both is not None and _owner(both) != index:
                yield _Send(peer(dimension, _owner(both), line))
        if _owner(lines[-1]) != index:
            return


def _rows(tensor: Any, n: int) -> Any:
    """How many rows each process holds, by its place in the mesh; of replicas, the first."""
    parts = parts_of_all(tensor)
    return np.array([math.prod(part.local_shape) // n for part in parts.flat]).reshape(parts.shape)


def _lines(index: int, length: int) -> list[range]:
    """The parts of a line of processes that contain this one: it alone, and each a half of the next."""
    lines = [range(length)]
    while len(lines[-1]) > 1:
        lower, upper = _halves(lines[-1])
        lines.append(lower if index in lower else upper)
    return lines[::-1]


def _halves(line: range) -> tuple[range, range]:
    middle = (line.start + line.stop + 1) // 2
    return range(line.start, middle), range(middle, line.stop)


def _owner(line: range) -> int:
    """Which process has the R of a line: the first of the upper half, as it is that of no other line."""
    return _halves(line)[1].start if len(line) > 1 else line.start
