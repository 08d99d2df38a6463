"""Stabilizers in NumPy: the plain reference, with no temporary beyond what the operation needs.

float16 is computed in float32. Sums and statistics are accumulated in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from gradmark.activations.numpy import KERNELS, rounded
from gradmark.catalog import backward_of
from gradmark.numerics.blocked import Chain, Pointwise
from gradmark.stabilizers import clipping
from gradmark.stabilizers.arrays import moving_average, outputs, parameter_gradients


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    out: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    """Training: normalize by the statistics of the batch; returns y, mean, invstd and the new running statistics."""
    y = _working_memory(x, out)
    axes, count = _reduced(x)
    mean = x.mean(axis=axes, dtype=np.float64)
    # The mean as a sum of two numbers: x - high is exact where x is near the mean, so nothing cancels.
    high = mean.astype(y.dtype)
    np.subtract(x, _along(high, x), out=y)
    if y.dtype != mean.dtype:
        y -= _along((mean - high).astype(y.dtype), x)
    var = _dots(y, y) / count
    invstd = (1.0 / np.sqrt(var + eps)).astype(y.dtype)
    y *= _along(invstd, x)
    _affine(y, weight, bias)
    return (
        _delivered(y, x, out),
        high,
        invstd,
        moving_average(running_mean, mean, momentum),
        moving_average(running_var, var * (count / (count - 1)), momentum),
    )


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, invstd: Any, out: Any) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm` in x, weight and bias.

    With x̂ = (x - mean) invstd over m values: ∂x̂_j/∂x_i = invstd (δ_ij - 1/m - x̂_i x̂_j / m), hence
    dx = weight invstd (g - Σg / m - x̂ Σ(g x̂) / m).
    """
    xhat = _normalized(x, mean, invstd, _working_memory(x, out, grad))
    axes, count = _reduced(x)
    sum_grad = grad.sum(axis=axes, dtype=np.float64)
    sum_grad_xhat = _dots(grad, xhat)
    dx = xhat
    dx *= _along((sum_grad_xhat / max(count, 1)).astype(dx.dtype), x)
    np.subtract(grad, dx, out=dx)
    dx -= _along((sum_grad / max(count, 1)).astype(dx.dtype), x)
    dx *= _along(_scale(weight, invstd), x)
    return _delivered(dx, x, out), *parameter_gradients(weight, sum_grad_xhat, sum_grad)


