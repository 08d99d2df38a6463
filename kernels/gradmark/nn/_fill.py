"""Weights into a tensor that is there: the elements of its part of the whole weight, computed where they lie.

A function here fills a local tensor, of which a `Part` says what it holds:

    f(local, part, seed, **arguments) -> None        (seed is None where nothing is random)

The arguments are checked. No temporary is larger than PIECE elements.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradmark.nn._shards import Part, Runs, runs
from gradmark.numerics import philox_torch
from gradmark.numerics.philox import truncation

PIECE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Elements that are computed into a temporary at a time, by type of device: to stay in cache, or to fill a GPU."""

RUNS = 1 << 16
"""Runs whose first elements are listed at a time: half a MiB."""

_HALF = (torch.float16, torch.bfloat16)

Compute = Callable[[Any, int], None]


def uniform(local: Any, part: Part, seed: int, *, low: float, high: float) -> None:
    """U(low, high)."""
    _elements(local, part, functools.partial(_draw, "fill_uniform", seed, (low, high)))


def normal(local: Any, part: Part, seed: int, *, mean: float, std: float) -> None:
    """N(mean, std²)."""
    _elements(local, part, functools.partial(_draw, "fill_normal", seed, (mean, std)))


def trunc_normal(local: Any, part: Part, seed: int, *, mean: float, std: float, a: float, b: float) -> None:
    """N(mean, std²) within [a, b]."""
    bounds = truncation(mean, std, a, b, str(local.dtype).removeprefix("torch."))

    def draw(out: Any, first: Any) -> None:
        _draw("fill_truncated_normal", seed, (mean, std, a, b), out, first)
        if out.dtype != local.dtype:
            # The bounds of half precision, where they are not those of the temporary.
            out.clamp_(bounds.first, bounds.last)

    _elements(local, part, draw)


def constant(local: Any, part: Part, seed: None, *, value: float) -> None:
    """The value everywhere."""
    local.fill_(value)


def eye(local: Any, part: Part, seed: None, *, gain: float) -> None:
    """`gain` on the main diagonal of the whole, 0 elsewhere."""
    local.zero_()
    for row, rows in _placed(part.intervals[0]):
        for column, columns in _placed(part.intervals[1]):
            both = range(max(rows.start, columns.start), min(rows.stop, columns.stop))
            if both:
                top, left = row + both.start - rows.start, column + both.start - columns.start
                local[top : top + len(both), left : left + len(both)].diagonal().fill_(gain)


def fill_normal(out: Any, first: Any, seed: int, mean: float, std: float) -> None:
    """As in `numerics.philox_torch`, compiled where that can be; on one thread, as BLAS uses the others."""
    if not _numba_is_installed():
        _draw("fill_normal", seed, (mean, std), out, first)
        return
    from gradmark.numerics import fused

    with fused.serially():
        _draw("fill_normal", seed, (mean, std), out, first)


def gaussian(local: Any, part: Part, seed: int) -> None:
    """N(0, 1) of a part that is not empty, on one thread too."""
    _elements(local, part, lambda out, first: fill_normal(out, first, seed, 0.0, 1.0))


FILLS: dict[str, Callable[..., None]] = {
    "uniform": uniform,
    "normal": normal,
    "trunc_normal": trunc_normal,
    "constant": constant,
    "eye": eye,
}
"""The initializers that fill any part of a weight by itself."""


def _elements(local: Any, part: Part, draw: Callable[[Any, Any], None]) -> None:
    """Fill `local` with the elements of its part; `draw(out, first)` is a function of `numerics.philox_*`."""
    compute = functools.partial(_compute, runs(part), draw)
    # A subclass may keep its elements elsewhere.
    plain = type(local) is torch.Tensor and local.is_contiguous() and not local.is_neg()
    if plain and not (local.dtype in _HALF and local.device.type == "cpu"):
        compute(local.view(-1), 0)
        return
    piece = PIECE.get(local.device.type, PIECE["cuda"])
    dtype = torch.float32 if local.dtype in _HALF else local.dtype
    buffer = torch.empty(min(piece, local.numel()), dtype=dtype, device=local.device)
    for target, first in _pieces(local, piece):
        values = buffer[: target.numel()]
        compute(values, first)
        target.copy_(values.view(target.shape))


def _pieces(local: Any, size: int, first: int = 0) -> Iterator[tuple[Any, int]]:
    """Views of at most `size` elements that follow each other in the order of indices, and where each begins."""
    if local.numel() <= size:
        yield local, first
        return
    if local.is_contiguous():
        local = local.view(-1)
    inner = local.numel() // len(local)
    rows = max(1, size // inner)
    for begin in range(0, len(local), rows):
        if inner > size:
            yield from _pieces(local[begin], size, first + begin * inner)
        else:
            yield local[begin : begin + rows], first + begin * inner


def _compute(layout: Runs, draw: Callable[[Any, Any], None], out: Any, begin: int) -> None:
    """Fill the 1-d tensor `out` with the elements begin, begin + 1, ... of a part."""
    length = layout.length
    done = 0
    while done < out.numel():
        run, within = divmod(begin + done, length)
        count = min((out.numel() - done) // length, RUNS)
        if within or count <= 1:
            # A run, or what is asked for of it.
            size = min(length - within, out.numel() - done)
            draw(out[done : done + size], int(layout.first(run, run + 1)[0]) + within)
        else:
            size = count * length
            draw(out[done : done + size].view(count, length), torch.from_numpy(layout.first(run, run + count)))
        done += size


def _draw(fill: str, seed: int, arguments: tuple[float, ...], out: Any, first: Any) -> None:
    """Elements from `first` on, or for each row of a 2-d `out` from its own: compiled where that can be."""
    if out.device.type == "cpu" and out.dtype not in _HALF and _numba_is_installed():
        from gradmark.numerics import philox_numba

        first = first if isinstance(first, int) else first.numpy()
        getattr(philox_numba, fill)(out.numpy(), first, seed, *arguments)
    else:
        getattr(philox_torch, fill)(out, first, seed, *arguments)


@functools.cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def _placed(intervals: tuple[range, ...]) -> Iterator[tuple[int, range]]:
    """Each interval of global indices, and the local index at which it begins."""
    begin = 0
    for interval in intervals:
        yield begin, interval
        begin += len(interval)
