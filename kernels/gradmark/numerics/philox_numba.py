"""The stream of `numerics.philox` in Numba: one pass, straight into the result.

Words are held in 64-bit lanes: a product of two words is then one vector multiplication (vpmuludq), which ignores the
upper halves, and the shift and the masks around it are free or nearly so. The loop over blocks has no branch and
vectorizes; elements of a block that is not wholly asked for are computed one by one, outside of it.

What is filled is a contiguous 1-d array and `first` an int; or a 2-d array whose rows are runs, and `first` an int64
array of the first element of each.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from gradmark.numerics import by_address, fused
from gradmark.numerics.by_address import call
from gradmark.numerics.compile_cache import jit
from gradmark.numerics.elementary import NumbaArithmetic, elementary, inlined
from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, interval, key, truncation
from gradmark.numerics.philox_transforms import transforms

CHUNK = 1 << 14
"""Elements that one thread handles at a time."""
LONG_RUN = 1 << 18
"""Elements from which each run is shared by the threads, in place of the runs."""

Loop = Callable[..., None]


def fill_uniform(out: Any, first: Any, seed: int, low: float, high: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of U(low, high)."""
    _fill("uniform", out, first, seed, interval(low, high, out.dtype.name))


def fill_normal(out: Any, first: Any, seed: int, mean: float, std: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²)."""
    _fill("normal", out, first, seed, (mean, std))


def fill_truncated_normal(out: Any, first: Any, seed: int, mean: float, std: float, a: float, b: float) -> None:
    """Fill `out` with the elements first, first + 1, ... of N(mean, std²) within [a, b]."""
    t = truncation(mean, std, a, b, out.dtype.name)
    name = "truncated_near" if t.near else "truncated"
    _fill(name, out, first, seed, (*t.low, *t.high, mean, std, t.first, t.last))


def fill_gumbel(out: Any, first: Any, seed: int) -> None:
    """Fill `out` with the elements first, first + 1, ... of Gumbel(0, 1)."""
    _fill("gumbel", out, first, seed, (0.0,))


_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_M0, _M1, _W0, _W1 = np.uint64(M0), np.uint64(M1), np.uint64(W0), np.uint64(W1)


# Inlined by Numba, as what leads to it is: LLVM inlines a call too late to vectorize the loop around it.
@register_jitable(inline="always")
def block(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of the counter (c0, c1, c2, c3) with the key (k0, k1): 32-bit words as uint64."""
    for _ in range(ROUNDS):
        p0 = c0 * _M0
        p1 = c2 * _M1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _MASK, (p0 >> _32) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _fill(distribution: str, out: Any, first: Any, seed: int, parameters: tuple[float, ...]) -> None:
    if out.ndim == 2 and out.shape[1] >= LONG_RUN:
        for run, start in zip(out, first, strict=True):
            _fill(distribution, run, int(start), seed, parameters)
        return
    with _compiling:
        name = (distribution, out.dtype.name, out.ndim)
        if name not in _compiled:
            _compiled[name] = _compile(*name)
    k0, k1 = key(seed)
    _, _, real, _ = _DISTRIBUTIONS[distribution, out.dtype.name]
    scalar = np.float32 if real == types.float32 else np.float64
    arguments = out, first, np.uint64(k0), np.uint64(k1), tuple(map(scalar, parameters))
    fused.run(_compiled[name], out.size, arguments)


_compiled: dict[tuple[str, str, int], tuple[Loop, Loop]] = {}
_compiling = threading.Lock()


def _compile(distribution: str, dtype: str, dimensions: int) -> tuple[Loop, Loop]:
    """The serial and the parallel loop of a distribution and dtype, compiled or loaded from the cache."""
    serial, signature = _run_of_elements(distribution, dtype)
    array, _, *rest = signature.args
    if dimensions == 1:
        return serial, by_address.bound("philox", _in_chunks, signature, serial)
    runs = types.void(array.copy(ndim=2), types.Array(types.int64, 1, "C", readonly=True), *rest)
    over_runs = functools.partial(by_address.bound, "philox_runs", _over_runs, runs, serial)
    return over_runs(parallel=False), over_runs(parallel=True)


@functools.cache
def _run_of_elements(distribution: str, dtype: str) -> tuple[Loop, Any]:
    """The loop over consecutive elements, and its signature."""
    elements, per_block, real, count = _DISTRIBUTIONS[distribution, dtype]
    array, parameters = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C"), types.UniTuple(real, count)
    signature = types.void(array, types.int64, types.uint64, types.uint64, parameters)
    return jit(_loop(elements, per_block), signature, name=f"philox_{distribution}_{dtype}"), signature


