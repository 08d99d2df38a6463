"""Activations in Numba: one fused, vectorized pass over memory each.

An activation is a pair of scalar functions, the value f(x, p) and the gradient g f'(x, p), made from the elementary
functions of a dtype `m`. p is the parameter, a tuple of two of them, or 0 where the operation has none. The loops are
those of `numerics.fused`. `PAIRS` serves other fused kernels (residual_add, the gated units) as well.

Sums of two floats are written high, low. t is |x| throughout, clamped where an infinity would meet a vanished factor.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from gradmark.numerics import philox_numba
from gradmark.numerics.elementary import inlined
from gradmark.numerics.functions import Elementary
from gradmark.numerics.fused import Channelwise, Pointwise

Scalar = Callable[..., Any]
Pair = Callable[[Elementary], tuple[Scalar, Scalar]]

PAIRS: dict[str, Pair] = {}
"""(value, gradient) of each activation, by name: value(x, p), gradient(g, x, p)."""
UNITS: dict[str, str] = {}
"""Of an activation of a scaled x: the name of its pair for the scale 1, without the scale; `scaled` fills it."""


def simplest(activation: str, parameters: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """The name in `PAIRS` that serves these parameters with the least work, and the parameters that it takes."""
    if activation in UNITS and parameters[0] == 1.0:
        return UNITS[activation], parameters[1:]
    return activation, parameters


def pointwise(pair: Pair, parameters: int = 0, *, cheap: bool = False) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an activation with so many parameters, none of them learnable; `cheap` as in `fused`."""
    name = pair.__name__.lstrip("_")
    PAIRS[name] = pair
    value = Pointwise(name, 1, lambda m: pair(m)[0], parameters, cheap=cheap)
    gradient = Pointwise(f"{name}_backward", 2, lambda m: pair(m)[1], parameters, cheap=cheap)
    if parameters == 0:
        return (
            lambda x, out: value((x,), (), out),
            lambda grad, x, out: gradient((grad, x), (), out),
        )
    if parameters == 1:
        return (
            lambda x, p, out: value((x,), (p,), out),
            lambda grad, x, p, out: gradient((grad, x), (p,), out),
        )
    return (
        lambda x, p, q, out: value((x,), (p, q), out),
        lambda grad, x, p, q, out: gradient((grad, x), (p, q), out),
    )


