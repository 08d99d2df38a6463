"""The stream of `numerics.philox` in NumPy: 64-bit integer arithmetic on chunks that stay in cache.

What is filled is a 1-d array and `first` an int; or a 2-d array whose rows are runs, and `first` an int64 array of the
first element of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradmark.numerics.evaluate import NumpyArithmetic
from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, chunks, interval, key, truncation
from gradmark.numerics.philox_transforms import transforms

Function = Callable[..., Any]

SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 13, 1 << 15
"""Blocks at a time: where they are an eighth of the smaller, the calls of NumPy take as long as the arithmetic. Two
threads that share the chunks are slower than one: each call would hand the GIL over."""
CHUNKS = 80
"""In how many a large result is filled. What truncated normals take meanwhile is twenty times their part of it."""

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
    even, odd = np.stack((c0, c2)), np.stack((c1, c3))
    _encrypt(even, odd, np.empty_like(even), range(ROUNDS), k0, k1)
    return even[0], odd[0], even[1], odd[1]


def _fill(out: Any, first: Any, seed: int, per_block: int, elements: Function) -> None:
    if out.ndim == 2:
        for run, start in zip(out, first, strict=True):
            _fill(run, int(start), seed, per_block, elements)
        return
    chunk = min(max(out.size // per_block // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
    scratch = np.empty(6 * min(chunk, out.size // per_block + 2), np.uint64)
    for block_index, count, target, source in chunks(first, out.size, per_block, chunk):
        out[target] = elements(_words(block_index, count, seed, scratch))[source]


class Words(NamedTuple):
    """The words of blocks, uint64, each (2, blocks): those that are computed together lie side by side in memory."""

    even: Any
    """The first and the third."""
    odd: Any
    """The second and the fourth."""


def _words(first: int, count: int, seed: int, scratch: Any = None) -> Words:
    """The words of the blocks first, first + 1, ...; in `scratch`, of 6 `count` elements or more, where it is given."""
    before = -first % (1 << 32)
    if 0 < before < count:
        # The second word of the counter changes here.
        low, high = _words(first, before, seed), _words(first + before, count - before, seed)
        return Words(*(np.concatenate(both, axis=1) for both in zip(low, high, strict=True)))
    scratch = np.empty(6 * count, np.uint64) if scratch is None else scratch[: 6 * count]
    even, odd, products = scratch.reshape(3, 2, count)
    k0, k1 = key(seed)
    _encrypt_twice(first, even, odd, products, k0, k1)
    _encrypt(even, odd, products, range(2, ROUNDS), k0, k1)
    return Words(even, odd)


def _encrypt_twice(first: int, even: Any, odd: Any, products: Any, k0: int, k1: int) -> None:
    """Two rounds, of the counters (first, first + 1, ...; c1; 0; 0), of which most words are the same in all blocks."""
    (c0, c2), (c1, c3), (p0, _) = even, odd, products
    low, high = first & 0xFFFFFFFF, first >> 32
    np.multiply(np.arange(low, low + c0.size, dtype=np.uint64), np.uint64(M0), out=p0)
    np.right_shift(p0, _32, out=c2)
    np.bitwise_xor(c2, np.uint64(k1), out=c2)
    np.bitwise_and(p0, _MASK, out=c3)
    product = (high ^ k0) * M0
    k0, k1 = _round_key(k0, 1, W0), _round_key(k1, 1, W1)
    np.multiply(c2, np.uint64(M1), out=p0)
    np.right_shift(p0, _32, out=c0)
    np.bitwise_xor(c0, np.uint64(k0), out=c0)
    np.bitwise_and(p0, _MASK, out=c1)
    np.bitwise_xor(c3, np.uint64((product >> 32) ^ k1), out=c2)
    c3[...] = product & 0xFFFFFFFF


def _encrypt(even: Any, odd: Any, products: Any, rounds: range, k0: int, k1: int) -> None:
    """These rounds of Philox4x32-10, in place: new arrays for each step took as long again as the arithmetic.

    Two words at once where they lie side by side: a call takes a good part of the time of what it computes.
    """
    (c0, c2), (p1, p0) = even, products
    m0, m1 = np.uint64(M0), np.uint64(M1)
    for step in rounds:
        np.multiply(c2, m1, out=p1)
        np.multiply(c0, m0, out=p0)
        np.right_shift(products, _32, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(c0, np.uint64(_round_key(k0, step, W0)), out=c0)
        np.bitwise_xor(c2, np.uint64(_round_key(k1, step, W1)), out=c2)
        np.bitwise_and(products, _MASK, out=odd)


def _round_key(k: int, step: int, increment: int) -> int:
    return (k + step * increment) & 0xFFFFFFFF


def _in_order(words: Words) -> Any:
    """The words in the order of the stream, uint32."""
    ordered = np.empty((words.even.shape[1], 4), np.uint32)
    ordered[:, 0::2], ordered[:, 1::2] = words.even.T, words.odd.T
    return ordered.reshape(-1)


def _uniform_32(words: Words) -> Any:
    """u in [0, 1), float32, in the order of the stream."""
    ordered = _in_order(words)
    ordered >>= np.uint32(8)
    return _scaled(ordered, 2.0**-24)


def _uniform_64(words: Words) -> Any:
    """u in [0, 1), float64, in the order of the stream."""
    return _53_bits(*words).T.reshape(-1).astype(np.float64) * 2.0**-53


def _inside_32(words: Words) -> Any:
    """v in (0, 1) of a Gumbel variate for float32, in float64, in the order of the stream."""
    v = _in_order(words).astype(np.float64)
    v *= 2.0
    v += 1.0
    v *= 2.0**-33
    return v


def _inside_64(words: Words) -> Any:
    """v in (0, 1) of a Gumbel variate for float64, in the order of the stream."""
    return (_53_bits(*words) | np.uint64(1)).T.reshape(-1).astype(np.float64) * 2.0**-53


class _Arithmetic(NumpyArithmetic):
    """The primitives of `philox_transforms`."""

    sqrt = staticmethod(np.sqrt)


_normal_pair_32 = transforms(_Arithmetic("float32")).normal_pair
_normal_pair_64 = transforms(_Arithmetic("float64")).normal_pair
_truncated_single = transforms(_Arithmetic("float32")).truncated_near
_truncated = transforms(_Arithmetic("float64")).truncated
_truncated_near = transforms(_Arithmetic("float64")).truncated_near


def _ends_single(words: Words) -> tuple[Any, Any]:
    """u and 1 - u for a truncated normal in float32."""
    h = _in_order(words)
    h >>= np.uint32(1)
    h |= np.uint32(1)
    return _scaled(h, 2.0**-31), _scaled(np.uint32(1 << 31) - h, 2.0**-31)


def _ends_32(words: Words) -> tuple[Any, Any]:
    """v and 1 - v for a truncated normal that is rounded to float32."""
    v = _inside_32(words)
    return v, 1.0 - v


def _ends_64(words: Words) -> tuple[Any, Any]:
    """v and 1 - v for a truncated normal in float64."""
    v = _inside_64(words)
    return v, 1.0 - v


def _normal_32(words: Words) -> Any:
    """Standard normals, float32, in the order of the stream."""
    u, quadrant = words.even.astype(np.uint32), words.odd.astype(np.uint32)
    u >>= np.uint32(1)
    u |= np.uint32(1)
    quadrant += np.uint32(1 << 29)
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


def _normal_64(words: Words) -> Any:
    """Standard normals, float64, in the order of the stream."""
    (w0, w2), (w1, w3) = words
    u = (_53_bits(w0, w1) | np.uint64(1)).astype(np.float64) * 2.0**-53
    turned = _53_bits(w2, w3) + np.uint64(1 << 50)
    t = (turned & np.uint64((1 << 51) - 1)).astype(np.float64) * 2.0**-51 - 0.5
    quadrant = (turned >> np.uint64(51)).astype(np.int64) & np.int64(3)
    return np.stack(_normal_pair_64(u, quadrant, t), axis=1).reshape(-1)


def _53_bits(a: Any, b: Any) -> Any:
    return ((a >> np.uint64(5)) << np.uint64(26)) + (b >> np.uint64(6))


def _computed_in(out: Any) -> Any:
    return np.dtype(np.float64 if out.dtype == np.float64 else np.float32)
