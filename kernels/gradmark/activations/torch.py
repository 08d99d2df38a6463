"""Activations in PyTorch, on the device of the input: ATen's fused kernel where it has one.

Where ATen has none, an expression outside of autograd. The catalog's deviations say where ATen keeps less than the
contract. Functions here take `out` and write to it; `grad` and `x` may be the same memory as `out`.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch

from gradmark.numerics import philox_torch
from gradmark.numerics.philox import interval

aten = torch.ops.aten

# The constants of selu (Klambauer et al. 2017). ATen multiplies them: α is the float64 after the nearest one, since
# with it the rounded product is the float64, and the float32, nearest to λα.
_SELU_ALPHA = 1.6732632423543774
_SELU_SCALE = 1.0507009873554804934193349852946

_LOG1P_EXP_IS_LINEAR = 40.0
"""From here on log(1 + exp(z)) is z and its derivative 1 in float64, to within exp(-40)."""


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
    wide, slope = _wide(x), _wide(_along_channels(beta, x))
    # Where the gate is 0, an infinite x must not meet it: it is cut on that side alone.
    reach, endless = _reach(slope), torch.full_like(slope, math.inf)
    cut = torch.maximum(wide, torch.where(slope < 0, -endless, -reach))
    torch.minimum(cut, torch.where(slope < 0, reach, endless), out=cut)
    return torch.mul((slope * cut).sigmoid_(), cut, out=out)


def swish_backward(grad: Any, x: Any, beta: Any, out: Any) -> tuple[Any, Any]:
    """df/dx = σ + z σ(1 - σ), df/dβ = x² σ(1 - σ), with z = βx and 1 - σ(z) = σ(-z)."""
    wide_grad, slope = _wide(grad), _wide(_along_channels(beta, x))
    # Beyond the cut the gate is 0 or 1, and its derivative 0.
    reach = _reach(slope)
    cut = torch.maximum(_wide(x), -reach)
    torch.minimum(cut, reach, out=cut)
    z = slope * cut
    gate, complement = torch.sigmoid(z), torch.sigmoid(-z)
    dbeta = _channel_sums((gate * complement).mul_(cut).mul_(cut).mul_(wide_grad), beta)
    torch.mul(z.mul_(complement).add_(1).mul_(gate), wide_grad, out=out)
    return out, dbeta


def silu(x: Any, out: Any) -> Any:
    """ATen's kernel: x / (1 + exp(-x))."""
    return aten.silu.out(x, out=out)


def silu_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: s (1 + x (1 - s))."""
    return aten.silu_backward.grad_input(grad, x, grad_input=out)


def relu6(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.hardtanh.out(x, 0, 6, out=out)


def relu6_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: 0 where x <= 0 or x >= 6."""
    return aten.hardtanh_backward.grad_input(grad, x, 0, 6, grad_input=out)


def squared_relu(x: Any, out: Any) -> Any:
    """The square of max(x, 0)."""
    torch.clamp_min(x, 0, out=out)
    return torch.mul(out, out, out=out)


def squared_relu_backward(grad: Any, x: Any, out: Any) -> Any:
    """(x²)' = 2x. Doubled last: 2x alone may overflow."""
    torch.mul(torch.clamp_min(x, 0), grad, out=out)
    return out.mul_(2)


def _mean(x: Any, lower: float, upper: float) -> float:
    """Of the parameters as float64 or float32 has them."""
    if x.dtype == torch.float64:
        return (lower + upper) / 2
    return (ctypes.c_float(lower).value + ctypes.c_float(upper).value) / 2


