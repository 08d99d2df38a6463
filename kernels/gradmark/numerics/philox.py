"""The random numbers of gradmark: what element i of the stream with a given seed is, whatever computes it.

Words come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, doi:10.1145/2063384.2063405). A block is its
four 32-bit words for one counter:

    key = (seed mod 2^32, seed div 2^32)         counter = (block mod 2^32, block div 2^32, 0, 0)

An element depends on the seed and on its global index i alone, so any part of a result can be computed by itself,
in any order, by any number of threads, and on any device. In float32 an element takes one word, in float64 two
(the 53-bit number v of the words a, b is (a >> 5) 2^26 + (b >> 6)):

    float32     block = i div 4, word w = block[i mod 4]                u = (w >> 8) 2^-24
    float64     block = i div 2, words a, b = block[2 (i mod 2)], next  u = v 2^-53

U(low, high): min(low + (high - low) u, the float before high), every operation rounded once in the dtype of the
result. N(mean, std²): Box, Muller, Ann. Math. Stat. 29, 1958, on the pair of elements (2j, 2j + 1), whose
words give u1 in (0, 1] and u2 in [0, 1), all in float64 and rounded once at the end:

    float32     u1 = (w + 1) 2^-32, u2 = w' 2^-32       float64     u1 = (v + 1) 2^-53, u2 = v' 2^-53
    (mean + std r cos 2πu2, mean + std r sin 2πu2),     r = √(-2 ln u1)

Gumbel(0, 1): -ln(-ln v) with v in (0, 1), in float64 and rounded once at the end. Neither end of the interval is hit,
so that every result is finite:

    float32     v = (2 w + 1) 2^-33                     float64     v = (v' | 1) 2^-53, v' the 53-bit number

float16 and bfloat16 results are the float32 ones, rounded. `philox_numpy`, `philox_numba` and `philox_torch` compute
this stream with the same five functions: `block`, `fill_uniform`, `fill_normal`, `fill_gumbel`, `box_muller`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

ROUNDS = 10
M0, M1 = 0xD2511F53, 0xCD9E8D57
"""The multipliers of the first and the third word of the counter (Salmon et al. 2011, section 3.3)."""
W0, W1 = 0x9E3779B9, 0xBB67AE85
"""What is added to the two words of the key after a round: the golden ratio's and √3's fractions (ibid.)."""

LARGEST_NORMAL = {"float32": math.sqrt(2 * 32 * math.log(2)), "float64": math.sqrt(2 * 53 * math.log(2))}
"""The largest |z| of a standard normal: u1 is 2^-32 or 2^-53 (6.66 and 8.57)."""


def check_seed(seed: Any) -> int:
    """`seed` as an int; TypeError or ValueError unless it is one with 0 <= seed < 2**64."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed must be an int with 0 <= seed < 2**64, got {seed!r} of type {type(seed).__name__}")
    if not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be an int with 0 <= seed < 2**64, got {seed!r}")
    return int(seed)


def key(seed: int) -> tuple[int, int]:
    """The two words of the key of `seed`, 0 <= seed < 2^64."""
    return seed & 0xFFFFFFFF, seed >> 32


def interval(low: float, high: float, dtype: str) -> tuple[float, float, float]:
    """What U(low, high) needs in float32 or float64: low, high - low, and the last float before high.

    Each is rounded to `dtype`. Where low and high are one float of it, that float is the only result.
    """
    scalar = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        first, end = scalar(low), scalar(high)
        return float(first), float(end - first), float(np.nextafter(end, first))


def chunks(first: int, size: int, per_block: int, blocks: int) -> Iterator[tuple[int, int, slice, slice]]:
    """The blocks that hold the elements first, first + 1, ..., in chunks.

    Yields
    ------
    block, count : int
        The chunk is `count` <= `blocks` blocks from `block` on.
    target, source : slice
        Where its elements go in a result of `size` elements, and which of its elements these are: the first and
        the last block may hold elements that are not asked for.
    """
    end = first + size
    for block in range(first // per_block, -(-end // per_block), blocks):
        count = min(blocks, -(-end // per_block) - block)
        begin = max(block * per_block, first)
        stop = min((block + count) * per_block, end)
        offset = block * per_block
        yield block, count, slice(begin - first, stop - first), slice(begin - offset, stop - offset)
