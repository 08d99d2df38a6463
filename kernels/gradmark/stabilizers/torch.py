"""Stabilizers in PyTorch: ATen's native kernels, outside of autograd, on the device of the input.

Statistics of float16 and bfloat16 inputs are float32: the native kernels take such a mix, on the CPU as on CUDA, if
all per-channel arrays are float32. Only the finite check of clipping waits for a CUDA device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from gradmark.activations import torch as activations
from gradmark.catalog import backward_of
from gradmark.stabilizers import clipping

_HALF = (torch.float16, torch.bfloat16)


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
    running_mean = None if running_mean is None else running_mean.clone()
    running_var = None if running_var is None else running_var.clone()
    if x.numel() == 0:
        # No channels: the native kernels do not take that.
        none = torch.empty(0, dtype=_wide_dtype(x), device=x.device)
        return _delivered(torch.empty_like(x), out), none, none.clone(), running_mean, running_var
    weight, bias = _wide_affine(x, weight, bias)
    arguments = x, weight, bias, running_mean, running_var, True, momentum, eps
    # native_batch_norm.out gives wrong values for strided tensors (seen in torch 2.13), without an error.
    direct = out is not None and out.is_contiguous() and x.is_contiguous() and out.data_ptr() != x.data_ptr()
    if not direct:
        y, mean, invstd = torch.native_batch_norm(*arguments)
        y = _delivered(y, out)
    else:
        mean, invstd = (torch.empty(x.shape[1], dtype=_wide_dtype(x), device=x.device) for _ in range(2))
        y = torch.native_batch_norm(*arguments, out=(out, mean, invstd))[0]
    return y, mean, invstd, running_mean, running_var


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, invstd: Any, out: Any) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm` in x, weight and bias.

    With x̂ = (x - mean) invstd over m values: ∂x̂_j/∂x_i = invstd (δ_ij - 1/m - x̂_i x̂_j / m), hence
    dx = weight invstd (g - Σg / m - x̂ Σ(g x̂) / m).
    """
    return _gradients(grad, x, weight, (None, None), (mean, invstd), True, 0.0, out)


