"""The stream of `numerics.philox` in PyTorch: 64-bit integer arithmetic on the device of the result.

PyTorch's unsigned 64-bit integers lack most operations, so words are held in int64. A product of two words wraps to
a negative number there, and `>>` copies the sign; the mask after it leaves the upper 32 bits of the product.

What is filled is a 1-d tensor and `first` an int; or a 2-d tensor whose rows are runs, and `first` an int64 tensor of
the first element of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, chunks, interval, key, truncation
from gradmark.numerics.philox_transforms import transforms

Function = Callable[..., Any]

CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}
"""Blocks at a time, by type of device: an array of a chunk is 128 KiB, to stay in cache, or 32 MiB, to fill a GPU."""

_MASK = 0xFFFFFFFF


def fill_uniform(out: Any, first: Any, seed: int, low: float, high: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of U(low, high)."""
    start, span, last = interval(low, high, "float64" if out.dtype == torch.float64 else "float32")
    per_block, uniform = (2, _uniform_64) if out.dtype == torch.float64 else (4, _uniform_32)
    _fill(out, first, seed, per_block, lambda words: uniform(words).mul_(span).add_(start).clamp_(max=last))


def fill_normal(out: Any, first: Any, seed: int, mean: float, std: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²)."""
    double = out.dtype == torch.float64
    scale, centre = (std, mean) if double else (float(np.float32(std)), float(np.float32(mean)))
    per_block, normal = (2, _normal_64) if double else (4, _normal_32)
    # Two steps: what a kernel that fuses them would round once.
    _fill(out, first, seed, per_block, lambda words: normal(words).mul_(scale).add_(centre))


def fill_truncated_normal(out: Any, first: Any, seed: int, mean: float, std: float, a: float, b: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²) within [a, b]."""
    t = truncation(mean, std, a, b, str(out.dtype).removeprefix("torch."))
    double = out.dtype == torch.float64
    single = t.near and not double
    transform = _truncated_single if single else _truncated_near if t.near else _truncated
    numbers: tuple[float, ...] = (*t.low, *t.high, std, mean)
    if single:
        numbers = tuple(float(np.float32(number)) for number in numbers)
    below_low, above_low, below_high, above_high, scale, centre = numbers
    per_block, ends = (2, _ends_64) if double else (4, _ends_single if single else _ends_32)

    def elements(words: Any) -> Any:
        z = transform(*ends(words), (below_low, above_low), (below_high, above_high))
        z = z.mul_(scale).add_(centre).clamp_(t.first, t.last)
        # Through float32 for float16 and bfloat16, whose elements are defined so.
        return z if double else z.to(torch.float32)

    _fill(out, first, seed, per_block, elements)


def fill_gumbel(out: Any, first: Any, seed: int) -> None:
    """Fill `out` with the elements first, first + 1, ... of Gumbel(0, 1)."""
    double = out.dtype == torch.float64
    per_block, inside = (2, _inside_64) if double else (4, _inside_32)

    def elements(words: Any) -> Any:
        v = inside(words).log_().neg_().log_().neg_()
        # Through float32 for float16 and bfloat16, whose elements are defined so.
        return v if double else v.to(torch.float32)

    _fill(out, first, seed, per_block, elements)


