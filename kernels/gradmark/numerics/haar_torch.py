"""The matrices of `numerics.haar` in PyTorch, on the device of the result; whole, or the part that one process holds.

Reflectors are a function of the seed, so every process draws those that it needs. Of a Q whose rows are spread over
processes, each adds its share to two small sums for every block of reflectors, (b, b) and (b, columns); columns are
independent of each other. No process ever holds more than its part of Q and b columns of as many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gradmark.numerics import haar
from gradmark.numerics.haar import blocks

FillNormal = Callable[..., None]
"""(out, first, seed, mean, std), as in `philox_torch`: 1-d, or 2-d with an int64 tensor of where rows begin."""


@dataclass(frozen=True)
class Part:
    """What a process holds of Q (m, n)."""

    shape: tuple[int, int]
    """(m, n), m >= n."""
    rows: tuple[int, int]
    """From and up to which row."""
    columns: tuple[int, int]
    add_up: Callable[[Any], None]
    """Adds the tensor, in place, to those of the other processes that hold the same columns. All of them call it."""


def fill(out: Any, method: str, gain: float, seed: int, fill_normal: FillNormal) -> None:
    """Fill `out` with gain Q; see `haar.fill`."""
    _METHODS[haar.chosen(method, *out.shape)](out, seed, fill_normal)
    if gain != 1.0:
        out *= gain


def by_qr(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """The library's QR."""
    _fill_gaussian(out, seed, fill_normal)
    reflectors, tau = torch.geqrf(out)
    # No signs are fixed by it. With R's diagonal positive the factorization is unique, and Q is Haar.
    signs = torch.where(torch.diagonal(reflectors) < 0, -1.0, 1.0).to(out.dtype)
    torch.mul(torch.linalg.householder_product(reflectors, tau), signs, out=out)


