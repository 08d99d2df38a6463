"""Row-wise operations in PyTorch, on the device of the input: ATen's kernels where it has them.

The catalog's deviations say where ATen keeps less than the contract. Half precision is computed in float32 and rounded
once: ATen's own kernels round in between.
"""

from __future__ import annotations

from typing import Any

import torch

from gradmark.numerics import philox_torch

aten = torch.ops.aten

_HALF = (torch.float16, torch.bfloat16)


def softmax(x: Any, axis: int, out: Any) -> Any:
    """ATen's kernel."""
    return _forward(aten._softmax, x, axis, out)


def softmax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """ATen's kernel: ∂y_i/∂x_j = y_i (δ_ij - y_j), hence dx = y (g - Σ g y)."""
    return _backward(aten._softmax_backward_data, "grad_input", grad, y, axis, out)


def log_softmax(x: Any, axis: int, out: Any) -> Any:
    """ATen's kernel."""
    return _forward(aten._log_softmax, x, axis, out)


def log_softmax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """ATen's kernel: ∂y_i/∂x_j = δ_ij - exp(y_j), hence dx = g - exp(y) Σ g."""
    return _backward(aten._log_softmax_backward_data, "out", grad, y, axis, out)


def softmin(x: Any, axis: int, out: Any) -> Any:
    """ATen's softmax of -x."""
    return _forward(aten._softmax, -x, axis, out)


def softmin_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """That of softmax, times -1."""
    return softmax_backward(grad, y, axis, out).neg_()


def sparsemax(x: Any, axis: int, out: Any) -> Any:
    """x less a threshold, which is the largest of (x_1 + ... + x_k - 1) / k over the k largest elements.

    The sums are float64. Relative to the largest element, so that the sums do not grow with it.
    """
    wide = _wide(x)
    d = wide - wide.amax(axis, keepdim=True)
    ranked = d.sort(axis, descending=True)[0].to(torch.float64)
    ranks = torch.ones_like(ranked).cumsum(axis)
    threshold = ((ranked.cumsum(axis) - 1) / ranks).amax(axis, keepdim=True)
    return out.copy_((d - threshold).clamp_min_(0))


def sparsemax_backward(grad: Any, y: Any, axis: int, out: Any) -> Any:
    """On the support x_i less the mean of its k elements: ∂y_i/∂x_j = δ_ij - 1/k there, 0 elsewhere."""
    inside = ~(y <= 0)
    g = torch.where(inside, _wide(grad) + (y - y), 0)
    mean = g.sum(axis, keepdim=True, dtype=torch.float64) / inside.sum(axis, keepdim=True)
    return out.copy_(torch.where(inside, g - mean, 0))


def gumbel_softmax(x: Any, seed: int, tau: float, hard: bool, axis: int, out: Any) -> Any:
    """ATen's softmax of (x + n) / tau; with `hard`, a one at its largest element."""
    y = aten._softmax.default(_logits(x, seed, tau), axis, False)
    if not hard:
        return out.copy_(y)
    ones = torch.zeros_like(y).scatter_(axis, y.argmax(axis, keepdim=True), 1.0)
    return out.copy_(torch.where(y.isnan(), y, ones))


def gumbel_softmax_backward(grad: Any, x: Any, seed: int, tau: float, axis: int, out: Any) -> Any:
    """That of softmax, over tau."""
    y = aten._softmax.default(_logits(x, seed, tau), axis, False)
    return out.copy_(aten._softmax_backward_data.default(_wide(grad), y, axis, y.dtype).div_(tau))


def _logits(x: Any, seed: int, tau: float) -> Any:
    """(x + n) / tau, rounded once, half precision to float32."""
    wide = _wide(x)
    noise = torch.empty(x.shape, dtype=wide.dtype, device=x.device)
    philox_torch.fill_gumbel(noise.view(-1), 0, seed)
    return noise.to(torch.float64).add_(wide).div_(tau).to(wide.dtype)


def _wide(x: Any) -> Any:
    """Half precision as float32; others as they are."""
    return x.float() if x.dtype in _HALF else x


def _forward(operator: Any, x: Any, axis: int, out: Any) -> Any:
    """ATen's operator, written to `out`; through a tensor of its own where `out` is strided, narrow or x."""
    if out.is_contiguous() and x.dtype not in _HALF and out.data_ptr() != x.data_ptr():
        return operator.out(x, axis, False, out=out)
    return out.copy_(operator.default(_wide(x), axis, False))


def _backward(operator: Any, name_of_out: str, grad: Any, y: Any, axis: int, out: Any) -> Any:
    """The same for an operator of grad and y."""
    if out.is_contiguous() and y.dtype not in _HALF and out.data_ptr() not in (grad.data_ptr(), y.data_ptr()):
        return operator.out(grad, y, axis, y.dtype, **{name_of_out: out})
    wide = _wide(y)
    return out.copy_(operator.default(_wide(grad), wide, axis, wide.dtype))