def batch_norm_inference(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> Any:
    """Normalize by the running statistics."""
    y = _normalized(x, running_mean, _inverse_deviation(running_var, eps), _working_memory(x, out))
    _affine(y, weight, bias)
    return _delivered(y, x, out)


def batch_norm_inference_backward(
    grad: Any, x: Any, weight: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm_inference`: y is affine in x, so dx = weight invstd g."""
    invstd = _inverse_deviation(running_var, eps)
    dx = _working_memory(x, out, grad)
    axes, _ = _reduced(x)
    sum_grad = grad.sum(axis=axes, dtype=np.float64)
    sum_grad_xhat = None if weight is None else _dots(grad, _normalized(x, running_mean, invstd, dx))
    np.multiply(grad, _along(_scale(weight, invstd), x), out=dx)
    return _delivered(dx, x, out), *parameter_gradients(weight, sum_grad_xhat, sum_grad)


def clip_grad_norm(grads: Sequence[Any], max_norm: float, out: Any) -> tuple[list[Any], Any]:
    """Scale all arrays by one coefficient so that their global norm is at most max_norm."""
    norm = clipping.global_norm(partial(_square_sums, grads), partial(_largest, grads))
    c = clipping.coefficient(norm, max_norm)
    clipped = outputs(grads, out)
    for g, y in zip(grads, clipped, strict=True):
        # In float64, as a coefficient may be subnormal in float32.
        np.multiply(g, c, out=y, dtype=np.float64, casting="same_kind")
    return clipped, np.array(norm)


def clip_grad_norm_backward(cotangents: Sequence[Any], grads: Sequence[Any], max_norm: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_norm`: c v - k g where it clipped, else v."""
    norm = clipping.global_norm(partial(_square_sums, grads), partial(_largest, grads))
    dgrads = outputs(grads, out)
    if clipping.coefficient(norm, max_norm) >= 1.0:
        for v, d in zip(cotangents, dgrads, strict=True):
            np.copyto(d, v)
        return dgrads
    scale = clipping.normalizing_power(norm)
    dot = sum(
        float(np.dot(a, b * scale)) for v, g in zip(cotangents, grads, strict=True) for a, b in _float64_chunks(v, g)
    )
    factors = clipping.backward_factors(norm, max_norm, scale, dot)
    for v, g, d in zip(cotangents, grads, dgrads, strict=True):
        for a, b, c in _float64_chunks(v, g, out=d):
            np.subtract(factors.cotangent * a, factors.projection * (b * scale), out=c)
    return dgrads


def clip_grad_value(grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """Clamp every element to [-clip_value, clip_value]."""
    clipping.check_finite(_largest(grads))
    clipped = outputs(grads, out)
    for g, y in zip(grads, clipped, strict=True):
        limit = _limit(clip_value, g)
        np.clip(g, -limit, limit, out=y)
    return clipped


def clip_grad_value_backward(cotangents: Sequence[Any], grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_value`: v where |g| <= clip_value, else 0."""
    dgrads = outputs(grads, out)
    for v, g, d in zip(cotangents, grads, dgrads, strict=True):
        inside = np.abs(g) <= _limit(clip_value, g)
        d[...] = np.where(inside, v, v.dtype.type(0))
    return dgrads


def residual_add(x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any) -> Any:
    """y = activation(x + f)."""
    y = np.empty_like(x, subok=False) if out is None else out
    if activation is None:
        # In float32 for float16, as in the other backends.
        return np.add(x, f, out=y, dtype=np.promote_types(x.dtype, np.float32), casting="same_kind")
    return _after_sum(activation, 0)((x, f), rounded(parameters, x.dtype), y)


def residual_add_backward(
    grad: Any, x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any
) -> Any:
    """d = grad · activation'(x + f): dx and df alike, as both enter by their sum alone."""
    d = np.empty_like(x, subok=False) if out is None else out
    if activation is None:
        np.copyto(d, grad)
        return d
    return _after_sum(backward_of(activation), 1)((grad, x, f), rounded(parameters, x.dtype), d)


@cache
def _after_sum(name: str, first: int) -> Pointwise:
    """The kernel of an activation's pass, whose input, number `first` of the arrays, is the sum of two arrays.

    The sum is rounded to the dtype (float32 for float16) and stays in cache.
    """
    kernel = KERNELS[name]

    def summed(chain: Chain) -> Chain:
        def after_sum(*arguments: Any) -> Any:
            *arrays, out, work = arguments
            total = work.like(arrays[first].dtype)
            np.add(arrays[first], arrays[first + 1], out=total)
            return chain(*arrays[:first], total, *arrays[first + 2 :], out, work)

        return after_sum

    return Pointwise(summed(kernel.double), summed(kernel.single), parallel_from=kernel.parallel_from)


def _working_memory(x: Any, out: Any, still_needed: Any = None) -> Any:
    """`out` where the computation can run in it, else new memory; float32 for float16."""
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    usable = out is not None and out.dtype == dtype
    if usable and (still_needed is None or not np.may_share_memory(out, still_needed)):
        return out
    return np.empty_like(x, dtype=dtype, subok=False)


def _delivered(result: Any, x: Any, out: Any) -> Any:
    if out is None:
        return result.astype(x.dtype, copy=False)
    if out is not result:
        out[...] = result
    return out


def _reduced(x: Any) -> tuple[tuple[int, ...], int]:
    """All axes but that of the channels, and how many values a channel has."""
    axes = (0, *range(2, x.ndim))
    return axes, math.prod(x.shape[a] for a in axes)


def _along(values: Any, x: Any) -> Any:
    """One value per channel, shaped to broadcast along axis 1 of x."""
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def _dots(a: Any, b: Any) -> Any:
    """Σ a b per channel, in float64, without the array of products."""
    axes = list(range(a.ndim))
    return np.einsum(a, axes, b, axes, [1], dtype=np.float64, casting="safe")


def _normalized(x: Any, mean: Any, invstd: Any, memory: Any) -> Any:
    np.subtract(x, _along(mean, x), out=memory)
    memory *= _along(invstd, x)
    return memory


def _affine(y: Any, weight: Any, bias: Any) -> None:
    if weight is not None:
        y *= _along(weight, y)
    if bias is not None:
        y += _along(bias, y)


def _inverse_deviation(var: Any, eps: float) -> Any:
    return (1.0 / np.sqrt(var.astype(np.float64) + eps)).astype(var.dtype)


def _scale(weight: Any, invstd: Any) -> Any:
    return invstd if weight is None else weight.astype(invstd.dtype) * invstd


def _limit(clip_value: float, g: Any) -> Any:
    """clip_value in the dtype of g; the largest finite number where it is beyond that."""
    return g.dtype.type(min(clip_value, float(np.finfo(g.dtype).max)))


def _float64_chunks(*arrays: Any, out: Any = None) -> Iterator[Any]:
    """The arrays, piece by piece, as float64; what is written into the last piece goes to `out`."""
    operands: list[Any] = [*arrays] if out is None else [*arrays, out]
    flags: Any = [["readonly"]] * len(arrays) + [["writeonly"]] * (out is not None)
    with np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=flags,
        op_dtypes=[np.float64] * len(operands),
        casting="same_kind",
    ) as pieces:
        for piece in pieces:
            yield piece if len(operands) > 1 else (piece,)


def _square_sums(grads: Sequence[Any], scale: float) -> list[float]:
    sums = []
    for g in grads:
        total = 0.0
        for (piece,) in _float64_chunks(g):
            scaled = piece * scale
            total += float(np.dot(scaled, scaled))
        sums.append(total)
    return sums


def _largest(grads: Sequence[Any]) -> list[float]:
    # max |g| from two reductions, which pass NaN on, without the array of |g|.
    return [float(np.maximum(g.max(), -g.min())) if g.size else 0.0 for g in grads]
