"""The stream of `numerics.philox` in Numba: one pass, straight into the result.

Words are held in 64-bit lanes: a product of two words is then one vector multiplication (vpmuludq), which ignores the
upper halves, and the shift and the masks around it are free or nearly so. The loop over blocks has no branch and
vectorizes; elements of a block that is not wholly asked for are computed one by one, outside of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from gradmark.numerics import fused
from gradmark.numerics.compile_cache import jit
from gradmark.numerics.elementary import elementary, inlined
from gradmark.numerics.philox import M0, M1, ROUNDS, W0, W1, interval, key

CHUNK = 1 << 12
"""Blocks that one thread handles at a time."""

Loop = Callable[..., None]


def fill_uniform(out: Any, first: int, seed: int, low: float, high: float) -> None:
    """Fill the 1-d array `out` with the elements first, first + 1, ... of U(low, high)."""
    parameters = (out.dtype.type(value) for value in interval(low, high, out.dtype.name))
    _fill("uniform", out, first, seed, *parameters)


def fill_normal(out: Any, first: int, seed: int, mean: float, std: float) -> None:
    """Fill the 1-d array `out` with the elements first, first + 1, ... of N(mean, std²)."""
    _fill("normal", out, first, seed, np.float64(mean), np.float64(std), np.float64(0.0))


def fill_gumbel(out: Any, first: int, seed: int) -> None:
    """Fill the 1-d array `out` with the elements first, first + 1, ... of Gumbel(0, 1)."""
    _fill("gumbel", out, first, seed, *[out.dtype.type(0)] * 3)


@register_jitable
def box_muller(u1: float, u2: float) -> tuple[float, float]:
    """Two independent standard normals from u1 in (0, 1] and u2 in [0, 1), float64."""
    radius = math.sqrt(-2.0 * math.log(u1))
    angle = (2.0 * math.pi) * u2
    return radius * math.cos(angle), radius * math.sin(angle)


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


def _fill(distribution: str, out: Any, first: int, seed: int, *parameters: Any) -> None:
    with _compiling:
        name = (distribution, out.dtype.name)
        if name not in _compiled:
            _compiled[name] = _compile(*name)
    k0, k1 = key(seed)
    fused.run(_compiled[name], out.size, (out, first, np.uint64(k0), np.uint64(k1), *parameters))


_compiled: dict[tuple[str, str], tuple[Loop, Loop]] = {}
_compiling = threading.Lock()


def _compile(distribution: str, dtype: str) -> tuple[Loop, Loop]:
    """The serial and the parallel loop of a distribution and dtype, compiled or loaded from the cache."""
    elements, per_block, parameter = {
        ("uniform", "float32"): (_uniform_32, 4, types.float32),
        ("uniform", "float64"): (_uniform_64, 2, types.float64),
        ("normal", "float32"): (_normal_32, 4, types.float64),
        ("normal", "float64"): (_normal_64, 2, types.float64),
        ("gumbel", "float32"): (_gumbel_32, 4, types.float32),
        ("gumbel", "float64"): (_gumbel_64, 2, types.float64),
    }[distribution, dtype]
    array = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = types.void(array, types.int64, types.uint64, types.uint64, parameter, parameter, parameter)
    loop = _loop(elements, per_block)
    name = f"philox_{distribution}_{dtype}"
    return jit(loop, signature, name=name), jit(loop, signature, name=f"{name}_parallel", parallel=True)


def _loop(elements: Callable[..., Any], per_block: int) -> Loop:
    """The loop over the elements of a result, `per_block` at a time."""
    fill_blocks = _fill_blocks_of_4(elements) if per_block == 4 else _fill_blocks_of_2(elements)

    @register_jitable
    def fill_ragged(out: Any, first: int, k0: Any, k1: Any, a: Any, b: Any, c: Any) -> None:
        for i in range(out.size):
            out[i] = elements(np.uint64((first + i) // per_block), k0, k1, a, b, c)[(first + i) % per_block]

    def loop(out: Any, first: int, k0: Any, k1: Any, a: Any, b: Any, c: Any) -> None:
        head = min(-first % per_block, out.size)
        blocks = (out.size - head) // per_block
        tail = head + blocks * per_block
        fill_ragged(out[:head], first, k0, k1, a, b, c)
        for chunk in prange((blocks + CHUNK - 1) // CHUNK):
            begin = chunk * CHUNK
            end = min(begin + CHUNK, blocks)
            part = out[head + begin * per_block : head + end * per_block]
            fill_blocks(part, np.uint64((first + head) // per_block + begin), k0, k1, a, b, c)
        fill_ragged(out[tail:], first + tail, k0, k1, a, b, c)

    return loop


def _fill_blocks_of_4(elements: Callable[..., Any]) -> Loop:
    @register_jitable
    def fill(out: Any, first_block: Any, k0: Any, k1: Any, a: Any, b: Any, c: Any) -> None:
        for i in range(out.size // 4):
            out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = elements(
                first_block + np.uint64(i), k0, k1, a, b, c
            )

    return fill


def _fill_blocks_of_2(elements: Callable[..., Any]) -> Loop:
    @register_jitable
    def fill(out: Any, first_block: Any, k0: Any, k1: Any, a: Any, b: Any, c: Any) -> None:
        for i in range(out.size // 2):
            out[2 * i], out[2 * i + 1] = elements(first_block + np.uint64(i), k0, k1, a, b, c)

    return fill


@register_jitable(inline="always")
def _uniform_32(index: Any, k0: Any, k1: Any, low: Any, span: Any, last: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    return (
        min(low + span * _unit_32(w0), last),
        min(low + span * _unit_32(w1), last),
        min(low + span * _unit_32(w2), last),
        min(low + span * _unit_32(w3), last),
    )


@register_jitable(inline="always")
def _uniform_64(index: Any, k0: Any, k1: Any, low: Any, span: Any, last: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    u0 = np.float64(_53_bits(w0, w1)) * 2.0**-53
    u1 = np.float64(_53_bits(w2, w3)) * 2.0**-53
    return min(low + span * u0, last), min(low + span * u1, last)


@register_jitable
def _normal_32(index: Any, k0: Any, k1: Any, mean: Any, std: Any, unused: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    z0, z1 = box_muller(np.float64(np.int64(w0) + 1) * 2.0**-32, np.float64(np.int64(w1)) * 2.0**-32)
    z2, z3 = box_muller(np.float64(np.int64(w2) + 1) * 2.0**-32, np.float64(np.int64(w3)) * 2.0**-32)
    return (
        np.float32(mean + std * z0),
        np.float32(mean + std * z1),
        np.float32(mean + std * z2),
        np.float32(mean + std * z3),
    )


@register_jitable
def _normal_64(index: Any, k0: Any, k1: Any, mean: Any, std: Any, unused: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    z0, z1 = box_muller(np.float64(_53_bits(w0, w1) + 1) * 2.0**-53, np.float64(_53_bits(w2, w3)) * 2.0**-53)
    return mean + std * z0, mean + std * z1


_log = elementary("float64").log


@register_jitable(inline="always")
def _gumbel_32(index: Any, k0: Any, k1: Any, unused: Any, unused_too: Any, unused_as_well: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    return (
        np.float32(_gumbel(_inside_32(w0))),
        np.float32(_gumbel(_inside_32(w1))),
        np.float32(_gumbel(_inside_32(w2))),
        np.float32(_gumbel(_inside_32(w3))),
    )


@register_jitable(inline="always")
def _gumbel_64(index: Any, k0: Any, k1: Any, unused: Any, unused_too: Any, unused_as_well: Any) -> Any:
    w0, w1, w2, w3 = _words(index, k0, k1)
    v0 = np.float64(_53_bits(w0, w1) | np.int64(1)) * 2.0**-53
    v1 = np.float64(_53_bits(w2, w3) | np.int64(1)) * 2.0**-53
    return _gumbel(v0), _gumbel(v1)


@inlined
def _inside_32(word: Any) -> Any:
    return np.float64(np.int64(word) * np.int64(2) + np.int64(1)) * 2.0**-33


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
