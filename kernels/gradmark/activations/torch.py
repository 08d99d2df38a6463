"""Activations in PyTorch, on the device of the input: ATen's fused kernel where it has one.

Where ATen has none, an expression outside of autograd. The catalog's deviations say where ATen keeps less than the
contract. Functions here take `out` and write to it; `grad` and `x` may be the same memory as `out`.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten


def sigmoid(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return torch.sigmoid(x, out=out)


def sigmoid_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel, on the recomputed y: y' = y (1 - y)."""
    return _from_output(aten.sigmoid_backward, grad, torch.sigmoid(_wide(x)), out)


def tanh(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return torch.tanh(x, out=out)


def tanh_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel, on the recomputed y: y' = 1 - y²."""
    return _from_output(aten.tanh_backward, grad, torch.tanh(_wide(x)), out)


def relu(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return torch.clamp_min(x, 0, out=out)


def relu_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: 0 where x <= 0."""
    return aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)


def leaky_relu(x: Any, negative_slope: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.leaky_relu.out(x, negative_slope, out=out)


def leaky_relu_backward(grad: Any, x: Any, negative_slope: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.leaky_relu_backward.grad_input(grad, x, negative_slope, False, grad_input=out)


def prelu(x: Any, alpha: Any, out: Any) -> Any:
    """ATen's kernel, which has no variant that writes to a given tensor."""
    return out.copy_(aten._prelu_kernel(x, _along_channels(alpha, x)))


def prelu_backward(grad: Any, x: Any, alpha: Any, out: Any) -> tuple[Any, Any]:
    """ATen's kernel gives dx and the terms of dα, of the size of x; the sum is a kernel of its own."""
    dx, terms = aten._prelu_kernel_backward(grad, x, _along_channels(alpha, x))
    return out.copy_(dx), _channel_sums(terms, alpha)


def elu(x: Any, alpha: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.elu.out(x, alpha, out=out)


def elu_backward(grad: Any, x: Any, alpha: float, out: Any) -> Any:
    """ATen's kernel: (α (exp(x) - 1))' = α exp(x)."""
    return aten.elu_backward.grad_input(grad, alpha, 1, 1, False, x, grad_input=out)


def gelu(x: Any, out: Any) -> Any:
    """ATen's kernel: x (1 + erf(x / √2)) / 2."""
    return _gelu_into(x, "none", out)


def gelu_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.gelu_backward.grad_input(grad, x, approximate="none", grad_input=out)


def gelu_tanh(x: Any, out: Any) -> Any:
    """ATen's kernel: x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2."""
    return _gelu_into(x, "tanh", out)


def gelu_tanh_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out)


def swish(x: Any, beta: Any, out: Any) -> Any:
    """x σ(βx); ATen has no kernel with a learnable β."""
    wide = _wide(x)
    gate = torch.sigmoid(_wide(_along_channels(beta, x)) * wide)
    return out.copy_(_gated(wide, gate))


def swish_backward(grad: Any, x: Any, beta: Any, out: Any) -> tuple[Any, Any]:
    """df/dx = σ + z σ(1 - σ), df/dβ = x² σ(1 - σ), with z = βx and 1 - σ(z) = σ(-z)."""
    wide, wide_grad = _wide(x), _wide(grad)
    z = _wide(_along_channels(beta, x)) * wide
    gate, complement = torch.sigmoid(z), torch.sigmoid(-z)
    curvature = gate * complement
    # An infinite or overflowing x² or z must not meet a vanished derivative as inf · 0.
    terms = torch.where(curvature == 0, curvature, wide_grad * (wide * curvature * wide))
    dbeta = _channel_sums(terms, beta)
    out.copy_(wide_grad * (gate * (1 + z.clamp(-1e4, 1e4) * complement)))
    return out, dbeta


def silu(x: Any, out: Any) -> Any:
    """ATen's kernel: x / (1 + exp(-x))."""
    return aten.silu.out(x, out=out)


def silu_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: s (1 + x (1 - s))."""
    return aten.silu_backward.grad_input(grad, x, grad_input=out)


def _gelu_into(x: Any, approximate: str, out: Any) -> Any:
    # On the CPU, aten.gelu.out leaves an `out` that is not contiguous as it was (seen in torch 2.13.0).
    if out.is_contiguous():
        return aten.gelu.out(x, approximate=approximate, out=out)
    return out.copy_(aten.gelu.default(x, approximate=approximate))


def _from_output(operator: Any, grad: Any, y: Any, out: Any) -> Any:
    """An ATen backward that takes y. In half precision y is float32: rounded, it would cost all digits of 1 - y."""
    if grad.dtype == y.dtype:
        return operator.grad_input(grad, y, grad_input=out)
    return out.copy_(operator.default(_wide(grad), y))


def _wide(x: Any) -> Any:
    """Half precision as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _gated(x: Any, gate: Any) -> Any:
    """x · gate, with the limit 0 where the gate has vanished and x may be infinite."""
    return torch.where(gate == 0, torch.copysign(gate, x), x * gate)


def _along_channels(parameter: Any, x: Any) -> Any:
    """The parameter, shaped to lie along axis 1 of x."""
    if parameter.numel() == 1:
        return parameter.reshape([1] * x.ndim)
    return parameter.reshape([1, -1, *[1] * (x.ndim - 2)])


def _channel_sums(terms: Any, parameter: Any) -> Any:
    """Σ terms over all axes but 1 (over all of them for a single parameter), summed in float64."""
    if parameter.numel() == 1:
        return terms.sum(dtype=torch.float64).to(parameter.dtype).reshape(1)
    axes = [axis for axis in range(terms.ndim) if axis != 1]
    return terms.sum(dim=axes, dtype=torch.float64).to(parameter.dtype)
