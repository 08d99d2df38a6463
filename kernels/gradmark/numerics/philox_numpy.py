"""The stream of `numerics.philox` in NumPy: 64-bit integer arithmetic on chunks that stay in cache.

What is filled is a 1-d array and `first` an int; or a 2-d array whose rows are runs, and `first` an int64 array of the
first element of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics.evaluate import NumpyArithmetic
from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, chunks, interval, key, truncation
from gradmark.numerics.philox_transforms import transforms

Function = Callable[..., Any]

CHUNK = 1 << 13
"""Blocks at a time: where they are an eighth of that, the calls of NumPy take as long as the arithmetic. Two threads
that share the chunks are slower than one: each call would hand the GIL over."""

# Once in a process. glibc returns freed memory from 128 KiB on to the system, until a larger array was freed: then it
# keeps twice as much. Else each chunk's intermediate results come as new pages, for two to three times the time.
np.empty(8 << 20, np.uint8)

_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def fill_uniform(out: Any, first: Any, seed: int, low: float, high: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of U(low, high)."""
    dtype = _computed_in(out)
    start, span, last = (dtype.type(value) for value in interval(low, high, dtype.name))
    per_block, uniform = (2, _uniform_64) if dtype == np.float64 else (4, _uniform_32)

    def elements(words: Any) -> Any:
        u = uniform(words)
        u *= span
        u += start
        return np.minimum(u, last, out=u)

    _fill(out, first, seed, per_block, elements)


def fill_normal(out: Any, first: Any, seed: int, mean: float, std: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²)."""
    dtype = _computed_in(out)
    per_block, normal = (2, _normal_64) if dtype == np.float64 else (4, _normal_32)

    def elements(words: Any) -> Any:
        z = normal(words)
        z *= dtype.type(std)
        z += dtype.type(mean)
        return z

    _fill(out, first, seed, per_block, elements)


def fill_truncated_normal(out: Any, first: Any, seed: int, mean: float, std: float, a: float, b: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²) within [a, b]."""
    t = truncation(mean, std, a, b, out.dtype.name)
    dtype = _computed_in(out)
    single = t.near and dtype == np.float32
    real: Any = np.float32 if single else np.float64
    transform = _truncated_single if single else _truncated_near if t.near else _truncated
    low, high = (tuple(map(real, tails)) for tails in (t.low, t.high))
    per_block, ends = (2, _ends_64) if dtype == np.float64 else (4, _ends_single if single else _ends_32)

    def elements(words: Any) -> Any:
        z = transform(*ends(words), low, high)
        z *= real(std)
        z += real(mean)
        # Through float32 for float16, whose elements are defined so.
        return np.clip(z, t.first, t.last, out=z).astype(dtype, copy=False)

    _fill(out, first, seed, per_block, elements)


def fill_gumbel(out: Any, first: Any, seed: int) -> None:
    """Fill `out` with the elements first, first + 1, ... of Gumbel(0, 1)."""
    dtype = _computed_in(out)
    per_block, inside = (2, _inside_64) if dtype == np.float64 else (4, _inside_32)

    def elements(words: Any) -> Any:
        v = inside(words)
        np.log(v, out=v)
        np.negative(v, out=v)
        np.log(v, out=v)
        return np.negative(v, out=v).astype(dtype, copy=False)

    _fill(out, first, seed, per_block, elements)