def batch_norm_inference(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> Any:
    """Normalize by the running statistics."""
    if x.numel() == 0:
        return _delivered(torch.empty_like(x), out)
    weight, bias = _wide_affine(x, weight, bias)
    y, _, _ = torch.native_batch_norm(x, weight, bias, running_mean, running_var, False, 0.0, eps)
    return _delivered(y, out)


def batch_norm_inference_backward(
    grad: Any, x: Any, weight: Any, running_mean: Any, running_var: Any, eps: float, out: Any
) -> tuple[Any, Any, Any]:
    """The gradients of `batch_norm_inference`: y is affine in x, so dx = weight invstd g."""
    return _gradients(grad, x, weight, (running_mean, running_var), (None, None), False, eps, out)


def clip_grad_norm(grads: Sequence[Any], max_norm: float, out: Any) -> tuple[list[Any], Any]:
    """Scale all arrays by one coefficient so that their global norm is at most max_norm."""
    norm = clipping.global_norm(partial(_square_sums, grads), partial(_largest, grads))
    c = clipping.coefficient(norm, max_norm)
    device = grads[0].device if grads else None
    return _deliver_all(_times(grads, c), out), torch.tensor(norm, dtype=torch.float64, device=device)


def clip_grad_norm_backward(cotangents: Sequence[Any], grads: Sequence[Any], max_norm: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_norm`: c v - k g where it clipped, else v."""
    norm = clipping.global_norm(partial(_square_sums, grads), partial(_largest, grads))
    if not grads or clipping.coefficient(norm, max_norm) >= 1.0:
        return _deliver_all([v.clone() for v in cotangents] if out is None else list(cotangents), out)
    scale = clipping.normalizing_power(norm)
    dots = [torch.sum(v.double() * (g.double() * scale)) for v, g in zip(cotangents, grads, strict=True)]
    factors = clipping.backward_factors(norm, max_norm, scale, float(torch.stack(dots).sum()))
    dgrads = _times(_widened(cotangents), factors.cotangent)
    torch._foreach_sub_(dgrads, _times(_times(_widened(grads), scale), factors.projection))
    return _deliver_all([d.to(g.dtype) for d, g in zip(dgrads, grads, strict=True)], out)


def clip_grad_value(grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """Clamp every element to [-clip_value, clip_value]."""
    clipping.check_finite(_largest(grads))
    results = [None] * len(grads) if out is None else out
    return [
        torch.clamp(g, -limit, limit, out=y)
        for g, y, limit in zip(grads, results, _limits(clip_value, grads), strict=True)
    ]


def clip_grad_value_backward(cotangents: Sequence[Any], grads: Sequence[Any], clip_value: float, out: Any) -> list[Any]:
    """The vector-Jacobian product of `clip_grad_value`: v where |g| <= clip_value, else 0."""
    limits = _limits(clip_value, grads)
    dgrads = [torch.where(g.abs() <= limit, v, 0.0) for v, g, limit in zip(cotangents, grads, limits, strict=True)]
    return _deliver_all(dgrads, out)


def residual_add(x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any) -> Any:
    """y = activation(x + f)."""
    if x.dtype in _HALF:
        y = residual_add(x.float(), f.float(), activation, parameters, None)
        return y.to(x.dtype) if out is None else out.copy_(y)
    y = torch.add(x, f, out=out)
    return y if activation is None else getattr(activations, activation)(y, *parameters, y)


def residual_add_backward(
    grad: Any, x: Any, f: Any, activation: str | None, parameters: tuple[float, ...], out: Any
) -> Any:
    """d = grad · activation'(x + f): dx and df alike, as both enter by their sum alone."""
    d = torch.empty_like(x) if out is None else out
    if activation is None:
        return d.copy_(grad)
    if x.dtype in _HALF:
        return d.copy_(residual_add_backward(grad.float(), x.float(), f.float(), activation, parameters, None))
    return getattr(activations, backward_of(activation))(grad, torch.add(x, f), *parameters, d)


def _gradients(
    grad: Any,
    x: Any,
    weight: Any,
    running: tuple[Any, Any],
    saved: tuple[Any, Any],
    training: bool,
    eps: float,
    out: Any,
) -> tuple[Any, Any, Any]:
    learn = weight is not None
    if x.numel() == 0:
        dweight, dbias = (torch.zeros_like(weight) if learn else None for _ in range(2))
        return _delivered(torch.empty_like(x), out), dweight, dbias
    wide = _wide_affine(x, weight, None)[0]
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        grad, x, wide, *running, *saved, training, eps, [True, learn, learn]
    )
    if learn:
        dweight, dbias = dweight.to(weight.dtype), dbias.to(weight.dtype)
    else:
        dweight = dbias = None
    return _delivered(dx, out), dweight, dbias


def _wide_affine(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """Weight and bias in the dtype of the statistics; a weight of ones tells the kernels which that is."""
    if x.dtype not in _HALF:
        return weight, bias
    weight = torch.ones(x.shape[1], device=x.device) if weight is None else weight.float()
    return weight, None if bias is None else bias.float()


def _wide_dtype(x: Any) -> Any:
    return torch.float32 if x.dtype in _HALF else x.dtype


def _widened(tensors: Sequence[Any]) -> list[Any]:
    return [t.float() if t.dtype in _HALF else t for t in tensors]


def _delivered(result: Any, out: Any) -> Any:
    return result if out is None else out.copy_(result)


def _deliver_all(results: list[Any], out: Any) -> list[Any]:
    if out is None:
        return results
    if results:
        torch._foreach_copy_(list(out), results)
    return list(out)


def _times(tensors: Sequence[Any], factor: float) -> list[Any]:
    """The tensors times a number; in two steps where it is far from 1, as float32 kernels round it to float32."""
    if not tensors:
        return []
    exponent = math.frexp(factor)[1]
    if abs(exponent) <= 100:
        return list(torch._foreach_mul(list(tensors), factor))
    first = math.ldexp(1.0, exponent // 2)
    return list(torch._foreach_mul(torch._foreach_mul(list(tensors), first), factor / first))


def _square_sums(grads: Sequence[Any], scale: float) -> list[float]:
    filled = [g for g in grads if g.numel()]
    if not filled:
        return []
    if scale != 1.0:
        filled = [g.double() * scale for g in filled]
    norms = torch.stack(torch._foreach_norm(filled, 2.0, dtype=torch.float64))
    return [float(n) for n in norms.square().tolist()]


def _largest(grads: Sequence[Any]) -> list[float]:
    filled = [g for g in grads if g.numel()]
    if not filled:
        return [0.0] * len(grads)
    peaks = iter(torch.stack([n.double() for n in torch._foreach_norm(filled, math.inf)]).tolist())
    return [float(next(peaks)) if g.numel() else 0.0 for g in grads]


def _limits(clip_value: float, grads: Sequence[Any]) -> list[float]:
    """clip_value for each tensor; the largest finite number of its dtype where it is beyond that."""
    return [min(clip_value, torch.finfo(g.dtype).max) for g in grads]