def rrelu(x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
    """ATen's leaky_relu; with a seed, a slope for each element."""
    if seed is None:
        return aten.leaky_relu.out(x, _mean(x, lower, upper), out=out)
    return out.copy_(torch.where(x < 0, x * _slopes(x, lower, upper, seed), x))


def rrelu_backward(grad: Any, x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
    """The slope where x <= 0."""
    if seed is None:
        return aten.leaky_relu_backward.grad_input(grad, x, _mean(x, lower, upper), False, grad_input=out)
    return out.copy_(torch.where(x > 0, grad, grad * _slopes(x, lower, upper, seed)))


def celu(x: Any, alpha: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.elu.out(x, alpha, 1, 1 / alpha, out=out)


def celu_backward(grad: Any, x: Any, alpha: float, out: Any) -> Any:
    """(α (exp(x/α) - 1))' = exp(x/α), ATen's kernel for elu on x/α: it would multiply by a rounded 1/α."""
    scaled = _wide(x) / alpha
    if grad.dtype == scaled.dtype:
        return aten.elu_backward.grad_input(grad, 1, 1, 1, False, scaled, grad_input=out)
    return out.copy_(aten.elu_backward.default(_wide(grad), 1, 1, 1, False, scaled))


def selu(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.elu.out(x, _SELU_ALPHA, _SELU_SCALE, 1, out=out)


def selu_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: (λα (exp(x) - 1))' = λα exp(x)."""
    return aten.elu_backward.grad_input(grad, _SELU_ALPHA, _SELU_SCALE, 1, False, x, grad_input=out)


def hard_sigmoid(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.hardsigmoid.out(x, out=out)


def hard_sigmoid_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel: 1/6 between -3 and 3. In float64, where its 1/6 is that of float32: the one for hard_tanh, / 6."""
    if x.dtype == torch.float64:
        return aten.hardtanh_backward.grad_input(grad, x, -3, 3, grad_input=out).div_(6)
    return aten.hardsigmoid_backward.grad_input(grad, x, grad_input=out)


def hard_tanh(x: Any, min_val: float, max_val: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.hardtanh.out(x, min_val, max_val, out=out)


def hard_tanh_backward(grad: Any, x: Any, min_val: float, max_val: float, out: Any) -> Any:
    """ATen's kernel: 0 where x <= min_val or x >= max_val."""
    return aten.hardtanh_backward.grad_input(grad, x, min_val, max_val, grad_input=out)


def hard_swish(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.hardswish.out(x, out=out)


def hard_swish_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel, which has no variant that writes to a given tensor: (x (x + 3) / 6)' = x/3 + 1/2."""
    return out.copy_(aten.hardswish_backward(grad, x))


def hard_mish(x: Any, out: Any) -> Any:
    """x min(2, max(0, x + 2)) / 2, on x cut at -2: an infinite x must not meet the 0."""
    cut = _wide(x).clamp_min(-2)
    return torch.mul(cut, (cut + 2).clamp_max_(2).mul_(0.5), out=out)


def hard_mish_backward(grad: Any, x: Any, out: Any) -> Any:
    """(x (x + 2) / 2)' = x + 1 from -2 to 0, 0 below: where x + 1 is at most the last float before -1."""
    slope = (_wide(x) + 1).clamp_max_(1)
    return torch.mul(torch.threshold_(slope, -1 - torch.finfo(slope.dtype).eps, 0), grad, out=out)


def threshold(x: Any, threshold: float, value: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.threshold.out(x, threshold, value, out=out)


def threshold_backward(grad: Any, x: Any, threshold: float, value: float, out: Any) -> Any:
    """ATen's kernel: 0 where x <= threshold."""
    return aten.threshold_backward.grad_input(grad, x, threshold, grad_input=out)


def softshrink(x: Any, lambd: float, out: Any) -> Any:
    """ATen's kernel."""
    return aten.softshrink.out(x, lambd, out=out)


def softshrink_backward(grad: Any, x: Any, lambd: float, out: Any) -> Any:
    """ATen's kernel: 0 where |x| <= λ."""
    return _shrink_backward(aten.softshrink_backward, grad, x, lambd, out)


def hardshrink(x: Any, lambd: float, out: Any) -> Any:
    """ATen's kernel."""
    return (
        out.copy_(aten.hardshrink.default(_wide(x), lambd)) if _is_half(x) else aten.hardshrink.out(x, lambd, out=out)
    )


def hardshrink_backward(grad: Any, x: Any, lambd: float, out: Any) -> Any:
    """ATen's kernel: 0 where |x| <= λ."""
    return _shrink_backward(aten.hardshrink_backward, grad, x, lambd, out)


def tanhshrink(x: Any, out: Any) -> Any:
    """ATen's tanh, subtracted; -0 - -0 is 0, and has its sign restored."""
    wide = _wide(x)
    y = torch.tanh(wide)
    torch.sub(wide, y, out=y)
    return torch.copysign(y, wide, out=out)


def tanhshrink_backward(grad: Any, x: Any, out: Any) -> Any:
    """(x - tanh x)' = tanh² x."""
    return torch.mul(torch.tanh(_wide(x)).square_(), grad, out=out)


def softsign(x: Any, out: Any) -> Any:
    """x / (1 + |x|), on x cut where the result has long been ±1: an infinite x would give inf / inf."""
    cut = _wide(x).clamp(-(2.0**60), 2.0**60)
    return torch.div(cut, cut.abs().add_(1), out=out)


def softsign_backward(grad: Any, x: Any, out: Any) -> Any:
    """(x / (1 + |x|))' = 1 / (1 + |x|)²."""
    return torch.div(grad, _wide(x).abs().add_(1).square_(), out=out)


def softplus(x: Any, beta: float, threshold: float, out: Any) -> Any:
    """ATen's kernel. Beyond a threshold of more than 88 (float32) its exp(βx) would overflow."""
    return aten.softplus.out(x, beta, min(threshold, _LOG1P_EXP_IS_LINEAR), out=out)


def softplus_backward(grad: Any, x: Any, beta: float, threshold: float, out: Any) -> Any:
    """ATen's kernel: e / (e + 1) with e = exp(βx)."""
    limit = min(threshold, _LOG1P_EXP_IS_LINEAR)
    return aten.softplus_backward.grad_input(grad, x, beta, limit, grad_input=out)


def log_sigmoid(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.log_sigmoid.out(x, out=out)


def log_sigmoid_backward(grad: Any, x: Any, out: Any) -> Any:
    """(log σ)' = 1 - σ(x) = σ(-x)."""
    return torch.mul(torch.neg(_wide(x)).sigmoid_(), grad, out=out)


def mish(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return aten.mish.out(x, out=out)


def mish_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel, which has no variant that writes to a given tensor: t + x σ(x) (1 - t²), t = tanh(log(1 + eˣ))."""
    return out.copy_(aten.mish_backward(grad, x))


def quick_gelu(x: Any, out: Any) -> Any:
    """x σ(1.702 x), on x cut where it is 0: an infinite x must not meet that gate."""
    wide = _wide(x)
    cut = wide.clamp_min(-_vanished(wide) / 1.702)
    return torch.mul((1.702 * cut).sigmoid_(), cut, out=out)


def quick_gelu_backward(grad: Any, x: Any, out: Any) -> Any:
    """f' = σ + z σ (1 - σ) with z = 1.702 x and 1 - σ(z) = σ(-z)."""
    wide = _wide(x)
    limit = _vanished(wide)
    z = (1.702 * wide).clamp_(-limit, limit)
    complement = torch.neg(z).sigmoid_()
    slope = complement.mul_(z).add_(1).mul_(z.sigmoid_())
    return torch.mul(slope, grad, out=out)


def squareplus(x: Any, b: float, out: Any) -> Any:
    """max(x, 0) + b / (4h), h = (|x| + √(x² + b)) / 2: f(x) - f(-x) = x, and f(x) f(-x) = b/4."""
    wide = _wide(x)
    below, _ = _below(wide, b)
    return torch.add(wide.clamp_min(0), below, out=out)


def squareplus_backward(grad: Any, x: Any, b: float, out: Any) -> Any:
    """f' = (1 + x / √(x² + b)) / 2 = f / √(x² + b)."""
    wide = _wide(x)
    # At infinity it would be inf / inf; beyond this cut it is 1 already.
    cut = wide.clamp_max(torch.finfo(wide.dtype).max / 8)
    below, root = _below(cut, b)
    return torch.mul(below.add_(cut.clamp_min_(0)).div_(root), grad, out=out)


def sparse_plus(x: Any, out: Any) -> Any:
    """(x + 1)² / 4 between -1 and 1, x above; there it is larger, the difference being (x - 1)² / 4."""
    wide = _wide(x)
    return torch.maximum((wide + 1).clamp_(0, 2).square_().mul_(0.25), wide, out=out)


def sparse_plus_backward(grad: Any, x: Any, out: Any) -> Any:
    """((x + 1)² / 4)' = (x + 1) / 2."""
    return torch.mul((_wide(x) + 1).clamp_(0, 2).mul_(0.5), grad, out=out)


def sparse_sigmoid(x: Any, out: Any) -> Any:
    """(x + 1) / 2 between -1 and 1."""
    return torch.add(_wide(x).clamp(-1, 1).mul_(0.5), 0.5, out=out)


def sparse_sigmoid_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's kernel for hard_tanh, halved."""
    return aten.hardtanh_backward.grad_input(grad, x, -1, 1, grad_input=out).mul_(0.5)


def exponential(x: Any, out: Any) -> Any:
    """ATen's kernel."""
    return torch.exp(x, out=out)


def exponential_backward(grad: Any, x: Any, out: Any) -> Any:
    """ATen's exp: exp' = exp."""
    return torch.mul(torch.exp(_wide(x)), grad, out=out)


def identity(x: Any, out: Any) -> Any:
    """A copy."""
    return out.copy_(x)


def identity_backward(grad: Any, x: Any, out: Any) -> Any:
    """A copy: x' = 1."""
    return out.copy_(grad)


def _shrink_backward(operator: Any, grad: Any, x: Any, lambd: float, out: Any) -> Any:
    # In half precision ATen would round λ, and take the other branch near it.
    if _is_half(x):
        return out.copy_(operator.default(_wide(grad), _wide(x), lambd))
    return operator.grad_input(grad, x, lambd, grad_input=out)


def _slopes(x: Any, lower: float, upper: float, seed: int) -> Any:
    """The slope of each element, lower + (upper - lower) u in x's shape, each operation rounded once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    start, span, _ = interval(lower, upper, "float64" if wide == torch.float64 else "float32")
    u = torch.empty(x.shape, dtype=wide, device=x.device)
    philox_torch.fill_uniform(u.view(-1), 0, seed, 0.0, 1.0)
    return u.mul_(span).add_(start)


def _below(x: Any, b: float) -> tuple[Any, Any]:
    """squareplus at -|x|, and √(x² + b)."""
    size = x.abs()
    # Where x² would overflow, the root is |x|.
    cut = size.clamp_max(torch.finfo(x.dtype).max ** 0.5 / 8)
    # addcmul rounds x² + b once, where it is compiled to fused instructions.
    root = torch.addcmul(torch.full((), b, dtype=x.dtype, device=x.device), cut, cut).sqrt_()
    root = torch.maximum(root, size)
    half = size.mul_(0.5).add_(root, alpha=0.5)
    return torch.div(b / 4, half), root


def _vanished(x: Any) -> float:
    """Beyond this |z|, σ(-z) is 0 in x's dtype."""
    return 750.0 if x.dtype == torch.float64 else 110.0


def _reach(slope: Any) -> Any:
    """Beyond this |x|, σ(-|slope x|) is 0."""
    return torch.div(_vanished(slope), slope.abs()).clamp_max_(torch.finfo(slope.dtype).max)


def _gelu_into(x: Any, approximate: str, out: Any) -> Any:
    # On the CPU, aten.gelu.out leaves an `out` that is not contiguous as it was (seen in torch 2.13.0).
    if _drops_signs_of_zeros(x.device.type, x.dtype, approximate):
        return torch.copysign(aten.gelu.default(x, approximate=approximate), x, out=out)
    if out.is_contiguous():
        return aten.gelu.out(x, approximate=approximate, out=out)
    return out.copy_(aten.gelu.default(x, approximate=approximate))


@functools.cache
def _drops_signs_of_zeros(device: str, dtype: Any, approximate: str) -> bool:
    """Whether gelu(-0) is +0, as oneDNN's is in float32 on processors with AVX2 and without AVX-512 (torch 2.13.0)."""
    if device != "cpu":
        return False
    zeros = torch.full((2,), -0.0, dtype=dtype)
    return not bool(torch.signbit(aten.gelu.default(zeros, approximate=approximate)).all())


def _from_output(operator: Any, grad: Any, y: Any, out: Any) -> Any:
    """An ATen backward that takes y. In half precision y is float32: rounded, it would cost all digits of 1 - y."""
    if grad.dtype == y.dtype:
        return operator.grad_input(grad, y, grad_input=out)
    return out.copy_(operator.default(_wide(grad), y))


def _wide(x: Any) -> Any:
    """Half precision as float32; others as they are."""
    return x.float() if _is_half(x) else x


def _is_half(x: Any) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)


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