def scaled(pair: Pair, unit: Pair) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an activation of a scaled x; with the scale 1, the usual one, those of `unit`."""
    UNITS[pair.__name__.lstrip("_")] = unit.__name__.lstrip("_")
    forward_scaled, backward_scaled = pointwise(pair, 2)
    forward_unit, backward_unit = pointwise(unit, 1)

    def forward(x: Any, scale: float, p: float, out: Any) -> Any:
        return forward_unit(x, p, out) if scale == 1.0 else forward_scaled(x, scale, p, out)

    def backward(grad: Any, x: Any, scale: float, p: float, out: Any) -> Any:
        return backward_unit(grad, x, p, out) if scale == 1.0 else backward_scaled(grad, x, scale, p, out)

    return forward, backward


def channelwise(pair: Pair, *, cheap: bool = False) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an activation with a learnable parameter; gradient gives (g f'(x), g df/dp)."""
    name = pair.__name__.lstrip("_")
    # A call of Channelwise takes microseconds longer, for what a single parameter does not need.
    single = Pointwise(name, 1, lambda m: pair(m)[0], 1, cheap=cheap)
    forward_loop = Channelwise(name, 1, lambda m: pair(m)[0], sums=False, cheap=cheap)
    backward_loop = Channelwise(f"{name}_backward", 2, lambda m: pair(m)[1], sums=True, cheap=cheap)

    def forward(x: Any, parameter: Any, out: Any) -> Any:
        if parameter.size == 1:
            return single((x,), (parameter.item(),), out)
        return forward_loop((x,), parameter, out)

    def backward(grad: Any, x: Any, parameter: Any, out: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = backward_loop((grad, x), parameter, out)
        return result

    return forward, backward


def _logistic(m: Elementary) -> tuple[Scalar, Scalar]:
    """What σ and its derivatives are made of, for z = high + low <= 0 and e = exp(z).

    exponential : (high, low) -> e and e_low
    divided : (a, a_low, e, e_low) -> a / (1 + e)
    """
    exp_parts_sum, scale, quotient, one = m.exp_parts_sum, m.scale, m.quotient, m.real(1)

    @inlined
    def exponential(high: Any, low: Any) -> Any:
        p, p_low, k = exp_parts_sum(high, low)
        e = one + p
        return scale(e, k), scale((p - (e - one)) + p_low, k)

    @inlined
    def divided(a: Any, a_low: Any, e: Any, e_low: Any) -> Any:
        d = one + e
        return quotient(a, a_low, d, ((one - d) + e) + e_low)

    return exponential, divided


def _squared(m: Elementary) -> Scalar:
    """e -> (1 + e)² = 1 + e (2 + e), 0.8 ULP: what a derivative is divided by, whose bar is not that of a value."""
    fma, one, two = m.fma, m.real(1), m.real(2)

    @inlined
    def squared(e: Any) -> Any:
        return fma(e, two + e, one)

    return squared


def _sigmoid(m: Elementary) -> tuple[Scalar, Scalar]:
    exp_falling, nothing, zero, one = m.exp_falling, m.nothing, m.real(0), m.real(1)
    _, divided = _logistic(m)
    squared = _squared(m)

    def value(x: Any, p: Any) -> Any:
        e = exp_falling(-abs(x))
        return divided(e if x < zero else one, nothing, e, nothing)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # s' = s (1 - s) = e / (1 + e)², even in x: no cancellation at either end.
        e = exp_falling(-abs(x))
        return g * (e / squared(e))

    return value, gradient


def _tanh(m: Elementary) -> tuple[Scalar, Scalar]:
    tanh, exp_falling, minus_two, four = m.tanh, m.exp_falling, m.real(-2), m.real(4)
    squared = _squared(m)

    def value(x: Any, p: Any) -> Any:
        return tanh(x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # tanh' = 1 - tanh² = 4 e / (1 + e)² with e = exp(-2 |x|).
        e = exp_falling(minus_two * abs(x))
        return g * (four * e / squared(e))

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
    exp, expm1_parts, fma, zero = m.exp, m.expm1_parts, m.fma, m.real(0)

    def value(x: Any, p: Any) -> Any:
        high, low = expm1_parts(x)
        # A zero of the product has the sign that it has without the low part.
        below = p * (x if x == zero else high)
        below = below if below == zero else fma(p, high, p * low)
        return x if x > zero else below

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (p (exp x - 1))' = p exp x.
        return g * (p * exp(x)) if x <= zero else g

    return value, gradient


def _gelu(m: Elementary) -> tuple[Scalar, Scalar]:
    tail, tail_slope, zero, one = m.tail, m.tail_slope, m.real(0), m.real(1)

    def value(x: Any, p: Any) -> Any:
        # Φ(x) = Q(-x) for x < 0, 1 - Q(x) above; Q by its own series, so that the tail keeps its digits.
        q = tail(abs(x))
        return -q if x < zero else x - q

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = Φ(x) + x φ(x): for x < 0 that is Q(t) - t φ(t), above 0 one minus that.
        slope = tail_slope(abs(x))
        return g * (-slope if x < zero else one + slope)

    return value, gradient


def _gelu_tanh(m: Elementary) -> tuple[Scalar, Scalar]:
    argument, (gate_value, gate_slope, _) = _gelu_tanh_argument(m), _gate(m)
    # Beyond this |x| the logistic function is 0 or 1 in both dtypes: |z| > 800.
    limit = m.real(22.0)

    def value(x: Any, p: Any) -> Any:
        # x (1 + tanh(z/2)) / 2 = x / (1 + exp(-z)).
        t = abs(x)
        high, low, _, _ = argument(limit if t > limit else t)
        return gate_value(x, -limit if x < -limit else x, x, high, low)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = s + s (1 - s) x z'(x), z' = √(8/π) (1 + 3 · 0.044715 x²).
        t = abs(x)
        high, low, slope, slope_low = argument(limit if t > limit else t)
        return g * gate_slope(x, high, low, slope, slope_low)

    return value, gradient


def _gelu_tanh_argument(m: Elementary) -> Scalar:
    """t -> z = √(8/π) (t + 0.044715 t³) and t z'(t), each as a sum of two floats.

    exp turns the absolute error of z into a relative one, and t z' is about to be subtracted from 1 + exp(-z).
    """
    two_product, fma, three = m.two_product, m.fma, m.real(3)
    constant_high, constant_low = _split(m, _SQRT_8_OVER_PI)
    cubic_high, cubic_low = _split(m, _SQRT_8_OVER_PI * Fraction("0.044715"))

    @inlined
    def argument(t: Any) -> Any:
        square, square_low = two_product(t, t)
        term, term_low = two_product(cubic_high, square)
        term_low += fma(cubic_high, square_low, cubic_low * square)
        # √(8/π) + term, and the same with three times the term; two-sums (Knuth, TAOCP 2, 4.2.2).
        total, total_low = _two_sum(constant_high, term)
        triple, triple_low = _two_sum(constant_high, three * term)
        triple_low += fma(three, term, -(three * term))
        z, z_low = two_product(t, total)
        v, v_low = two_product(t, triple)
        z_low += t * (total_low + (term_low + constant_low))
        v_low += t * (triple_low + fma(three, term_low, constant_low))
        return z, z_low, v, v_low

    return argument


@inlined
def _two_sum(a: Any, b: Any) -> Any:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _split(m: Elementary, exact: Fraction) -> tuple[Any, Any]:
    """A number as a sum of two constants of the dtype."""
    high = m.real(float(exact))
    return high, m.real(float(exact - Fraction(float(high))))


_SQRT_8_OVER_PI = Fraction("1.595769121605730711759784239737527473903")
_SIXTH = Fraction(1, 6)
_SELU_SCALE = Fraction("1.0507009873554804934193349852946")
_SELU_ALPHA = Fraction("1.6732632423543772848170429916717")


def _gate(m: Elementary) -> tuple[Scalar, Scalar, Scalar]:
    """x σ(±z), and its derivative; z >= 0 is given as a sum of two floats, its sign is that of `sign`.

    The third is the derivative together with e = exp(-z) and (1 + e)².
    """
    exp_parts_sum, scale, fma, quotient = m.exp_parts_sum, m.scale, m.fma, m.quotient
    nothing, zero, one, two = m.nothing, m.real(0), m.real(1), m.real(2)
    exponential, divided = _logistic(m)
    squared = _squared(m)
    largest, infinity = m.real(1e4), m.real(math.inf)

    @inlined
    def value(x: Any, below: Any, sign: Any, high: Any, low: Any) -> Any:
        # σ(-z) = e / (1 + e), and x e = (x + x p) a b with one rounding less; `below` is x, kept from meeting e = 0
        # as an infinity.
        p, _, k = exp_parts_sum(-high, -low)
        e, _ = exponential(-high, -low)
        y = divided(scale(fma(below, p, below), k) if sign < zero else x, nothing, e, nothing)
        # The residual of an infinite quotient is NaN, and that of a zero loses the sign.
        return x if (sign >= zero) & (abs(x) == infinity) else math.copysign(y, x)

    @inlined
    def slope(sign: Any, high: Any, low: Any, v: Any, v_low: Any) -> Any:
        y, _, _ = slope_and_parts(sign, high, low, v, v_low)
        return y

    @inlined
    def slope_and_parts(sign: Any, high: Any, low: Any, v: Any, v_low: Any) -> Any:
        # v = |x z'|. For z < 0: e (1 - v + e) / (1 + e)², where 1 - v is exact near its zero, and so is the addition
        # of w, with e = w + w p; above 0 one minus that, (1 + e (1 + v)) / (1 + e)².
        p, _, k = exp_parts_sum(-high, -low)
        w = scale(one, k)
        e = scale(one + p, k)
        v = largest if v > largest else v
        # Scaled last, so that a subnormal product is rounded once; w, beside 1 - v, may have vanished by then.
        y = fma(w, p, ((one - v) + w) - v_low)
        numerator = scale(fma(y, p, y), k) if sign < zero else fma(e, one + v, one)
        d = squared(e)
        return quotient(numerator, nothing, d, fma(e, two + e, one - d)), e, d

    return value, slope, slope_and_parts


def _swish(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, zero = m.fma, m.real(0)
    gate_value, _, gate_slope_and_parts = _gate(m)
    largest, infinity = m.real(1e4), m.real(math.inf)

    @inlined
    def product(p: Any, x: Any) -> Any:
        # A zero p times an infinite x is 0 here: x σ(0).
        z = zero if (p == zero) & (abs(x) == infinity) else p * x
        # Beyond ±1e4 the rest has no say, and is NaN where z has overflowed.
        low = fma(p, x, -z) if (abs(z) < largest) & (p != zero) else zero
        return z, abs(z), -low if z < zero else low

    def value(x: Any, p: Any) -> Any:
        z, high, low = product(p, x)
        below = math.copysign(zero, x) if high > largest else x
        return gate_value(x, below, z, high, low)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # df/dx = s + z s (1 - s), df/dp = x² s (1 - s), with z = p x and s (1 - s) = e / (1 + e)².
        z, high, low = product(p, x)
        slope, e, d = gate_slope_and_parts(z, high, low, high, low)
        # An infinite or overflowing x² must not meet e = 0 as inf · 0.
        partial = zero if e == zero else g * (x * (e / d) * x)
        return g * slope, partial

    return value, gradient


def _silu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, nothing, farthest = m.real(0), m.nothing, m.farthest
    gate_value, gate_slope, _ = _gate(m)

    def value(x: Any, p: Any) -> Any:
        return gate_value(x, -farthest if x < -farthest else x, x, abs(x), zero)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = s + x s (1 - s).
        t = abs(x)
        return g * gate_slope(x, t, nothing, t, nothing)

    return value, gradient


def _relu6(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, six = m.real(0), m.real(6)

    def value(x: Any, p: Any) -> Any:
        y = zero if x < zero else x
        return six if y > six else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if (x <= zero) | (x >= six) else g

    return value, gradient


def _squared_relu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, one = m.real(0), m.real(1)

    def value(x: Any, p: Any) -> Any:
        return zero if x < zero else x * x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # Doubled is the smaller of the two, which neither overflows nor rounds before the product does.
        below = abs(g) < one
        y = (g + g if below else g) * (x if below else x + x)
        return zero if x <= zero else y

    return value, gradient


def _rrelu(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return p * x if x < zero else x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return g if x > zero else p * g

    return value, gradient


def _celu(m: Elementary) -> tuple[Scalar, Scalar]:
    expm1_sum_parts, fma, zero, one, largest = m.expm1_sum_parts, m.fma, m.real(0), m.real(1), m.real(1e4)
    # exp(z) - 1 is z there.
    smallest = m.real(-(2.0**-27 if m.dtype == "float32" else 2.0**-56))
    exponential, _ = _logistic(m)

    @inlined
    def scaled(x: Any, p: Any) -> Any:
        """x / p as a sum of two floats; beyond -1e4 the rest has no say, and is NaN where the quotient overflows."""
        inverse = one / p
        z = x * inverse
        return z, fma(-z, p, x) * inverse if z > -largest else zero

    def value(x: Any, p: Any) -> Any:
        z, low = scaled(x, p)
        high, low = expm1_sum_parts(z, low)
        # x itself: z may be subnormal, or a zero without its sign.
        return x if z > smallest else fma(p, high, p * low)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (p (exp(x / p) - 1))' = exp(x / p).
        z, low = scaled(x if x <= zero else zero, p)
        e, _ = exponential(z, low)
        return g * e

    return value, gradient


def _selu(m: Elementary) -> tuple[Scalar, Scalar]:
    exp_parts, expm1, fma, scale_by = m.exp_parts, m.expm1, m.fma, m.scale
    _nothing, zero = m.nothing, m.real(0)
    scale, _ = _split(m, _SELU_SCALE)
    product, product_low = _split(m, _SELU_SCALE * _SELU_ALPHA)

    def value(x: Any, p: Any) -> Any:
        y = expm1(x)
        return x * scale if x > zero else fma(y, product, y * product_low)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        q, q_low, k = exp_parts(x if x <= zero else zero)
        below = scale_by(product + fma(product, q, fma(product, q_low, product_low)), k)
        return g * (below if x <= zero else scale)

    return value, gradient


def _hard_sigmoid(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, zero, one, three = m.fma, m.real(0), m.real(1), m.real(3)
    sixth, sixth_low = _split(m, _SIXTH)

    def value(x: Any, p: Any) -> Any:
        # x + 3 is exact near -3.
        shifted = x + three
        y = fma(shifted, sixth, shifted * sixth_low)
        y = zero if x <= -three else y
        return one if x >= three else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if (x <= -three) | (x >= three) else g * sixth

    return value, gradient


def _hard_tanh(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        y = p[0] if x < p[0] else x
        return p[1] if x > p[1] else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if (x <= p[0]) | (x >= p[1]) else g

    return value, gradient


def _hard_swish(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, zero, two, three = m.fma, m.real(0), m.real(2), m.real(3)
    sixth, sixth_low = _split(m, _SIXTH)

    def value(x: Any, p: Any) -> Any:
        y = x * (x + three)
        # The two terms of a zero have different signs.
        y = math.copysign(zero if x <= -three else fma(y, sixth, y * sixth_low), x)
        return x if x >= three else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (x (x + 3) / 6)' = (2 x + 3) / 6.
        slope = fma(two, x, three)
        dx = g * fma(slope, sixth, slope * sixth_low)
        dx = zero if x <= -three else dx
        return g if x >= three else dx

    return value, gradient


def _hard_mish(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, one, two, half = m.real(0), m.real(1), m.real(2), m.real(0.5)

    def value(x: Any, p: Any) -> Any:
        y = x * (half * (x + two))
        y = math.copysign(zero, x) if x <= -two else y
        return x if x >= zero else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (x (x + 2) / 2)' = x + 1.
        dx = zero if x < -two else g * (x + one)
        return g if x >= zero else dx

    return value, gradient


def _threshold(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return p[1] if x <= p[0] else x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if x <= p[0] else g

    return value, gradient


def _softshrink(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        y = x - p if x > p else x + p
        return math.copysign(zero, x) if abs(x) <= p else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if abs(x) <= p else g

    return value, gradient


def _hardshrink(m: Elementary) -> tuple[Scalar, Scalar]:
    zero = m.real(0)

    def value(x: Any, p: Any) -> Any:
        return math.copysign(zero, x) if abs(x) <= p else x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if abs(x) <= p else g

    return value, gradient


def _tanhshrink(m: Elementary) -> tuple[Scalar, Scalar]:
    tanhshrink, tanh_squared = m.tanhshrink, m.tanh_squared

    def value(x: Any, p: Any) -> Any:
        return tanhshrink(x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # 1 - tanh' = tanh².
        return g * tanh_squared(x)

    return value, gradient


def _softsign(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, one, two = m.fma, m.real(1), m.real(2)
    # Beyond it t / (1 + t) is 1.
    largest = m.real(1e20)

    def value(x: Any, p: Any) -> Any:
        t = abs(x)
        t = largest if t > largest else t
        return math.copysign(t / (one + t), x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # (x / (1 + |x|))' = 1 / (1 + |x|)², with (1 + t)² = 1 + t (2 + t).
        t = abs(x)
        return g / fma(t, two + t, one)

    return value, gradient


def _softplus(m: Elementary) -> tuple[Scalar, Scalar]:
    log1p_unit_parts, exp_parts_sum, scale, fma = m.log1p_unit_parts, m.exp_parts_sum, m.scale, m.fma
    zero, one, largest = m.real(0), m.real(1), m.real(1e4)
    lifted_below, lift, lowered = m.real(-50), 64, m.real(2.0**-64)
    exponential, _ = _logistic(m)

    @inlined
    def product(x: Any, p: Any) -> Any:
        z = p * x
        # Beyond ±1e4 the rest has no say, and is NaN where z has overflowed.
        low = fma(p, x, -z) if abs(z) < largest else zero
        return z, -abs(z), low if z < zero else -low

    @inlined
    def exceeds(z: Any, low: Any, threshold: Any) -> Any:
        """Whether the exact product does; `low` has the sign that it has beside -|z|."""
        return (z > threshold) | ((z == threshold) & ((low > zero) if z < zero else (low < zero)))

    def value(x: Any, p: Any) -> Any:
        # log(1 + exp z) = max(z, 0) + log(1 + exp(-|z|)).
        z, high, z_low = product(x, p[0])
        e, e_low = exponential(high, z_low)
        # log(1 + e) is e where e may be subnormal. It is lifted from there for the division, which would magnify what
        # e has lost.
        q, q_low, k = exp_parts_sum(high, z_low)
        tiny = high < lifted_below
        lifted, (y, y_low) = one + q, log1p_unit_parts(e, e_low)
        lifted_low = (q - (lifted - one)) + q_low
        y = scale(lifted, k + lift) if tiny else y
        y_low = scale(lifted_low, k + lift) if tiny else y_low
        inverse = one / p[0]
        high = y * inverse
        low = (fma(-high, p[0], y) + y_low) * inverse
        below = high + low
        below = below * lowered if tiny else below
        # Beside x > 0, log(1 + e) has no say there.
        total, rest = _two_sum(x, zero if tiny else high)
        y = below if z < zero else total + (rest + (zero if tiny else low))
        return x if exceeds(z, z_low, p[1]) else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        z, high, low = product(x, p[0])
        e, _ = exponential(high, low)
        slope = (e if z < zero else one) / (one + e)
        return g * (one if exceeds(z, low, p[1]) else slope)

    return value, gradient


def _softplus_unit(m: Elementary) -> tuple[Scalar, Scalar]:
    """Softplus of beta = 1: nothing is rounded before exp, which halves the work."""
    exp_falling, log1p_unit, nothing, zero, one = m.exp_falling, m.log1p_unit, m.nothing, m.real(0), m.real(1)
    exponential, _ = _logistic(m)

    def value(x: Any, threshold: Any) -> Any:
        # log(1 + exp x) = max(x, 0) + log(1 + exp(-|x|)).
        y = log1p_unit(*exponential(-abs(x), nothing))
        return x if x > threshold else y if x < zero else x + y

    def gradient(g: Any, x: Any, threshold: Any) -> Any:
        e = exp_falling(-abs(x))
        slope = (e if x < zero else one) / (one + e)
        return g * (one if x > threshold else slope)

    return value, gradient


def _log_sigmoid(m: Elementary) -> tuple[Scalar, Scalar]:
    exp_falling, log1p_unit, nothing, zero, one = m.exp_falling, m.log1p_unit, m.nothing, m.real(0), m.real(1)
    exponential, _ = _logistic(m)

    def value(x: Any, p: Any) -> Any:
        # -log(1 + exp(-x)) = min(x, 0) - log(1 + exp(-|x|)).
        y = log1p_unit(*exponential(-abs(x), nothing))
        return x - y if x < zero else -y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # 1 - s = 1 / (1 + exp(x)).
        e = exp_falling(-abs(x))
        return g * ((one if x < zero else e) / (one + e))

    return value, gradient


def _mish(m: Elementary) -> tuple[Scalar, Scalar]:
    exp_parts, quotient, scale, fma = m.exp_parts, m.quotient, m.scale, m.fma
    zero, one, two, four, six = m.real(0), m.real(1), m.real(2), m.real(4), m.real(6)
    farthest = m.farthest

    @inlined
    def denominator(e: Any, below: Any) -> Any:
        """n + 2 with n = e (e + 2) for x < 0; above 0, 1 + 2 E + 2 E²: as a sum of two floats."""
        f = two + e if below else one + e
        f_low = e - (f - (two if below else one))
        factor = e if below else two * e
        start = two if below else one
        d = fma(factor, f, start)
        return d, fma(factor, f, start - d) + factor * f_low

    def value(x: Any, p: Any) -> Any:
        # tanh(log(1 + e^x)) = n / (n + 2), n = e (e + 2), e = e^x; above 0 it is 1 - 2 E² / (1 + 2 E + 2 E²), E = e^-x.
        below = x < zero
        t = abs(x)
        t = farthest if t > farthest else t
        q, _, k = exp_parts(-t)
        e = scale(one + q, k)
        # t e (2 + e), or 2 t e².
        f = two + e
        y = t * (f if below else two * e)
        y_low = fma(t, f, -y) + t * (e - (f - two)) if below else zero
        high = fma(y, q, y)
        low = fma(y, q, y - high) + y_low
        d, d_low = denominator(e, below)
        w = quotient(scale(high, k), scale(low, k), d, d_low)
        return -w if below else x - w

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # With w = n / (n + 2): w + x w' = e (e³ + 4 e² + 6 e + 4 + 4 x (e + 1)) / (n + 2)², ordered so that 1 - |x| is
        # exact near the zero of it; above 0 it is 1 + 2 E² (2 x (1 + E) - D) / D², D = 1 + 2 E + 2 E².
        below = x < zero
        t = abs(x)
        t = farthest if t > farthest else t
        q, q_low, k = exp_parts(-t)
        power = scale(one, k)
        e = fma(power, q, power)
        e_low = fma(power, q_low, fma(power, q, power - e))
        f, base = e + four, fma(-four, t, six)
        h = fma(e, f, base)
        h_low = fma(e, f, base - h) + e * (e - (f - four))
        constant = four * (one - t)
        y = fma(e, h, constant)
        y += fma(e, h, constant - y) + fma(e, h_low, e_low * fma(e, f + e, h))
        product = fma(y, q, y)
        product_low = fma(y, q, y - product)
        d, d_low = denominator(e, below)
        above = two * (e * e) * fma(two * t, one + e, -d)
        square = d * d
        square_low = fma(d, d, -square) + two * d * d_low
        numerator = scale(product, k) if below else above
        slope = quotient(numerator, scale(product_low, k) if below else zero, square, square_low)
        return g * (slope if below else one + slope)

    return value, gradient


def _quick_gelu(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, farthest = m.fma, m.farthest
    gate_value, gate_slope, _ = _gate(m)
    slope, slope_low = _split(m, Fraction("1.702"))

    @inlined
    def product(x: Any) -> Any:
        t = abs(x)
        t = farthest if t > farthest else t
        z = slope * t
        return z, fma(slope, t, -z) + slope_low * t

    def value(x: Any, p: Any) -> Any:
        high, low = product(x)
        return gate_value(x, -farthest if x < -farthest else x, x, high, low)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        high, low = product(x)
        return g * gate_slope(x, high, low, high, low)

    return value, gradient


def _squareplus(m: Elementary) -> tuple[Scalar, Scalar]:
    fma, quotient, nothing = m.fma, m.quotient, m.nothing
    zero, one, half, infinity = m.real(0), m.real(1), m.real(0.5), m.real(math.inf)
    # From here on x² would overflow; |x| and √b are scaled down by the factor.
    bits = 64 if m.dtype == "float32" else 512
    limit, down, up = m.real(2.0 ** (bits - 5)), m.real(2.0 ** -(bits + 2)), m.real(2.0 ** (bits + 2))

    @inlined
    def root(x: Any, b: Any) -> Any:
        """|x| and √(x² + b), both scaled by the factor; the factor and its inverse."""
        t = abs(x)
        large = t > limit
        scale = down if large else one
        t = t * scale
        return t, math.sqrt(fma(t, t, b * scale * scale)), scale, up if large else one

    def value(x: Any, p: Any) -> Any:
        # For x < 0, (x + r) / 2 = b / (2 (r - x)) without the cancellation.
        t, r, scale, inverse = root(x, p)
        total = r + t
        below = quotient(half * p, nothing, total, t - (total - r)) * scale
        below = zero if x == -infinity else below
        return below if x < zero else half * total * inverse

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # f' = (1 + x / r) / 2; for x < 0 that is b / (2 r (r + |x|)), above 0 one minus that.
        t, r, scale, _ = root(x, p)
        b = p * scale * scale
        square = fma(t, t, b)
        d = fma(r, t, square)
        d_low = fma(r, t, square - d) + fma(t, t, b - square)
        w = quotient(half * b, nothing, d, d_low)
        w = zero if abs(x) == infinity else w
        return g * w if x < zero else g * (one - w)

    return value, gradient


def _sparse_plus(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, one, half = m.real(0), m.real(1), m.real(0.5)

    def value(x: Any, p: Any) -> Any:
        root = half * (x + one)
        y = zero if x <= -one else root * root
        return x if x >= one else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        # ((x + 1)² / 4)' = (x + 1) / 2.
        dx = g * (zero if x <= -one else half * (x + one))
        return g if x >= one else dx

    return value, gradient


def _sparse_sigmoid(m: Elementary) -> tuple[Scalar, Scalar]:
    zero, one, half = m.real(0), m.real(1), m.real(0.5)

    def value(x: Any, p: Any) -> Any:
        y = zero if x <= -one else half * (x + one)
        return one if x >= one else y

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return zero if (x <= -one) | (x >= one) else half * g

    return value, gradient


def _exponential(m: Elementary) -> tuple[Scalar, Scalar]:
    exp, exp_parts_within, scale, one = m.exp, m.exp_parts_within, m.scale, m.real(1)
    # exp(x) over- and underflows, but g exp(x) need not: a small g is scaled up, so that it is not subnormal, and a
    # large one down, as its product with 1 + q may overflow. Beyond the bounds the product is infinite, or 0.
    narrow = m.dtype == "float32"
    shift = 64 if narrow else 600
    up, down, upwards, downwards = m.real(2.0**shift), m.real(2.0**-shift), m.integer(shift), m.integer(-shift)
    highest_of_small, lowest_of_small = (m.real(x) for x in ((194, -120) if narrow else (1456, -760)))
    highest_of_large, lowest_of_large = (m.real(x) for x in ((90, -194) if narrow else (711, -1456)))

    def value(x: Any, p: Any) -> Any:
        return exp(x)

    def gradient(g: Any, x: Any, p: Any) -> Any:
        small = abs(g) < one
        highest = highest_of_small if small else highest_of_large
        lowest = lowest_of_small if small else lowest_of_large
        t = highest if x > highest else x
        q, _, k = exp_parts_within(lowest if t < lowest else t)
        return scale(g * (up if small else down) * (one + q), k - (upwards if small else downwards))

    return value, gradient


def _identity(m: Elementary) -> tuple[Scalar, Scalar]:
    def value(x: Any, p: Any) -> Any:
        return x

    def gradient(g: Any, x: Any, p: Any) -> Any:
        return g

    return value, gradient


def _mean(dtype: str, lower: float, upper: float) -> float:
    """Of the parameters as the dtype has them."""
    if dtype == "f":
        lower, upper = ctypes.c_float(lower).value, ctypes.c_float(upper).value
    return (lower + upper) / 2


def _seeded(pair: Pair) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of a slope that is the mean of two parameters, or with a seed drawn between them."""
    fixed, fixed_backward = pointwise(pair, 1, cheap=True)
    name = pair.__name__.lstrip("_")
    drawn = Pointwise(f"{name}_seeded", 2, lambda m: _with_slopes(pair(m)[0], 1), 0)
    drawn_backward = Pointwise(f"{name}_seeded_backward", 3, lambda m: _with_slopes(pair(m)[1], 2), 0)

    def slopes(like: Any, lower: float, upper: float, seed: int) -> Any:
        found = np.empty(like.shape, like.dtype)
        philox_numba.fill_uniform(found.reshape(-1), 0, seed, lower, upper)
        return found

    def forward(x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
        if seed is None:
            return fixed(x, _mean(x.dtype.char, lower, upper), out)
        return drawn((slopes(x, lower, upper, seed), x), (), out)

    def backward(grad: Any, x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
        if seed is None:
            return fixed_backward(grad, x, _mean(x.dtype.char, lower, upper), out)
        return drawn_backward((slopes(x, lower, upper, seed), grad, x), (), out)

    return forward, backward


def _with_slopes(function: Scalar, arrays: int) -> Scalar:
    """The function with its parameter read from a first array."""
    function = inlined(function)
    if arrays == 1:
        return lambda slope, x, p: function(x, slope)
    return lambda slope, g, x, p: function(g, x, slope)


sigmoid, sigmoid_backward = pointwise(_sigmoid)
tanh, tanh_backward = pointwise(_tanh)
relu, relu_backward = pointwise(_relu, cheap=True)
leaky_relu, leaky_relu_backward = pointwise(_leaky_relu, 1, cheap=True)
prelu, prelu_backward = channelwise(_prelu, cheap=True)
elu, elu_backward = pointwise(_elu, 1)
gelu, gelu_backward = pointwise(_gelu)
gelu_tanh, gelu_tanh_backward = pointwise(_gelu_tanh)
swish, swish_backward = channelwise(_swish)
silu, silu_backward = pointwise(_silu)
relu6, relu6_backward = pointwise(_relu6, cheap=True)
squared_relu, squared_relu_backward = pointwise(_squared_relu, cheap=True)
rrelu, rrelu_backward = _seeded(_rrelu)
celu, celu_backward = pointwise(_celu, 1)
selu, selu_backward = pointwise(_selu)
hard_sigmoid, hard_sigmoid_backward = pointwise(_hard_sigmoid, cheap=True)
hard_tanh, hard_tanh_backward = pointwise(_hard_tanh, 2, cheap=True)
hard_swish, hard_swish_backward = pointwise(_hard_swish, cheap=True)
hard_mish, hard_mish_backward = pointwise(_hard_mish, cheap=True)
threshold, threshold_backward = pointwise(_threshold, 2, cheap=True)
softshrink, softshrink_backward = pointwise(_softshrink, 1, cheap=True)
hardshrink, hardshrink_backward = pointwise(_hardshrink, 1, cheap=True)
tanhshrink, tanhshrink_backward = pointwise(_tanhshrink)
softsign, softsign_backward = pointwise(_softsign)
softplus, softplus_backward = scaled(_softplus, _softplus_unit)
log_sigmoid, log_sigmoid_backward = pointwise(_log_sigmoid)
mish, mish_backward = pointwise(_mish)
quick_gelu, quick_gelu_backward = pointwise(_quick_gelu)
squareplus, squareplus_backward = pointwise(_squareplus, 1)
sparse_plus, sparse_plus_backward = pointwise(_sparse_plus, cheap=True)
sparse_sigmoid, sparse_sigmoid_backward = pointwise(_sparse_sigmoid, cheap=True)
exponential, exponential_backward = pointwise(_exponential)
identity, identity_backward = pointwise(_identity, cheap=True)