def _in_chunks(address: int, out: Any, first: int, k0: Any, k1: Any, p: Any) -> None:
    for chunk in prange((out.size + CHUNK - 1) // CHUNK):
        low = chunk * CHUNK
        call(address, (out[low : min(low + CHUNK, out.size)], first + low, k0, k1, p))


def _over_runs(address: int, out: Any, first: Any, k0: Any, k1: Any, p: Any) -> None:
    """The rows of a result, each of which is a run of elements from its own `first` on."""
    for r in prange(out.shape[0]):
        call(address, (out[r], first[r], k0, k1, p))


def _loop(elements: Callable[..., Any], per_block: int) -> Loop:
    """A loop over consecutive elements: by whole blocks, but at both ends one by one."""

    @register_jitable
    def fill_ragged(out: Any, first: int, k0: Any, k1: Any, p: Any) -> None:
        for i in range(out.size):
            out[i] = elements(np.uint64((first + i) // per_block), k0, k1, p)[(first + i) % per_block]

    fill_blocks = (_fill_blocks_of_4 if per_block == 4 else _fill_blocks_of_2)(elements)

    def loop(out: Any, first: int, k0: Any, k1: Any, p: Any) -> None:
        head = min(-first % per_block, out.size)
        tail = out.size - (out.size - head) % per_block
        fill_ragged(out[:head], first, k0, k1, p)
        fill_blocks(out[head:tail], np.uint64((first + head) // per_block), k0, k1, p)
        fill_ragged(out[tail:], first + tail, k0, k1, p)

    return loop


def _fill_blocks_of_4(elements: Callable[..., Any]) -> Loop:
    @register_jitable
    def fill(out: Any, first_block: Any, k0: Any, k1: Any, p: Any) -> None:
        for i in range(out.size // 4):
            four = elements(first_block + np.uint64(i), k0, k1, p)
            out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = four

    return fill


def _fill_blocks_of_2(elements: Callable[..., Any]) -> Loop:
    @register_jitable
    def fill(out: Any, first_block: Any, k0: Any, k1: Any, p: Any) -> None:
        for i in range(out.size // 2):
            out[2 * i], out[2 * i + 1] = elements(first_block + np.uint64(i), k0, k1, p)

    return fill


@register_jitable(inline="always")
def _uniform_32(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    low, span, last = p
    w0, w1, w2, w3 = _words(index, k0, k1)
    return (
        min(low + span * _unit_32(w0), last),
        min(low + span * _unit_32(w1), last),
        min(low + span * _unit_32(w2), last),
        min(low + span * _unit_32(w3), last),
    )


@register_jitable(inline="always")
def _uniform_64(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    low, span, last = p
    w0, w1, w2, w3 = _words(index, k0, k1)
    u0 = np.float64(_53_bits(w0, w1)) * 2.0**-53
    u1 = np.float64(_53_bits(w2, w3)) * 2.0**-53
    return min(low + span * u0, last), min(low + span * u1, last)


class _Arithmetic(NumbaArithmetic):
    """The primitives of `philox_transforms`."""

    sqrt = staticmethod(inlined(lambda x: math.sqrt(x)))


_normal_pair_32 = transforms(_Arithmetic("float32")).normal_pair
_normal_pair_64 = transforms(_Arithmetic("float64")).normal_pair


@inlined
def _normal_32(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    mean, std = p
    w0, w1, w2, w3 = _words(index, k0, k1)
    z0, z1 = _normal_pair_32(_radius_32(w0), *_angle_32(w1))
    z2, z3 = _normal_pair_32(_radius_32(w2), *_angle_32(w3))
    return mean + std * z0, mean + std * z1, mean + std * z2, mean + std * z3


@inlined
def _radius_32(word: Any) -> Any:
    # 31 bits: a signed integer of 32 bits is the only kind that AVX2 converts in one instruction.
    half = np.uint32(word) >> np.uint32(1)
    return np.float32(np.int32(half | np.uint32(1))) * np.float32(2.0**-31)


@inlined
def _angle_32(word: Any) -> Any:
    turned = np.uint32(np.uint32(word) + np.uint32(1 << 29))
    rest = np.int32(np.int32(turned & np.uint32((1 << 30) - 1)) - np.int32(1 << 29))
    return np.int32(turned >> np.uint32(30)), np.float32(rest) * np.float32(2.0**-30)


@inlined
def _normal_64(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    mean, std = p
    w0, w1, w2, w3 = _words(index, k0, k1)
    u = _inside_64(w0, w1)
    # 53 bits, turned by half a quadrant: the quadrant in the upper two, and where in it.
    turned = ((w2 >> np.uint64(5)) << np.uint64(26)) + (w3 >> np.uint64(6)) + np.uint64(1 << 50)
    t = _parts((turned >> np.uint64(26)) & _25_BITS, 2.0**-25, turned & _26_BITS, 2.0**-51) - 0.5
    z0, z1 = _normal_pair_64(u, np.int64((turned >> np.uint64(51)) & np.uint64(3)), t)
    return mean + std * z0, mean + std * z1


_25_BITS, _26_BITS = np.uint64((1 << 25) - 1), np.uint64((1 << 26) - 1)


@inlined
def _parts(high: Any, high_unit: float, low: Any, low_unit: float) -> Any:
    """A number of up to 53 bits in two parts, each of which AVX2 converts as a signed integer of 32 bits."""
    return np.float64(np.int32(high)) * high_unit + np.float64(np.int32(low)) * low_unit


def _truncated_elements(transform: Callable[..., Any], ends: Callable[..., Any]) -> Callable[..., Any]:
    """The elements of a block of four for float32, from u and 1 - u of a word."""

    @inlined
    def element(word: Any, p: Any) -> Any:
        below_low, above_low, below_high, above_high, mean, std, first, last = p
        u, v = ends(word)
        z = transform(u, v, (below_low, above_low), (below_high, above_high))
        return np.float32(min(max(mean + std * z, first), last))

    @inlined
    def elements(index: Any, k0: Any, k1: Any, p: Any) -> Any:
        w0, w1, w2, w3 = _words(index, k0, k1)
        return element(w0, p), element(w1, p), element(w2, p), element(w3, p)

    return elements


def _truncated_elements_64(transform: Callable[..., Any]) -> Callable[..., Any]:
    """The elements of a block of two for float64."""

    @inlined
    def element(u: Any, p: Any) -> Any:
        below_low, above_low, below_high, above_high, mean, std, first, last = p
        z = transform(u, 1.0 - u, (below_low, above_low), (below_high, above_high))
        return min(max(mean + std * z, first), last)

    @inlined
    def elements(index: Any, k0: Any, k1: Any, p: Any) -> Any:
        w0, w1, w2, w3 = _words(index, k0, k1)
        return element(_inside_64(w0, w1), p), element(_inside_64(w2, w3), p)

    return elements


@inlined
def _ends_single(word: Any) -> Any:
    h = np.int32((np.uint32(word) >> np.uint32(1)) | np.uint32(1))
    unit = np.float32(2.0**-31)
    return np.float32(h) * unit, np.float32(np.int32(np.int64(1 << 31) - np.int64(h))) * unit


@inlined
def _ends_32(word: Any) -> Any:
    v = _inside_32(word)
    return v, 1.0 - v


_log = elementary("float64").log


@register_jitable(inline="always")
def _gumbel_32(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    return (
        np.float32(_gumbel(_inside_32(w0))),
        np.float32(_gumbel(_inside_32(w1))),
        np.float32(_gumbel(_inside_32(w2))),
        np.float32(_gumbel(_inside_32(w3))),
    )


@register_jitable(inline="always")
def _gumbel_64(index: Any, k0: Any, k1: Any, p: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    return _gumbel(_inside_64(w0, w1)), _gumbel(_inside_64(w2, w3))


@inlined
def _inside_32(word: Any) -> Any:
    """(2 w + 1) 2^-33, in two parts as below."""
    low = (word & np.uint64(0xFFFF)) + (word & np.uint64(0xFFFF)) + np.uint64(1)
    return _parts(word >> np.uint64(16), 2.0**-16, low, 2.0**-33)


@inlined
def _inside_64(a: Any, b: Any) -> Any:
    """The 53-bit number of two words, its last bit set, times 2^-53."""
    return _parts(a >> np.uint64(5), 2.0**-27, (b >> np.uint64(6)) | np.uint64(1), 2.0**-53)


@inlined
def _gumbel(v: Any) -> Any:
    return -_log(-_log(v))


@register_jitable(inline="always")
def _words(index: Any, k0: Any, k1: Any) -> Any:
    zero = np.uint64(0)
    return block(index & _MASK, index >> _32, zero, zero, k0, k1)


@register_jitable
def _unit_32(word: Any) -> Any:
    # A signed integer of 32 bits: the only kind that AVX2 converts to float32 in one instruction.
    return np.float32(np.int32(word >> np.uint64(8))) * np.float32(2.0**-24)


@register_jitable
def _53_bits(a: Any, b: Any) -> Any:
    return np.int64(((a >> np.uint64(5)) << np.uint64(26)) + (b >> np.uint64(6)))


_single, _double = transforms(_Arithmetic("float32")), transforms(_Arithmetic("float64"))

_DISTRIBUTIONS: dict[tuple[str, str], tuple[Callable[..., Any], int, Any, int]] = {
    ("uniform", "float32"): (_uniform_32, 4, types.float32, 3),
    ("uniform", "float64"): (_uniform_64, 2, types.float64, 3),
    ("normal", "float32"): (_normal_32, 4, types.float32, 2),
    ("normal", "float64"): (_normal_64, 2, types.float64, 2),
    ("truncated", "float32"): (_truncated_elements(_double.truncated, _ends_32), 4, types.float64, 8),
    ("truncated", "float64"): (_truncated_elements_64(_double.truncated), 2, types.float64, 8),
    ("truncated_near", "float32"): (_truncated_elements(_single.truncated_near, _ends_single), 4, types.float32, 8),
    ("truncated_near", "float64"): (_truncated_elements_64(_double.truncated_near), 2, types.float64, 8),
    ("gumbel", "float32"): (_gumbel_32, 4, types.float64, 1),
    ("gumbel", "float64"): (_gumbel_64, 2, types.float64, 1),
}
"""Of each distribution and dtype: the elements of a block, how many, and the type and number of the parameters."""