def block(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of the counters (c0, c1, c2, c3): 32-bit words in int64 tensors."""
    for step in range(ROUNDS):
        p0 = c0 * M0
        p1 = c2 * M1
        x0 = ((p1 >> 32) & _MASK) ^ c1 ^ ((k0 + step * W0) & _MASK)
        x2 = ((p0 >> 32) & _MASK) ^ c3 ^ ((k1 + step * W1) & _MASK)
        c0, c1, c2, c3 = x0, p1 & _MASK, x2, p0 & _MASK
    return c0, c1, c2, c3


def _fill(out: Any, first: Any, seed: int, per_block: int, elements: Function) -> None:
    if out.ndim == 2:
        _fill_runs(out, first, seed, per_block, elements)
        return
    for block_index, count, target, source in chunks(first, out.numel(), per_block, _chunk(out.device)):
        index = torch.arange(block_index, block_index + count, dtype=torch.int64, device=out.device)
        out[target] = elements(_words(index, seed))[source]


def _fill_runs(out: Any, first: Any, seed: int, per_block: int, elements: Function) -> None:
    runs, length = out.shape
    # A run may begin and end within a block.
    blocks = (length + per_block - 2) // per_block + 1
    at_once = _chunk(out.device) // blocks
    if at_once == 0:
        for run, start in zip(out, first.tolist(), strict=True):
            _fill(run, start, seed, per_block, elements)
        return
    of_a_run = torch.arange(blocks, dtype=torch.int64, device=out.device)
    within = torch.arange(length, dtype=torch.int64, device=out.device)
    for begin in range(0, runs, at_once):
        start = first[begin : begin + at_once].to(out.device).unsqueeze(1)
        words = _words((start // per_block + of_a_run).reshape(-1), seed)
        found = elements(words).view(len(start), blocks * per_block)
        out[begin : begin + at_once] = found.gather(1, start % per_block + within)


def _chunk(device: Any) -> int:
    return CHUNK.get(device.type, CHUNK["cuda"])


def _words(index: Any, seed: int) -> Any:
    """The words of the blocks of these indices, (4, number of indices), int64."""
    zero = torch.zeros_like(index)
    return torch.stack(block(index & _MASK, index >> 32, zero, zero, *key(seed)))


def _uniform_32(words: Any) -> Any:
    """u in [0, 1), float32, in the order of the stream."""
    return (words.T.reshape(-1) >> 8).to(torch.float32).mul_(2.0**-24)


def _uniform_64(words: Any) -> Any:
    """u in [0, 1), float64, in the order of the stream."""
    return _53_bits(words[0::2], words[1::2]).T.reshape(-1).to(torch.float64).mul_(2.0**-53)


def _inside_32(words: Any) -> Any:
    """v in (0, 1) of a Gumbel variate for float32, in float64, in the order of the stream."""
    return (2 * words.T.reshape(-1) + 1).to(torch.float64).mul_(2.0**-33)


def _inside_64(words: Any) -> Any:
    """v in (0, 1) of a Gumbel variate for float64, in the order of the stream."""
    return (_53_bits(words[0::2], words[1::2]) | 1).T.reshape(-1).to(torch.float64).mul_(2.0**-53)


def _sqrt(x: Any) -> Any:
    # On CPUs with AVX2, a fifth of torch.sqrt's float32 results are not correctly rounded.
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else torch.sqrt(x)


class _Arithmetic:
    """The primitives of `philox_transforms`."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        real, integer = (torch.float32, torch.int32) if dtype == "float32" else (torch.float64, torch.int64)
        self.sqrt: Function = _sqrt
        self.select: Function = torch.where
        self.as_bits: Function = lambda x: x.view(integer)
        self.as_real: Function = lambda bits: bits.view(real)
        self.from_integer: Function = lambda k: k.to(real)

    def real(self, value: float) -> float:
        """A constant of the dtype: beside a tensor, Python's float is one."""
        return float(np.float32(value)) if self.dtype == "float32" else value

    def integer(self, value: int) -> int:
        """A constant of the integer type that is as wide as the dtype."""
        return value

    def function(self, definition: Function) -> Function:
        """`definition` as it is."""
        return definition


_normal_pair_32 = transforms(_Arithmetic("float32")).normal_pair
_normal_pair_64 = transforms(_Arithmetic("float64")).normal_pair
_truncated_single = transforms(_Arithmetic("float32")).truncated_near
_truncated = transforms(_Arithmetic("float64")).truncated
_truncated_near = transforms(_Arithmetic("float64")).truncated_near


def _ends_single(words: Any) -> tuple[Any, Any]:
    """u and 1 - u for a truncated normal in float32."""
    h = (words.T.reshape(-1) >> 1) | 1
    return h.to(torch.float32).mul_(2.0**-31), ((1 << 31) - h).to(torch.float32).mul_(2.0**-31)


def _ends_32(words: Any) -> tuple[Any, Any]:
    """v and 1 - v for a truncated normal that is rounded to float32."""
    v = _inside_32(words)
    return v, 1.0 - v


def _ends_64(words: Any) -> tuple[Any, Any]:
    """v and 1 - v for a truncated normal in float64."""
    v = _inside_64(words)
    return v, 1.0 - v


def _normal_32(words: Any) -> Any:
    """Standard normals, float32, in the order of the stream."""
    u = ((words[0::2] >> 1) | 1).to(torch.float32).mul_(2.0**-31)
    turned = words[1::2] + (1 << 29)
    t = ((turned & ((1 << 30) - 1)) - (1 << 29)).to(torch.float32).mul_(2.0**-30)
    (z0, z2), (z1, z3) = _normal_pair_32(u, ((turned >> 30) & 3).to(torch.int32), t)
    return torch.stack((z0, z1, z2, z3), dim=1).reshape(-1)


def _normal_64(words: Any) -> Any:
    """Standard normals, float64, in the order of the stream."""
    u = (_53_bits(words[0], words[1]) | 1).to(torch.float64).mul_(2.0**-53)
    turned = _53_bits(words[2], words[3]) + (1 << 50)
    t = (turned & ((1 << 51) - 1)).to(torch.float64).mul_(2.0**-51).sub_(0.5)
    return torch.stack(_normal_pair_64(u, (turned >> 51) & 3, t), dim=1).reshape(-1)


def _53_bits(a: Any, b: Any) -> Any:
    return ((a >> 5) << 26) + (b >> 6)
