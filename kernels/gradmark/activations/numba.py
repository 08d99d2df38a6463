"""Activations in Numba: one fused, vectorized pass over memory each.

An activation is a pair of scalar functions, the value f(x, p) and the gradient g f'(x, p), made from the elementary
functions of a dtype `m`; p is 0 where the operation has no parameter. The loops are those of `numerics.fused`.
`PAIRS` serves other fused kernels (residual_add) as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gradmark.numerics.elementary import Elementary, inlined
from gradmark.numerics.fused import Channelwise, Pointwise

Scalar = Callable[..., Any]
Pair = Callable[[Elementary], tuple[Scalar, Scalar]]

PAIRS: dict[str, Pair] = {}
"""(value, gradient) of each activation, by name: value(x, p), gradient(g, x, p)."""


def pointwise(pair: Pair) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an activation whose parameter, if any, is fixed."""
    name = pair.__name__.lstrip("_")
    PAIRS[name] = pair
    forward_loop = Pointwise(name, 1, lambda m: pair(m)[0])
    backward_loop = Pointwise(f"{name}_backward", 2, lambda m: pair(m)[1])

    def forward(x: Any, *parameter_and_out: Any) -> Any:
        *parameter, out = parameter_and_out
        return forward_loop((x,), parameter[0] if parameter else 0.0, out)

    def backward(grad: Any, x: Any, *parameter_and_out: Any) -> Any:
        *parameter, out = parameter_and_out
        return backward_loop((grad, x), parameter[0] if parameter else 0.0, out)

    return forward, backward