def by_cholesky_qr2(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Two passes of CholeskyQR."""
    _fill_gaussian(out, seed, fill_normal)
    for _ in range(2):
        r = torch.linalg.cholesky(_gram(out), upper=True)
        out.copy_(torch.linalg.solve_triangular(r, out, upper=True, left=False))


def by_polar(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Newton and Schulz's iteration; see `haar.by_polar`."""
    _fill_gaussian(out, seed, fill_normal)
    m, n = out.shape
    schedule = haar.PolarSchedule(m, n, torch.finfo(out.dtype).eps)
    out /= schedule.largest
    one = torch.eye(n, dtype=out.dtype, device=out.device)
    for _ in range(haar.STEPS):
        gram = _gram(out)
        step = schedule.step(float(torch.linalg.norm(gram - one)))
        out.copy_(out @ torch.add(step.linear * one, gram, alpha=step.cubic))
        if step.last:
            return
    raise haar.no_convergence(seed, m, n)


def by_householder(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Reflectors, drawn and multiplied; see `haar.by_householder`."""
    m, n = out.shape
    fill_part(out, Part((m, n), (0, m), (0, n), lambda tensor: None), seed, fill_normal)


def fill_part(out: Any, part: Part, seed: int, fill_normal: FillNormal) -> None:
    """Fill `out` with the part of Q, by `householder`."""
    for start, stop in reversed(blocks(*part.shape)):
        begin = max(part.rows[0], start)
        v = _drawn(out, part, (start, stop), (begin, part.rows[1]), seed, fill_normal)
        if part.rows[0] <= start and stop <= part.rows[1]:
            head = v[:, : stop - start].clone()
        else:
            head = _drawn(out, part, (start, stop), (start, stop), seed, fill_normal)
        gram = _gram_of_rows(v)
        part.add_up(gram)
        t, signs = _block_factor(head, gram)
        # The elements that were changed stand in v too, where the part has their rows.
        own = v[:, : max(min(stop, part.rows[1]) - begin, 0)]
        own.copy_(head[:, begin - start : begin - start + own.shape[1]])
        _apply(out, part, (start, stop), v, t, -(t @ head) * signs, signs)


def _drawn(
    out: Any, part: Part, block: tuple[int, int], rows: tuple[int, int], seed: int, fill_normal: FillNormal
) -> Any:
    """The vectors that become the reflectors of a block, one a row: their elements in these rows of Q."""
    (start, stop), (begin, end) = block, rows
    vectors = out.new_empty((stop - start, max(end - begin, 0)))
    if vectors.numel() == 0:
        return vectors
    j = torch.arange(start, stop)
    fill_normal(vectors, j * part.shape[0] - j * (j - 1) // 2 - j + begin, seed, 0.0, 1.0)
    # A vector begins in its own row. What stands above belongs to the one before it.
    vectors[:, : max(stop - begin, 0)].triu_(start - begin)
    return vectors


def _block_factor(head: Any, gram: Any) -> tuple[Any, Any]:
    """See `haar.block_factor`."""
    first = head.diagonal()
    x, squares = first.to(torch.float64, copy=True), gram.diagonal()
    signs = torch.where(x < 0.0, 1.0, -1.0).double()
    changed = (x - signs * squares.sqrt()).to(head.dtype)
    alone = torch.zeros_like(signs, dtype=torch.bool)
    alone[-1] = squares[-1] == x[-1] * x[-1]
    first.copy_(torch.where(alone, torch.zeros_like(changed), changed))
    signs = torch.where(alone, -signs, signs)
    added = first.double() - x
    inverse = (gram + (head.double() * added).triu(1)).triu(1)
    half = 0.5 * (squares + added * (first + x))
    inverse.diagonal().copy_(torch.where(half > 0.0, half, torch.ones_like(half)))
    t = torch.linalg.solve_triangular(inverse, torch.eye(len(x), dtype=x.dtype, device=x.device), upper=True)
    return t.to(head.dtype), signs.to(head.dtype)


def _apply(out: Any, part: Part, block: tuple[int, int], v: Any, t: Any, corner: Any, signs: Any) -> None:
    """Multiply the columns behind the block with it, and set its own."""
    (start, stop), (top, bottom), (left, right) = block, part.rows, part.columns
    below = out[max(start - top, 0) :]
    begin, end = max(start, left), min(stop, right)
    if begin < end:
        torch.mm(v.T, corner[:, begin - start : end - start], out=below[:, begin - left : end - left])
        first, last = max(begin, top), min(end, bottom)
        if first < last:
            square = out[first - top : last - top, first - left : last - left]
            square.diagonal().add_(signs[first - start : last - start])
    if right <= stop:
        return
    behind = slice(max(stop - left, 0), None)
    out[max(start - top, 0) : max(stop - top, 0), behind] = 0.0
    w = v[:, max(stop - max(start, top), 0) :] @ out[max(stop - top, 0) :, behind]
    part.add_up(w)
    below[:, behind].addmm_(v.T, t @ w, alpha=-1.0)


def _fill_gaussian(out: Any, seed: int, fill_normal: FillNormal) -> None:
    fill_normal((out if out.is_contiguous() else out.T).view(-1), 0, seed, 0.0, 1.0)


def _gram(x: Any) -> Any:
    """See `haar._gram`."""
    gram = x.T @ x
    squares = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(_ROWS):
        squares += part.double().square().sum(dim=0)
    gram.diagonal().copy_(squares)
    return gram


def _gram_of_rows(v: Any) -> Any:
    """VVᵀ in float64, in pieces."""
    gram = torch.zeros((len(v), len(v)), dtype=torch.float64, device=v.device)
    for part in v.split(_ROWS, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    return gram


_ROWS = 1 << 13
"""At a time in float64."""

_METHODS: dict[str, Callable[..., None]] = {
    "qr": by_qr,
    "householder": by_householder,
    "cholesky_qr2": by_cholesky_qr2,
    "polar": by_polar,
}