def block(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of the counters (c0, c1, c2, c3): 32-bit words in uint64 arrays."""
    words = np.stack((c0, c1, c2, c3))
    _encrypt(words, k0, k1, np.empty_like(words[:2]))
    return words[0], words[1], words[2], words[3]


def _fill(out: Any, first: Any, seed: int, per_block: int, elements: Function) -> None:
    if out.ndim == 2:
        for run, start in zip(out, first, strict=True):
            _fill(run, int(start), seed, per_block, elements)
        return
    scratch = np.empty((6, min(CHUNK, out.size // per_block + 2)), np.uint64)
    for block_index, count, target, source in chunks(first, out.size, per_block, CHUNK):
        out[target] = elements(_words(block_index, count, seed, scratch))[source]


def _words(block_index: int, count: int, seed: int, scratch: Any = None) -> Any:
    """The words of `count` blocks, (4, count), uint64; in `scratch`, (6, count) or wider, where it is given."""
    scratch = np.empty((6, count), np.uint64) if scratch is None else scratch[:, :count]
    words = scratch[:4]
    index = np.arange(block_index, block_index + count, dtype=np.uint64)
    np.bitwise_and(index, _MASK, out=words[0])
    np.right_shift(index, _32, out=words[1])
    words[2:] = 0
    _encrypt(words, *key(seed), scratch[4:])
    return words


def _encrypt(words: Any, k0: int, k1: int, products: Any) -> None:
    """The rounds of Philox4x32-10, in place: new arrays for each step took as long again as the arithmetic."""
    c0, c1, c2, c3 = words
    p0, p1 = products
    m0, m1 = np.uint64(M0), np.uint64(M1)
    for step in range(ROUNDS):
        np.multiply(c0, m0, out=p0)
        np.multiply(c2, m1, out=p1)
        np.right_shift(p1, _32, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, np.uint64((k0 + step * W0) & 0xFFFFFFFF), out=c0)
        np.right_shift(p0, _32, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, np.uint64((k1 + step * W1) & 0xFFFFFFFF), out=c2)
        np.bitwise_and(p1, _MASK, out=c1)
        np.bitwise_and(p0, _MASK, out=c3)


def _uniform_32(words: Any) -> Any:
    """u in [0, 1), float32, in the order of the stream."""
    words = words.astype(np.uint32).T.reshape(-1)
    words >>= np.uint32(8)
    return _scaled(words, 2.0**-24)


def _uniform_64(words: Any) -> Any:
    """u in [0, 1), float64, in the order of the stream."""
    return _53_bits(words[0::2], words[1::2]).T.reshape(-1).astype(np.float64) * 2.0**-53


def _inside_32(words: Any) -> Any:
    """v in (0, 1) of a Gumbel variate for float32, in float64, in the order of the stream."""
    return (2 * words.T.reshape(-1) + np.uint64(1)).astype(np.float64) * 2.0**-33


def _inside_64(words: Any) -> Any:
    """v in (0, 1) of a Gumbel variate for float64, in the order of the stream."""
    return (_53_bits(words[0::2], words[1::2]) | np.uint64(1)).T.reshape(-1).astype(np.float64) * 2.0**-53


class _Arithmetic(NumpyArithmetic):
    """The primitives of `philox_transforms`."""

    sqrt = staticmethod(np.sqrt)


_normal_pair_32 = transforms(_Arithmetic("float32")).normal_pair
_normal_pair_64 = transforms(_Arithmetic("float64")).normal_pair
_truncated_single = transforms(_Arithmetic("float32")).truncated_near
_truncated = transforms(_Arithmetic("float64")).truncated
_truncated_near = transforms(_Arithmetic("float64")).truncated_near


def _ends_single(words: Any) -> tuple[Any, Any]:
    """u and 1 - u for a truncated normal in float32."""
    h = words.astype(np.uint32).T.reshape(-1)
    h >>= np.uint32(1)
    h |= np.uint32(1)
    return _scaled(h, 2.0**-31), _scaled(np.uint32(1 << 31) - h, 2.0**-31)


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
    words = words.astype(np.uint32)
    u = words[0::2] >> np.uint32(1)
    u |= np.uint32(1)
    quadrant = words[1::2] + np.uint32(1 << 29)
    t = (quadrant & np.uint32((1 << 30) - 1)).view(np.int32)
    t -= np.int32(1 << 29)
    quadrant >>= np.uint32(30)
    (z0, z2), (z1, z3) = _normal_pair_32(_scaled(u, 2.0**-31), quadrant.view(np.int32), _scaled(t, 2.0**-30))
    return np.stack((z0, z1, z2, z3), axis=1).reshape(-1)


def _scaled(words: Any, unit: float) -> Any:
    """32-bit words below 2³¹, in units, float32. Of integers, only signed ones of 32 bits become floats in vectors."""
    x = words.view(np.int32).astype(np.float32)
    x *= np.float32(unit)
    return x


def _normal_64(words: Any) -> Any:
    """Standard normals, float64, in the order of the stream."""
    u = (_53_bits(words[0], words[1]) | np.uint64(1)).astype(np.float64) * 2.0**-53
    turned = _53_bits(words[2], words[3]) + np.uint64(1 << 50)
    t = (turned & np.uint64((1 << 51) - 1)).astype(np.float64) * 2.0**-51 - 0.5
    quadrant = (turned >> np.uint64(51)).astype(np.int64) & np.int64(3)
    return np.stack(_normal_pair_64(u, quadrant, t), axis=1).reshape(-1)


def _53_bits(a: Any, b: Any) -> Any:
    return ((a >> np.uint64(5)) << np.uint64(26)) + (b >> np.uint64(6))


def _computed_in(out: Any) -> Any:
    return np.dtype(np.float64 if out.dtype == np.float64 else np.float32)