def channelwise(pair: Pair) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an activation with a learnable parameter; gradient gives (g f'(x), g df/dp)."""
    name = pair.__name__.lstrip("_")
    forward_loop = Channelwise(name, 1, lambda m: pair(m)[0], sums=False)
    backward_loop = Channelwise(f"{name}_backward", 2, lambda m: pair(m)[1], sums=True)

    def forward(x: Any, parameter: Any, out: Any) -> Any:
        return forward_loop((x,), parameter, out)

    def backward(grad: Any, x: Any, parameter: Any, out: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = backward_loop((grad, x), parameter, out)
        return result

    return forward, backward


def _sigmoid(m: Elementary) -> tuple[Scalar, Scalar]:
    exp, zero, one = m.exp, m.real(0), m.real(1)

    def value(x: Any, p: Any) -> Any:
        e = exp(-abs(x))
        s = one / (one + e)
        return e * s if x < zero else s

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # s' = s (1 - s) = e / (1 + e)², even in x: no cancellation at either end.
        e = exp(-abs(x))
        s = one / (one + e)
        return g * (e * s * s)

    return value, gradient


def _tanh(m: Elementary) -> tuple[Scalar, Scalar]:
    tanh, exp, one, minus_two, four = m.tanh, m.exp, m.real(1), m.real(-2), m.real(4)

    def value(x: Any, p: Any) -> Any:
        return tanh(x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # tanh' = 1 - tanh² = 4 e / (1 + e)² with e = exp(-2 |x|).
        e = exp(minus_two * abs(x))
        s = one / (one + e)
        return g * (four * e * s * s)

    return value, gradient


def _relu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return zero if x < zero else x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if x <= zero else g

    return value, gradient


def _leaky_relu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return x if x > zero else p * x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return g if x > zero else p * g

    return value, gradient


def _prelu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return x if x > zero else p * x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return (g if x > zero else p * g), (zero if x > zero else x * g)

    return value, gradient


def _elu(m: Elementary) -> tuple[Scalar, Scalar]:
    exp, expm1, zero = m.exp, m.expm1, m.real(0)

    def value(x: Any, p: Any) -> Any:
        return x if x > zero else p * expm1(x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (p (exp x - 1))' = p exp x.
        return g * (p * exp(x)) if x <= zero else g

    return value, gradient


def _gelu(m: Elementary) -> tuple[Scalar, Scalar]:
    gaussian, mills, fma = m.gaussian, m.mills, m.fma
    limit, zero, one = m.tail_limit, m.real(0), m.real(1)
    minus_density = m.real(-1 / math.sqrt(2 * math.pi))

    def value(x: Any, p: Any) -> Any:
        # Φ(x) = Q(-x) for x < 0, 1 - Q(x) above; Q by its own series, so that the tail keeps its digits.
        t = abs(x)
        t = limit if t > limit else t
        tail = t * (gaussian(t) * mills(t))
        return -tail if x < zero else x - tail

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = Φ(x) + x φ(x); below 0 it is exp(-t²/2) (Q exp(t²/2) - t / √(2π)), above 0 one minus that.
        t = abs(x)
        t = limit if t > limit else t
        tail = gaussian(t) * fma(minus_density, t, mills(t))
        return g * (tail if x < zero else one - tail)

    return value, gradient


def _gelu_tanh(m: Elementary) -> tuple[Scalar, Scalar]:
    argument, logistic = _gelu_tanh_argument(m), _logistic(m)
    fma, zero, one = m.fma, m.real(0), m.real(1)
    # Beyond this |x| the logistic function is 0 or 1 in both dtypes: |z| > 800.
    limit = m.real(22.0)
    scale = math.sqrt(8 / math.pi)
    slope_constant, slope_square = m.real(scale), m.real(scale * 3 * 0.044715)

    def value(x: Any, p: Any) -> Any:
        # x (1 + tanh(z/2)) / 2 = x / (1 + exp(-z)).
        t = limit if x > limit else x
        t = -limit if t < -limit else t
        high, low = argument(t)
        s, _ = logistic(high, low)
        return math.copysign(zero, x) if s == zero else x * s

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = s + x s (1 - s) z'(x), z' = √(8/π) (1 + 3 · 0.044715 x²).
        t = limit if x > limit else x
        t = -limit if t < -limit else t
        high, low = argument(t)
        s, complement = logistic(high, low)
        slope = fma(slope_square, t * t, slope_constant)
        return g * (s * fma(t * slope, complement, one))

    return value, gradient


def _gelu_tanh_argument(m: Elementary) -> Scalar:
    """x -> z = √(8/π) (x + 0.044715 x³) as a sum of two floats: exp turns its absolute error into a relative one."""
    fma = m.fma
    constant = math.sqrt(8 / math.pi)
    constant_high, constant_low = _split(m, math.sqrt(8 / math.pi), _SQRT_8_OVER_PI_REST)
    cubic_high, cubic_low = _split(m, constant * 0.044715, _CUBIC_REST)

    @inlined
    def argument(x: Any) -> Any:
        square = x * x
        square_rest = fma(x, x, -square)
        term = cubic_high * square
        term_rest = fma(cubic_high, square, -term) + fma(cubic_high, square_rest, cubic_low * square)
        total = constant_high + term
        # Two-sum (Knuth, TAOCP 2, 4.2.2).
        back = total - constant_high
        total_rest = (constant_high - (total - back)) + (term - back)
        rest = total_rest + (term_rest + constant_low)
        high = x * total
        return high, fma(x, total, -high) + x * rest

    return argument


def _rest_of_constants() -> tuple[float, float]:
    """What float64 leaves of √(8/π) and of 0.044715 √(8/π)."""
    import mpmath

    with mpmath.workdps(60):
        exact = mpmath.sqrt(8 / mpmath.pi)
        cubic = exact * mpmath.mpf("0.044715")
        nearest = math.sqrt(8 / math.pi)
        return float(exact - mpmath.mpf(nearest)), float(cubic - mpmath.mpf(nearest * 0.044715))


_SQRT_8_OVER_PI_REST, _CUBIC_REST = _rest_of_constants()


def _split(m: Elementary, high: float, rest: float) -> tuple[Any, Any]:
    """The number high + rest as a sum of two constants of the dtype."""
    first = m.real(high)
    return first, m.real((high - float(first)) + rest)


def _logistic(m: Elementary) -> Scalar:
    """(high, low) -> s = 1 / (1 + exp(-(high + low))) and 1 - s, neither by a subtraction from 1."""
    exp_sum, zero, one = m.exp_sum, m.real(0), m.real(1)

    @inlined
    def logistic(high: Any, low: Any) -> Any:
        e = exp_sum(-abs(high), low if high < zero else -low)
        larger = one / (one + e)
        smaller = e * larger
        return (smaller, larger) if high < zero else (larger, smaller)

    return logistic


def _swish(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, logistic, zero, one = m.fma, _logistic(m), m.real(0), m.real(1)
    largest = m.real(1e4)

    @inlined
    def gate(p: Any, x: Any) -> Any:
        z = p * x
        # Beyond ±1e4 the rest has no say, and is NaN where z has overflowed.
        return z, logistic(z, fma(p, x, -z) if abs(z) < largest else zero)

    def value(x: Any, p: Any) -> Any:
        _, (s, _) = gate(p, x)
        return math.copysign(zero, x) if s == zero else x * s

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # df/dx = s + z s (1 - s), df/dp = x² s (1 - s), with z = p x.
        z, (s, complement) = gate(p, x)
        # Where exp(-|z|) is 0, an infinite or overflowing z or x² must not meet it as inf · 0.
        clamped = largest if z > largest else z
        clamped = -largest if clamped < -largest else clamped
        curvature = s * complement
        partial = zero if curvature == zero else g * (x * curvature * x)
        return g * (s * fma(clamped, complement, one)), partial

    return value, gradient


def _silu(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, logistic, zero, one = m.fma, _logistic(m), m.real(0), m.real(1)
    largest = m.real(1e4)

    def value(x: Any, p: Any) -> Any:
        s, _ = logistic(x, zero)
        return math.copysign(zero, x) if s == zero else x * s

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = s + x s (1 - s); beyond ±1e4, s (1 - s) is 0 and must not meet an infinity.
        s, complement = logistic(x, zero)
        clamped = largest if x > largest else x
        clamped = -largest if clamped < -largest else clamped
        return g * (s * fma(clamped, complement, one))

    return value, gradient


sigmoid, sigmoid_backward = pointwise(_sigmoid)
tanh, tanh_backward = pointwise(_tanh)
relu, relu_backward = pointwise(_relu)
leaky_relu, leaky_relu_backward = pointwise(_leaky_relu)
prelu, prelu_backward = channelwise(_prelu)
elu, elu_backward = pointwise(_elu)
gelu, gelu_backward = pointwise(_gelu)
gelu_tanh, gelu_tanh_backward = pointwise(_gelu_tanh)
swish, swish_backward = channelwise(_swish)
silu, silu_backward = pointwise(_silu)
