"""The random numbers of gradmark: what element i of the stream with a given seed is, whatever computes it.

Words come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, doi:10.1145/2063384.2063405). A block is its
four 32-bit words for one counter:

    key = (seed mod 2^32, seed div 2^32)         counter = (block mod 2^32, block div 2^32, 0, 0)

An element depends on the seed and on its global index i alone, so any part of a result can be computed by itself,
in any order, by any number of threads, and on any device. A named stream has a seed of its own (`stream_seed`): eight
bytes of BLAKE2b (RFC 7693) of the name in UTF-8, keyed with the eight bytes of the seed, both little-endian. So what
another name is drawn for, and in what order, changes nothing. In float32 an element takes one word, in float64 two
(the 53-bit number v of the words a, b is (a >> 5) 2^26 + (b >> 6)):

    float32     block = i div 4, word w = block[i mod 4]                u = (w >> 8) 2^-24
    float64     block = i div 2, words a, b = block[2 (i mod 2)], next  u = v 2^-53

U(low, high): min(low + (high - low) u, the float before high), every operation rounded once in the dtype of the
result. N(mean, std²): Box, Muller, Ann. Math. Stat. 29, 1958, on the pair of elements (2j, 2j + 1), whose words w, w'
(or 53-bit numbers v, v') give the radius and the angle. Where it says so, a number is rounded to the dtype:

    float32     u = rounded((w >> 1) | 1) 2^-31     h = w' + 2^29 mod 2^32     quadrant = h div 2^30
                                                    t = rounded(h mod 2^30 - 2^29) 2^-30
    float64     u = (v | 1) 2^-53                   h = v' + 2^50 mod 2^53     quadrant = h div 2^51
                                                    t = (h mod 2^51 - 2^50) 2^-51

    (mean + std r cos θ, mean + std r sin θ),       r = √(-2 ln u),  θ = (quadrant + t) π/2

The logarithm, the sine and the cosine are those of `philox_transforms`, in the dtype of the result: the bits are the
same everywhere. The result errs by a few ULP of std r.

N(mean, std²) within [a, b]: the inverse of its distribution function, by `philox_transforms` too, and not beyond the
floats next to a and b inside of [a, b]. For float32 it is computed in float32 at u = rounded((w >> 1) | 1) 2^-31,
where no tail is very small; else in float64, at the v in (0, 1) of Gumbel below, and rounded once at the end.

Gumbel(0, 1): -ln(-ln v) with v in (0, 1), in float64 and rounded once at the end. Neither end of the interval is hit,
so that every result is finite:

    float32     v = (2 w + 1) 2^-33                     float64     v = (v' | 1) 2^-53, v' the 53-bit number

float16 and bfloat16 results are the float32 ones, rounded. `philox_numpy`, `philox_numba` and `philox_torch` compute
this stream with the same functions: `block`, `fill_uniform`, `fill_normal`, `fill_truncated_normal`, `fill_gumbel`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gradmark.numerics.philox_transforms import NEAR

ROUNDS = 10
M0, M1 = 0xD2511F53, 0xCD9E8D57
"""The multipliers of the first and the third word of the counter (Salmon et al. 2011, section 3.3)."""
W0, W1 = 0x9E3779B9, 0xBB67AE85
"""What is added to the two words of the key after a round: the golden ratio's and √3's fractions (ibid.)."""

LARGEST_NORMAL = {"float32": math.sqrt(2 * 31 * math.log(2)), "float64": math.sqrt(2 * 53 * math.log(2))}
"""The largest |z| of a standard normal: u is 2^-31 or 2^-53 (6.56 and 8.57)."""


def check_seed(seed: Any) -> int:
    """`seed` as an int; TypeError or ValueError unless it is one with 0 <= seed < 2**64."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed must be an int with 0 <= seed < 2**64, got {seed!r} of type {type(seed).__name__}")
    if not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be an int with 0 <= seed < 2**64, got {seed!r}")
    return int(seed)


def stream_seed(seed: int, stream: Any) -> int:
    """The seed of the stream of this name, 0 <= seed < 2^64; the seed itself for None, TypeError for what is no str."""
    if stream is None:
        return seed
    if not isinstance(stream, str):
        raise TypeError(f"stream must be a str or None, got {stream!r} of type {type(stream).__name__}")
    # A lone surrogate, which UTF-8 has no bytes for, is a name like any other.
    name = stream.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


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


class Truncation(NamedTuple):
    """What N(mean, std²) within [a, b] needs."""

    low: tuple[float, float]
    """The probabilities below and above the lower bound."""
    high: tuple[float, float]
    """Those of the upper bound."""
    first: float
    """The smallest result: the first float of the dtype from a on."""
    last: float
    """The largest."""
    near: bool
    """Whether no tail that is inverted can be below `philox_transforms.NEAR`."""


@functools.lru_cache(maxsize=256)
def truncation(mean: float, std: float, a: float, b: float, dtype: str) -> Truncation:
    """N(mean, std²) within [a, b] in float16, bfloat16, float32 or float64.

    The probabilities are rounded from 30 digits, as libraries differ in the last bits of erfc.

    Raises
    ------
    ValueError
        std < 0, no float of the dtype from a to b, or an interval so far from the mean that it has no probability in
        float64 (from 37.5 std on); std = 0 with the mean outside of it.
    """
    if not std >= 0.0:
        raise ValueError(f"std must not be negative, got {std!r}")
    first, last = _next_float(a, dtype, up=True), _next_float(b, dtype, up=False)
    if not first <= last:
        raise ValueError(f"a must be below b, with a {dtype} between them, got a={a!r}, b={b!r}")
    if std == 0.0:
        # All of it is the mean, within the bounds or not.
        low, high = ((0.0, 1.0) if a <= mean else (1.0, 0.0)), ((1.0, 0.0) if mean <= b else (0.0, 1.0))
    else:
        low, high = _tails(mean, std, a), _tails(mean, std, b)
    if not (high[0] > low[0] or low[1] > high[1]) or max(low[1], high[1]) == 0.0 or max(low[0], high[0]) == 0.0:
        raise ValueError(f"[a, b] = [{a!r}, {b!r}] has no probability in float64 at mean={mean!r}, std={std!r}")
    # The smallest number at either end.
    least = 2.0**-53 if dtype == "float64" else 2.0**-31
    smallest = min(max(low[0], high[0] * least), max(high[1], low[1] * least))
    return Truncation(low, high, first, last, smallest >= NEAR)


def _tails(mean: float, std: float, bound: float) -> tuple[float, float]:
    """The probabilities of N(mean, std²) below and above a bound."""
    import mpmath

    with mpmath.workdps(30):
        z = (mpmath.mpf(bound) - mpmath.mpf(mean)) / mpmath.mpf(std)
        return float(mpmath.ncdf(z)), float(mpmath.ncdf(-z))


_SIGNIFICAND_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_SMALLEST_EXPONENT = {"float16": -24, "bfloat16": -133, "float32": -149, "float64": -1074}


def _next_float(value: float, dtype: str, *, up: bool) -> float:
    """The first float of the dtype that is not below the value (or, downwards, not above it)."""
    if value == 0.0:
        return 0.0
    exponent = max(math.frexp(value)[1] - _SIGNIFICAND_BITS[dtype], _SMALLEST_EXPONENT[dtype])
    steps = math.ldexp(value, -exponent)
    return math.ldexp(math.ceil(steps) if up else math.floor(steps), exponent)


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
