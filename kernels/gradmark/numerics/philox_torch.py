"""The stream of `numerics.philox` in PyTorch: 64-bit integer arithmetic on the device of the result.

PyTorch's unsigned 64-bit integers lack most operations, so words are held in int64. A product of two words wraps to
a negative number there, and `>>` copies the sign; the mask after it leaves the upper 32 bits of the product.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, chunks, interval, key

CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}
"""Blocks at a time, by type of device: an array of a chunk is 128 KiB, to stay in cache, or 32 MiB, to fill a GPU."""

_MASK = 0xFFFFFFFF


def fill_uniform(out: Any, first: int, seed: int, low: float, high: float) -> None:
    """Fill the 1-d tensor `out` with the elements first, first + 1, ... of U(low, high)."""
    start, span, last = interval(low, high, "float64" if out.dtype == torch.float64 else "float32")
    per_block, uniform = (2, _uniform_64) if out.dtype == torch.float64 else (4, _uniform_32)
    for block_index, count, target, source in chunks(first, out.numel(), per_block, _chunk(out.device)):
        u = uniform(_words(block_index, count, seed, out.device))
        u.mul_(span).add_(start).clamp_(max=last)
        out[target] = u[source]


def _chunk(device: Any) -> int:
    return CHUNK.get(device.type, CHUNK["cuda"])


def fill_normal(out: Any, first: int, seed: int, mean: float, std: float) -> None:
    """Fill the 1-d tensor `out` with the elements first, first + 1, ... of N(mean, std²)."""
    double = out.dtype == torch.float64
    per_block, normal = (2, _normal_64) if double else (4, _normal_32)
    for block_index, count, target, source in chunks(first, out.numel(), per_block, _chunk(out.device)):
        z = normal(_words(block_index, count, seed, out.device)).mul_(std).add_(mean)[source]
        # Through float32 for float16 and bfloat16, whose elements are defined so.
        out[target] = z if double else z.to(torch.float32)


def fill_gumbel(out: Any, first: int, seed: int) -> None:
    """Fill the 1-d tensor `out` with the elements first, first + 1, ... of Gumbel(0, 1)."""
    double = out.dtype == torch.float64
    per_block, inside = (2, _inside_64) if double else (4, _inside_32)
    for block_index, count, target, source in chunks(first, out.numel(), per_block, _chunk(out.device)):
        v = inside(_words(block_index, count, seed, out.device)).log_().neg_().log_().neg_()[source]
        # Through float32 for float16 and bfloat16, whose elements are defined so.
        out[target] = v if double else v.to(torch.float32)


def box_muller(u1: Any, u2: Any) -> tuple[Any, Any]:
    """Two independent standard normals from u1 in (0, 1] and u2 in [0, 1), float64."""
    radius = torch.sqrt(-2.0 * torch.log(u1))
    angle = (2.0 * math.pi) * u2
    return radius * torch.cos(angle), radius * torch.sin(angle)


def block(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of the counters (c0, c1, c2, c3): 32-bit words in int64 tensors."""
    for step in range(ROUNDS):
        p0 = c0 * M0
        p1 = c2 * M1
        x0 = ((p1 >> 32) & _MASK) ^ c1 ^ ((k0 + step * W0) & _MASK)
        x2 = ((p0 >> 32) & _MASK) ^ c3 ^ ((k1 + step * W1) & _MASK)
        c0, c1, c2, c3 = x0, p1 & _MASK, x2, p0 & _MASK
    return c0, c1, c2, c3


def _words(block_index: int, count: int, seed: int, device: Any) -> Any:
    """The words of `count` blocks, (4, count), int64."""
    index = torch.arange(block_index, block_index + count, dtype=torch.int64, device=device)
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


def _normal_32(words: Any) -> Any:
    """Standard normals for float32, in float64, in the order of the stream."""
    u1 = (words[0::2] + 1).to(torch.float64).mul_(2.0**-32)
    u2 = words[1::2].to(torch.float64).mul_(2.0**-32)
    (z0, z2), (z1, z3) = box_muller(u1, u2)
    return torch.stack((z0, z1, z2, z3), dim=1).reshape(-1)


def _normal_64(words: Any) -> Any:
    """Standard normals for float64, in the order of the stream."""
    u1 = (_53_bits(words[0], words[1]) + 1).to(torch.float64).mul_(2.0**-53)
    u2 = _53_bits(words[2], words[3]).to(torch.float64).mul_(2.0**-53)
    return torch.stack(box_muller(u1, u2), dim=1).reshape(-1)


def _53_bits(a: Any, b: Any) -> Any:
    return ((a >> 5) << 26) + (b >> 6)
