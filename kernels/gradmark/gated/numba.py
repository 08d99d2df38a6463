"""Gated units in Numba: one fused, vectorized pass over memory each.

Whatever the axis, a slab of x is a run of contiguous elements of one half, then a run of the other; y has one run for
both. Long runs are computed where they are. Others, and those whose last elements would not fill vectors, are gathered
into blocks first, and the blocks are computed.

The scalar functions are those of the activations: value(x, p) and gradient(g, x, p) with p = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from gradmark.activations.numba import PAIRS
from gradmark.catalog import GATED
from gradmark.numerics.by_address import call
from gradmark.numerics.elementary import elementary, inlined
from gradmark.numerics.fused import BLOCK, CHUNK, PARALLEL, STREAMING
from gradmark.numerics.slabs import deliver, slabs
from gradmark.numerics.streaming import fence, store_past_caches
from gradmark.numerics.variants import Kernel, Shared, Variants

Function = Callable[..., Any]

LANES = 64
"""Runs whose length is a multiple of this leave no element to the scalar loop after the vectors."""


def _unit(name: str) -> tuple[Function, Function]:
    """Forward and backward of a unit, from the scalar functions of its activation."""
    pair = PAIRS[next(row.gate for row in GATED if row.name == name)]

    def build_forward(dtype: str, kind: str, aliased: int | None) -> tuple[Kernel, Any]:
        value, _ = pair(elementary(dtype))
        return _serial_forward(value), _forward_type(dtype, part=True)

    def build_backward(dtype: str, kind: str, aliased: int | None) -> tuple[Kernel, Any]:
        functions = pair(elementary(dtype))
        if kind == STREAMING:
            return _streaming_backward(*functions), _backward_type(dtype)
        return _serial_backward(*functions, in_place=aliased is not None), _backward_type(dtype, part=True)

    forward_loop = Variants(name, build_forward, _SHARED_FORWARD)
    backward_loop = Variants(f"{name}_backward", build_backward, _SHARED_BACKWARD)

    def forward(x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        flat, _, inner, scattered = slabs(axis, x, out)
        length = inner * out.shape[axis]
        places = (length, length, 0) if gate_last else (length, 0, length)
        shared = (flat[0], *places, flat[1])
        forward_loop(out.size, flat[1], (*shared, 0), shared)
        deliver(flat, scattered)
        return out

    def backward(grad: Any, x: Any, axis: int, gate_last: bool, out: Any) -> Any:
        flat, _, inner, scattered = slabs(axis, grad, x, out)
        length = inner * grad.shape[axis]
        places = (length, length, 0) if gate_last else (length, 0, length)
        shared = (flat[0], flat[1], *places, flat[2])
        aliased = 1 if x is out and scattered is None else None
        # Pieces of short runs hold few whole lines.
        streamed = length % LANES == 0
        backward_loop(grad.size, flat[2], (*shared, 0, grad.size), shared, aliased=aliased, streamed=streamed)
        deliver(flat, scattered)
        return out

    return forward, backward


def _forward_type(dtype: str, *, part: bool = False) -> Any:
    """Of a kernel that makes the whole output, or the part of it that it is given, from an element on."""
    scalar = getattr(types, dtype)
    source, target = types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")
    return types.void(source, *[types.int64] * 3, target, *[types.int64] * part)


def _backward_type(dtype: str, *, part: bool = False) -> Any:
    """Of a kernel that makes the gradients of all elements, or of those of an interval."""
    scalar = getattr(types, dtype)
    source, target = types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")
    return types.void(source, source, *[types.int64] * 3, target, *[types.int64] * (2 * part))


# Element k of y is place j = k mod length of slab i = k div length; its gate is x[2 i length + gate + j], its value
# x[2 i length + other + j].


def _serial_forward(value: Function) -> Kernel:
    """out = the elements low, low + 1, ... of y."""
    value = inlined(value)

    @register_jitable
    def run(a: Any, b: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = value(a[i], 0) * b[i]

    def kernel(x: Any, length: int, gate: int, other: int, out: Any, low: int) -> None:
        if length % LANES == 0:
            done = 0
            while done < out.size:
                slab, place = (low + done) // length, (low + done) % length
                count = min(length - place, out.size - done)
                a, b = 2 * slab * length + gate + place, 2 * slab * length + other + place
                run(x[a : a + count], x[b : b + count], out[done : done + count])
                done += count
        else:
            blocks = np.empty((2, BLOCK), out.dtype)
            for begin in range(0, out.size, BLOCK):
                end = min(begin + BLOCK, out.size)
                _gather(x, length, gate, low + begin, blocks[0, : end - begin])
                _gather(x, length, other, low + begin, blocks[1, : end - begin])
                run(blocks[0, : end - begin], blocks[1, : end - begin], out[begin:end])

    return kernel


def _forward_in_chunks(address: int, x: Any, length: int, gate: int, other: int, out: Any) -> None:
    for chunk in prange((out.size + CHUNK - 1) // CHUNK):
        low = chunk * CHUNK
        call(address, (x, length, gate, other, out[low : min(low + CHUNK, out.size)], low))


def _forward_streamed(address: int, x: Any, length: int, gate: int, other: int, out: Any) -> None:
    for chunk in prange((out.size + CHUNK - 1) // CHUNK):
        block = np.empty(BLOCK, out.dtype)
        for low in range(chunk * CHUNK, min((chunk + 1) * CHUNK, out.size), BLOCK):
            high = min(low + BLOCK, out.size)
            call(address, (x, length, gate, other, block[: high - low], low))
            store_past_caches(block[: high - low], out[low:high])
        fence()


def _run_of_gradients(value: Function, gradient: Function) -> Function:
    value, gradient = inlined(value), inlined(gradient)

    @register_jitable
    def run(g: Any, a: Any, b: Any, da: Any, db: Any) -> None:
        # d(f(a) b) = b f'(a) da + f(a) db.
        for i in range(g.size):
            x, w, h = a[i], b[i], g[i]
            da[i] = gradient(h * w, x, 0)
            db[i] = h * value(x, 0)

    return run


def _serial_backward(value: Function, gradient: Function, *, in_place: bool) -> Kernel:
    """The gradients of the elements low, ..., high - 1 of y."""
    run = _run_of_gradients(value, gradient)

    @inlined
    def over(grad: Any, x: Any, length: int, gate: int, other: int, out: Any, low: int, high: int) -> None:
        if length % LANES == 0:
            while low < high:
                slab, place = low // length, low % length
                count = min(length - place, high - low)
                a, b = 2 * slab * length + gate + place, 2 * slab * length + other + place
                da, db = out[a : a + count], out[b : b + count]
                run(grad[low : low + count], x[a : a + count], x[b : b + count], da, db)
                low += count
        else:
            blocks = np.empty((4, BLOCK), out.dtype)
            for begin in range(low, high, BLOCK):
                count = min(BLOCK, high - begin)
                gates, others, dgates, dothers = (
                    blocks[0, :count],
                    blocks[1, :count],
                    blocks[2, :count],
                    blocks[3, :count],
                )
                _gather(x, length, gate, begin, gates)
                _gather(x, length, other, begin, others)
                run(grad[begin : begin + count], gates, others, dgates, dothers)
                _scatter(dgates, length, gate, begin, out)
                _scatter(dothers, length, other, begin, out)

    def kernel(grad: Any, x: Any, length: int, gate: int, other: int, out: Any, low: int, high: int) -> None:
        over(grad, x, length, gate, other, out, low, high)

    def in_place_kernel(grad: Any, x: Any, length: int, gate: int, other: int, out: Any, low: int, high: int) -> None:
        # x is out: to LLVM as well, which would otherwise leave the vector loop where they overlap.
        over(grad, out, length, gate, other, out, low, high)

    return in_place_kernel if in_place else kernel


def _backward_in_chunks(address: int, grad: Any, x: Any, length: int, gate: int, other: int, out: Any) -> None:
    for chunk in prange((grad.size + CHUNK - 1) // CHUNK):
        low = chunk * CHUNK
        call(address, (grad, x, length, gate, other, out, low, min(low + CHUNK, grad.size)))


def _streaming_backward(value: Function, gradient: Function) -> Kernel:
    run = _run_of_gradients(value, gradient)

    def streamed(grad: Any, x: Any, length: int, gate: int, other: int, out: Any) -> None:
        for chunk in prange((grad.size + CHUNK - 1) // CHUNK):
            blocks = np.empty((2, BLOCK), out.dtype)
            low = chunk * CHUNK
            high = min(low + CHUNK, grad.size)
            while low < high:
                slab, place = low // length, low % length
                count = min(min(length - place, high - low), BLOCK)
                a, b = 2 * slab * length + gate + place, 2 * slab * length + other + place
                da, db = blocks[0, :count], blocks[1, :count]
                run(grad[low : low + count], x[a : a + count], x[b : b + count], da, db)
                store_past_caches(da, out[a : a + count])
                store_past_caches(db, out[b : b + count])
                low += count
            fence()

    return streamed


@register_jitable
def _gather(x: Any, length: int, half: int, low: int, block: Any) -> None:
    """The elements of one half that belong to the elements low, low + 1, ... of y."""
    done = 0
    while done < block.size:
        slab, place = (low + done) // length, (low + done) % length
        count = min(length - place, block.size - done)
        start = 2 * slab * length + half + place
        for i in range(count):
            block[done + i] = x[start + i]
        done += count


@register_jitable
def _scatter(block: Any, length: int, half: int, low: int, out: Any) -> None:
    """Put the elements of a block where `_gather` takes them from."""
    done = 0
    while done < block.size:
        slab, place = (low + done) // length, (low + done) % length
        count = min(length - place, block.size - done)
        start = 2 * slab * length + half + place
        for i in range(count):
            out[start + i] = block[done + i]
        done += count


_SHARED_FORWARD = {
    PARALLEL: Shared("gated", _forward_in_chunks, _forward_type),
    STREAMING: Shared("gated", _forward_streamed, _forward_type),
}
_SHARED_BACKWARD = {PARALLEL: Shared("gated_backward", _backward_in_chunks, _backward_type)}

glu, glu_backward = _unit("glu")
reglu, reglu_backward = _unit("reglu")
geglu, geglu_backward = _unit("geglu")
geglu_tanh, geglu_tanh_backward = _unit("geglu_tanh")
swiglu, swiglu_backward = _unit("swiglu")
bilinear, bilinear_backward = _unit("bilinear")
