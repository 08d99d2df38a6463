"""Activations in NumPy: chains of ufuncs over blocks that stay in cache, in forms that do not cancel.

The chain of a row is a function of one block (`numerics.blocked`). Most rows have one for float64, which also serves
float32, on inputs converted to float64: a float32 result is then off by little more than the half ULP of its one
rounding. A second chain stands where one in float32 is as accurate and faster. float64 has nothing wider, so there an
argument of exp that is a product, and a denominator whose rounding matters, are kept as sums of two floats.

`KERNELS` serves other fused kernels (residual_add) as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics import philox_numpy
from gradmark.numerics.blocked import PARALLEL_FROM, PARALLEL_FROM_CHEAP, Chain, Channelwise, Pointwise
from gradmark.numerics.chains import (
    bits,
    exp_of_single,
    halves,
    horner,
    joined,
    kept,
    mask_unless,
    mask_where,
    minus_abs,
    selected,
    sign_mask,
    with_sign_of,
)
from gradmark.numerics.coefficients import TAIL_LIMIT, TAIL_SHIFT, TAIL_SLOPE, TAIL_ZERO
from gradmark.numerics.coefficients_blocked import (
    CUBIC,
    CUBIC_PARTS,
    LAMBERT,
    LINEAR,
    SCALED_TAIL,
    TAIL_SLOPE_OF_SINGLE,
)
from gradmark.numerics.doubled import (
    FARTHEST,
    INVERSE_LN2,
    LN2_HIGH,
    LN2_LOW,
    divide_pair,
    excess_over_two,
    exp_pair,
    is_power_of_two,
    leading_bits,
    product_and_rest,
    quotient_and_rest,
    scaled,
    square_and_rest,
    two_sum,
)
from gradmark.numerics.tails import gaussian, gaussian_of_single, horner_of_single, tail_of, tail_variable

Function = Callable[..., Any]

KERNELS: dict[str, Pointwise] = {}
"""The kernel of each pass without learnable parameters and random slopes, by the name of its function."""


def _pointwise(
    name: str, arrays: int, double: Chain, single: Chain | None = None, parallel_from: int = PARALLEL_FROM
) -> Function:
    """The function of a pass that reads so many arrays and has fixed parameters."""
    kernel = KERNELS[name] = Pointwise(double, single, parallel_from=parallel_from)

    def function(*arguments: Any) -> Any:
        *parameters, out = arguments[arrays:]
        return kernel(arguments[:arrays], rounded(parameters, out.dtype) if parameters else (), out)

    return function


def rounded(parameters: Any, dtype: Any) -> list[float]:
    """Fixed parameters as the kernels hold them: float32 numbers unless the arrays are float64."""
    return list(parameters) if dtype == np.float64 else [float(np.float32(p)) for p in parameters]


def _channelwise(double: Chain, double_backward: Chain, single: Chain | None, single_backward: Chain | None) -> Any:
    """Forward and backward of an activation with one learnable parameter."""
    forward_kernel = Channelwise(double, single, sums=False)
    backward_kernel = Channelwise(double_backward, single_backward, sums=True)

    def forward(x: Any, parameter: Any, out: Any) -> Any:
        return forward_kernel((x,), parameter, out)

    def backward(grad: Any, x: Any, parameter: Any, out: Any) -> Any:
        return backward_kernel((grad, x), parameter, out)

    return forward, backward


# --- the logistic function and its kin --------------------------------------------------------------------------------


def _sigmoid(x: Any, out: Any, work: Any) -> None:
    """n / (1 + e) = n - n e / (1 + e) with e = exp(-|x|), n = e below 0 and 1 above: the difference never cancels.

    The quotient alone would pass on the rounding of 1 + e.
    """
    e, n, r = work.double(), work.double(), work.double()
    np.exp(minus_abs(x, e), out=e)
    # 2^60 x is at least 1 wherever x > 0 and e < 1.
    np.multiply(x, 2.0**60, out=n)
    np.maximum(n, e, out=n)
    np.minimum(n, work.constant(1.0, n.dtype), out=n)
    np.add(e, 1.0, out=r)
    np.divide(e, r, out=r)
    np.multiply(n, r, out=r)
    np.subtract(n, r, out=out)


def _sigmoid_single(x: Any, out: Any, work: Any) -> None:
    """1 / (2 + expm1(-x))."""
    _over_logistic(np.float32(1), x, out, work)


def _sigmoid_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """s' = s (1 - s), even in x."""
    z = np.abs(x, out=work.like(x.dtype))
    np.multiply(grad, _logistic_slope(z, work), out=out)


def _tanh(x: Any, out: Any, work: Any) -> None:
    """NumPy's own: off by 1.4 ULP in float32, 1.2 in float64."""
    np.tanh(x, out=out)


def _tanh_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """tanh'(x) = 1 - tanh² = 4 s'(2 x), s the logistic function."""
    z = np.abs(x, out=work.like(x.dtype))
    np.add(z, z, out=z)
    slope = _logistic_slope(z, work)
    np.multiply(slope, 4.0, out=slope)
    np.multiply(grad, slope, out=out)


def _silu(x: Any, out: Any, work: Any) -> None:
    """x / (1 + exp(-x))."""
    _gated(x, x, None, out, work)


def _silu_single(x: Any, out: Any, work: Any) -> None:
    """x / (2 + expm1(-x))."""
    _over_logistic(x, x, out, work)


def _over_logistic(numerator: Any, x: Any, out: Any, work: Any) -> None:
    """numerator / (1 + exp(-x)) for float32: NumPy's expm1 is off by 0.6 ULP up to 16, its exp by 2.6.

    The sum and the quotient are float64. Below -16, exp is.
    """
    far = None if np.minimum.reduce(x) > -16.0 else np.flatnonzero(x <= -16.0)
    settled = None if far is None else _over_logistic_far(numerator, x, far)
    e, d = work.single(), work.double()
    np.negative(x, out=e)
    np.expm1(e, out=e)
    np.copyto(d, e)
    np.add(d, 2.0, out=d)
    np.divide(numerator, d, out=out)
    if far is not None:
        out[far] = settled


def _over_logistic_far(numerator: Any, x: Any, far: Any) -> Any:
    """The same in float64, where exp does not overflow before the result is 0, which an infinity must not meet."""
    z = x[far].astype(np.float64)
    n = numerator[far] if isinstance(numerator, np.ndarray) else numerator
    return np.where(np.isneginf(z), np.copysign(0.0, n), n / (1 + np.exp(-z)))


def _silu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """f' = s + x s (1 - s)."""
    _gated_slope(grad, x, None, None, out, work)


def _silu_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    t, z = work.single(), work.double()
    np.copyto(z, np.clip(x, -700.0, 700.0, out=t))
    _gated_slope_single(grad, z, out, work)


def _quick_gelu(x: Any, out: Any, work: Any) -> None:
    """x / (1 + exp(-1.702 x))."""
    _gated(x, *product_and_rest(x, _QUICK, _QUICK_PARTS, work), out, work)


def _quick_gelu_single(x: Any, out: Any, work: Any) -> None:
    _swish_single(x, _QUICK, out, work)


def _quick_gelu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """f' = s + z s (1 - s) with z = 1.702 x."""
    _gated_slope(grad, *product_and_rest(x, _QUICK, _QUICK_PARTS, work), None, out, work)


def _quick_gelu_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    t, z = work.single(), work.double()
    np.copyto(z, np.clip(x, -400.0, 400.0, out=t))
    np.multiply(z, _QUICK, out=z)
    _gated_slope_single(grad, z, out, work)


def _swish(x: Any, beta: Any, out: Any, work: Any) -> None:
    """x / (1 + exp(-βx))."""
    _gated(x, *product_and_rest(x, beta, None, work), out, work)


def _swish_single(x: Any, beta: Any, out: Any, work: Any) -> None:
    """In float64, where βx is exact."""
    if isinstance(beta, np.ndarray) or beta == 0.0:
        _swish_of_channels(x, beta, out, work)
    else:
        t, d = work.single(), work.double()
        # Where the gate has vanished, no infinity must meet it.
        if beta > 0.0:
            np.maximum(x, work.constant(-_LARGEST_SINGLE, x.dtype), out=t)
        else:
            np.minimum(x, work.constant(_LARGEST_SINGLE, x.dtype), out=t)
        np.copyto(d, t)
        np.multiply(d, -float(beta), out=d)
        np.exp(d, out=d)
        np.add(d, 1.0, out=d)
        np.divide(t, d, out=out)


def _swish_of_channels(x: Any, beta: Any, out: Any, work: Any) -> None:
    """The same with a β for each element, or with 0, where an infinite x may also meet a NaN."""
    z, d = work.double(), work.double()
    np.multiply(x, beta, out=z, dtype=np.float64)
    far = _far(z, -700.0)
    settled = None if far is None else _gated_far(x[far].astype(np.float64), z[far], None)
    np.negative(z, out=d)
    np.exp(d, out=d)
    np.add(d, 1.0, out=d)
    np.divide(x, d, out=out)
    if far is not None:
        out[far] = settled


def _swish_slope(grad: Any, x: Any, beta: Any, out: Any, work: Any) -> Any:
    """df/dx = s + z s (1 - s), df/dβ = x² s (1 - s), with z = βx."""
    z, rest = product_and_rest(x, beta, None, work)
    terms = _curvature(grad, x, z, work)
    _gated_slope(grad, z, rest, None, out, work)
    return terms


def _swish_slope_single(grad: Any, x: Any, beta: Any, out: Any, work: Any) -> Any:
    t, terms, z = work.single(), work.double(), work.double()
    # An infinite x² must not meet a vanished slope.
    np.clip(x, -_LARGEST_SINGLE, _LARGEST_SINGLE, out=t)
    np.copyto(terms, t)
    np.multiply(terms, beta, out=z)
    np.clip(z, -700.0, 700.0, out=z)
    # The gradient itself may be overwritten.
    g = work.double()
    np.copyto(g, grad)
    slope = _gated_slope_single(g, z, out, work)
    np.multiply(terms, terms, out=terms)
    np.multiply(terms, slope, out=terms)
    np.multiply(terms, g, out=terms)
    return terms


def _gated_slope_single(grad: Any, z: Any, out: Any, work: Any) -> Any:
    """g (s + z s (1 - s)), s the logistic function in float64; returns s (1 - s). |z| <= 700, and is overwritten."""
    e, s, slope = work.double(), work.double(), work.single()
    np.negative(z, out=e)
    np.exp(e, out=e)
    np.add(e, 1.0, out=s)
    np.divide(1.0, s, out=s)
    np.multiply(e, s, out=e)
    np.multiply(e, s, out=e)
    np.multiply(z, e, out=z)
    np.add(z, s, out=slope, casting="same_kind")
    np.multiply(grad, slope, out=out, casting="same_kind")
    return e


def _curvature(grad: Any, x: Any, z: Any, work: Any) -> Any:
    """g x² e / (1 + e)² with e = exp(-|z|): the contributions to dβ; 0 where e is."""
    terms = _logistic_slope(np.abs(z, out=work.double()), work)
    vanished = np.equal(terms, 0.0)
    np.multiply(terms, x, out=terms)
    np.multiply(terms, x, out=terms)
    np.multiply(terms, grad, out=terms)
    # An infinite x² must not meet a vanished slope.
    return kept(mask_unless(vanished, terms.dtype, work), terms, terms)


def _logistic_slope(z: Any, work: Any) -> Any:
    """e / (1 + e)² = t - t² with t = e / (1 + e), e = exp(-z), z >= 0, which is overwritten.

    The last subtraction passes on less of the errors of e and t than the square of 1 + e would.
    """
    e, t = z, work.like(z.dtype)
    if z.dtype == np.float32:
        # t = 1 / (2 + expm1(z)): in float32, expm1 is more exact than exp.
        np.expm1(z, out=t)
        np.add(t, 2.0, out=t)
        np.divide(1.0, t, out=t)
    else:
        np.exp(np.negative(z, out=e), out=e)
        np.add(e, 1.0, out=t)
        np.divide(e, t, out=t)
    np.multiply(t, t, out=e)
    return np.subtract(t, e, out=e)


def _gated(x: Any, z: Any, rest: Any, out: Any, work: Any) -> None:
    """x / (1 + exp(-(z + rest))), where |rest|, if any, is below an ULP of z.

    1 + exp(-z) = 2 + expm1(-z), and NumPy's expm1 is off by 0.53 ULP, its exp by 0.71. y is the quotient by the rounded
    sum d; what d lacks, and what the rest adds to it, is taken from y.
    """
    far = _far(z, -708.0)
    settled = None if far is None else _gated_far(x[far], z[far], None if rest is None else rest[far])
    e, d, lack = work.double(), work.double(), work.double()
    np.negative(z, out=e)
    np.expm1(e, out=e)
    np.add(e, 2.0, out=d)
    y = work.double()
    excess_over_two(e, d, lack, y)
    if rest is not None:
        np.add(e, 1.0, out=y)
        np.multiply(y, rest, out=y)
        np.add(lack, y, out=lack)
    y = np.divide(x, d, out=e)
    np.divide(lack, d, out=lack)
    np.multiply(lack, y, out=lack)
    np.add(y, lack, out=out)
    if far is not None:
        out[far] = settled


def _gated_far(x: Any, z: Any, rest: Any) -> Any:
    """The same where exp(-z) overflows, z is infinite or NaN: x exp(z + rest) = (x + x (exp(r) - 1)) 2^k."""
    usual, infinite = np.isfinite(z), z
    z = np.where(usual, np.maximum(z, -3000.0), 0.0)
    k = np.rint(z * INVERSE_LN2)
    r = z - k * LN2_HIGH
    r -= k * LN2_LOW
    if rest is not None:
        r += rest
    y = np.ldexp(x + x * np.expm1(r), k.astype(np.int32))
    return np.where(usual, y, np.where(np.less(infinite, 0), np.copysign(0.0, x), x))


def _gated_slope(grad: Any, z: Any, rest: Any, cube: Any, out: Any, work: Any) -> None:
    """g times f' = s(z) + w s(z) (1 - s(z)), w = z + cube, for z + rest. f'(z) + f'(-z) = 1.

    With a = |z|, e = exp(-a), t = e / (1 + e), L = t - t² = s (1 - s) and q = a - 1 - e + |cube|, f' is -L q below 0
    and 1 + L q above. About its zero a - 1 - e is exact, and the error of e would count: it is a sum of two floats.
    """
    a, low, t, slope, q = (work.double() for _ in range(5))
    np.minimum(np.abs(z, out=a), work.constant(FARTHEST, a.dtype), out=a)
    if rest is None:
        low = None
    else:
        # The rest of -|z| is that of z, with the sign of z flipped.
        np.bitwise_and(bits(z), _SIGN_BIT, out=bits(low))
        np.bitwise_xor(bits(low), bits(rest), out=bits(low))
        np.negative(low, out=low)
    e, e_low = exp_pair(np.negative(a, out=q), low, work)
    # t = e - e² / (1 + e), which passes on less of what 1 + e rounds away. What a difference lacks goes into the next.
    square, lack = q, work.double()
    np.add(e, 1.0, out=t)
    np.divide(e, t, out=t)
    np.multiply(t, e, out=square)
    np.subtract(e, square, out=t)
    np.subtract(e, t, out=lack)
    np.subtract(lack, square, out=lack)
    # L passes on 1 - 2 t of what t lacks, and of the low part of e (1 - 2 t) (1 - t)², nearly (1 - 2 t)².
    passed, share = slope, work.double()
    np.multiply(t, -2.0, out=passed)
    np.add(passed, 1.0, out=passed)
    np.multiply(e_low, passed, out=share)
    np.add(lack, share, out=lack)
    np.multiply(lack, passed, out=lack)
    # t² = h² + (t - h) (t + h): of t's leading bits h, both the square and its difference from t are exact.
    high, tail = work.double(), work.double()
    np.bitwise_and(bits(t), _SEVEN_BITS, out=bits(high))
    np.subtract(t, high, out=tail)
    np.multiply(high, high, out=slope)
    np.subtract(t, slope, out=slope)
    np.add(t, high, out=high)
    np.multiply(high, tail, out=tail)
    np.subtract(tail, lack, out=tail)
    np.subtract(slope, tail, out=slope)
    np.subtract(a, 1.0, out=a)
    np.subtract(a, e, out=q)
    np.subtract(a, q, out=lack)
    np.subtract(e, lack, out=lack)
    np.add(e_low, lack, out=e_low)
    if low is not None:
        np.add(e_low, low, out=e_low)
    if cube is not None:
        np.subtract(e_low, np.abs(cube, out=cube), out=e_low)
    np.subtract(q, e_low, out=q)
    np.multiply(slope, q, out=slope)
    _times_slope(grad, slope, z, out, work)


def _far(z: Any, low: float) -> Any:
    """The indices where z is at most `low`, infinite or NaN, or None where it is so nowhere: what a usual block is."""
    if np.minimum.reduce(z) > low and np.maximum.reduce(z) < np.inf:
        return None
    return np.flatnonzero(~((z > low) & (z < np.inf)))


_LARGEST_SINGLE = float(np.finfo(np.float32).max)
_QUICK = 1.702
_QUICK_PARTS = (1.7020000219345093, -2.1934509277343749e-08)
"""The decimal 1.702: a float32, and the rest."""
_SIGN_BIT, _ONE_BITS = np.int64(-(2**63)), np.float64(1.0).view(np.int64)
_SEVEN_BITS = np.int64(-(2**46))
"""What keeps seven bits of a float64's significand."""


# --- piecewise linear -------------------------------------------------------------------------------------------------


def _relu(x: Any, out: Any, work: Any) -> None:
    np.maximum(x, work.constant(0.0, x.dtype), out=out)


def _relu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """The gradient, unless x <= 0."""
    kept(mask_unless(np.less_equal(x, 0), x.dtype, work), grad, out)


def _relu6(x: Any, out: Any, work: Any) -> None:
    np.clip(x, 0, 6, out=out)


def _relu6_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """The gradient, unless x <= 0 or x >= 6."""
    _between(grad, x, 0, 6, out, work)


def _hard_tanh(x: Any, min_val: float, max_val: float, out: Any, work: Any) -> None:
    np.clip(x, min_val, max_val, out=out)


def _hard_tanh_slope(grad: Any, x: Any, min_val: float, max_val: float, out: Any, work: Any) -> None:
    """The gradient, unless x <= min_val or x >= max_val."""
    _between(grad, x, min_val, max_val, out, work)


def _between(grad: Any, x: Any, low: float, high: float, out: Any, work: Any) -> None:
    outside = np.less_equal(x, low)
    np.logical_or(outside, np.greater_equal(x, high), out=outside)
    kept(mask_unless(outside, x.dtype, work), grad, out)


def _leaky_relu(x: Any, negative_slope: float, out: Any, work: Any) -> None:
    """max(x, slope x) for slopes up to 1."""
    y = work.like(x.dtype)
    if 0.0 < negative_slope <= 1.0:
        np.multiply(x, negative_slope, out=y)
        np.maximum(x, y, out=out)
    else:
        np.multiply(x, _slope_below(x, negative_slope, y, work), out=out)


def _leaky_relu_slope(grad: Any, x: Any, negative_slope: float, out: Any, work: Any) -> None:
    """1 where x > 0, else the slope."""
    np.multiply(grad, _slope_below(x, negative_slope, work.like(x.dtype), work), out=out)


def _slope_below(x: Any, slope: Any, out: Any, work: Any) -> Any:
    """1 where x > 0, the slope, a number or an array, elsewhere."""
    return selected(mask_where(np.greater(x, 0), x.dtype, work), 1.0, slope, out, work)


def _prelu(x: Any, alpha: Any, out: Any, work: Any) -> None:
    np.multiply(x, _slope_below(x, alpha, work.like(x.dtype), work), out=out)


def _prelu_slope(grad: Any, x: Any, alpha: Any, out: Any, work: Any) -> Any:
    """df/dα = x unless x > 0."""
    terms = work.double()
    np.multiply(grad, x, out=terms, dtype=np.float64)
    kept(mask_unless(np.greater(x, 0), terms.dtype, work), terms, terms)
    np.multiply(grad, _slope_below(x, alpha, work.like(x.dtype), work), out=out)
    return terms


def _rrelu(x: Any, slope: Any, out: Any, work: Any) -> None:
    """The slope, a number or an array, where x <= 0."""
    np.multiply(x, _slope_below(x, slope, work.like(x.dtype), work), out=out)


def _rrelu_slope(grad: Any, x: Any, slope: Any, out: Any, work: Any) -> None:
    np.multiply(grad, _slope_below(x, slope, work.like(x.dtype), work), out=out)


def _hard_sigmoid(x: Any, out: Any, work: Any) -> None:
    """(x + 3) / 6, clipped; x + 3 is exact near -3."""
    y = work.like(x.dtype)
    np.add(x, 3.0, out=y)
    np.divide(y, 6.0, out=y)
    np.clip(y, 0.0, 1.0, out=out)


def _hard_sigmoid_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    y = work.like(x.dtype)
    np.divide(grad, 6.0, out=y)
    _between(y, x, -3, 3, out, work)


def _hard_swish(x: Any, out: Any, work: Any) -> None:
    """x times the clipped (x + 3) / 6. With r what the sum s = x + 3 rounds away, x s / 6 lacks x r / 6."""
    t, s, r = work.double(), work.double(), work.double()
    np.clip(x, -3.0, 3.0, out=t)
    np.add(t, 3.0, out=s)
    np.subtract(s, 3.0, out=r)
    np.subtract(t, r, out=r)
    np.multiply(r, t, out=r)
    np.divide(r, 6.0, out=r)
    np.maximum(x, work.constant(-3.0, t.dtype), out=t)
    # Where x is large the quotient is 1, and the product exact.
    np.divide(s, 6.0, out=s)
    np.multiply(s, t, out=s)
    np.add(s, r, out=s)
    # Only the sign of a zero is not there yet.
    with_sign_of(s, x, out, work)


def _hard_swish_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """(2 x + 3) / 6 between -3 and 3."""
    y = work.like(x.dtype)
    np.add(x, x, out=y)
    np.add(y, 3.0, out=y)
    np.divide(y, 6.0, out=y)
    selected(mask_where(np.greater_equal(x, 3), x.dtype, work), 1.0, y, y, work)
    np.multiply(grad, y, out=y)
    kept(mask_unless(np.less_equal(x, -3), x.dtype, work), y, out)


def _hard_mish(x: Any, out: Any, work: Any) -> None:
    """x times half of the clipped x + 2."""
    t, y = work.like(x.dtype), work.like(x.dtype)
    np.add(x, 2.0, out=t)
    np.clip(t, 0.0, 2.0, out=t)
    np.multiply(t, 0.5, out=t)
    np.maximum(x, work.constant(-2.0, x.dtype), out=y)
    np.multiply(y, t, out=out)


def _hard_mish_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """x + 1 between -2 and 0."""
    y = work.like(x.dtype)
    np.add(x, 1.0, out=y)
    np.minimum(y, work.constant(1.0, x.dtype), out=y)
    np.multiply(grad, y, out=y)
    kept(mask_unless(np.less(x, -2), x.dtype, work), y, out)


def _threshold(x: Any, threshold: float, value: float, out: Any, work: Any) -> None:
    selected(mask_where(np.less_equal(x, threshold), x.dtype, work), value, x, out, work)


def _threshold_slope(grad: Any, x: Any, threshold: float, value: float, out: Any, work: Any) -> None:
    """The gradient, unless x <= threshold."""
    kept(mask_unless(np.less_equal(x, threshold), x.dtype, work), grad, out)


def _softshrink(x: Any, lambd: float, out: Any, work: Any) -> None:
    """max(|x| - λ, 0) with the sign of x."""
    y = work.like(x.dtype)
    np.abs(x, out=y)
    np.subtract(y, lambd, out=y)
    np.maximum(y, work.constant(0.0, x.dtype), out=y)
    with_sign_of(y, x, out, work)


def _hardshrink(x: Any, lambd: float, out: Any, work: Any) -> None:
    """The bits of x, but only the sign where |x| <= λ."""
    y = work.like(x.dtype)
    np.abs(x, out=y)
    kept(mask_unless(np.less_equal(y, lambd), x.dtype, work), y, y)
    with_sign_of(y, x, out, work)


def _shrink_slope(grad: Any, x: Any, lambd: float, out: Any, work: Any) -> None:
    """The gradient, unless |x| <= λ."""
    y = work.like(x.dtype)
    np.abs(x, out=y)
    kept(mask_unless(np.less_equal(y, lambd), x.dtype, work), grad, out)


def _sparse_sigmoid(x: Any, out: Any, work: Any) -> None:
    """(x + 1) / 2, clipped."""
    y = work.like(x.dtype)
    np.add(x, 1.0, out=y)
    np.multiply(y, 0.5, out=y)
    np.clip(y, 0.0, 1.0, out=out)


def _sparse_sigmoid_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    y = work.like(x.dtype)
    np.multiply(grad, 0.5, out=y)
    _between(y, x, -1, 1, out, work)


def _identity(x: Any, out: Any, work: Any) -> None:
    np.copyto(out, x)


def _identity_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    np.copyto(out, grad)


# --- algebraic --------------------------------------------------------------------------------------------------------


def _squared_relu(x: Any, out: Any, work: Any) -> None:
    y = work.like(x.dtype)
    np.maximum(x, work.constant(0.0, x.dtype), out=y)
    np.multiply(y, y, out=out)


def _squared_relu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """2 x above 0. Where 2 x overflows, the gradient is doubled."""
    beyond = None if np.maximum.reduce(x) < _LARGEST / 2 else np.flatnonzero(x > _LARGEST / 2)
    settled = None if beyond is None else (2 * grad[beyond]) * x[beyond]
    y = work.double()
    np.maximum(x, work.constant(0.0, x.dtype), out=y)
    np.add(y, y, out=y)
    np.multiply(grad, y, out=y)
    kept(mask_unless(np.less_equal(x, 0), x.dtype, work), y, out)
    if beyond is not None:
        out[beyond] = settled


def _sparse_plus(x: Any, out: Any, work: Any) -> None:
    """(x + 1)² / 4 between -1 and 1; x + 1 is exact near -1."""
    y = work.like(x.dtype)
    np.add(x, 1.0, out=y)
    np.clip(y, 0.0, 2.0, out=y)
    np.multiply(y, 0.5, out=y)
    np.multiply(y, y, out=y)
    selected(mask_where(np.greater_equal(x, 1), x.dtype, work), x, y, out, work)


def _sparse_plus_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """(x + 1) / 2, clipped."""
    y = work.like(x.dtype)
    _sparse_sigmoid(x, y, work)
    np.multiply(grad, y, out=out)


def _softsign(x: Any, out: Any, work: Any) -> None:
    t, d = work.like(x.dtype), work.like(x.dtype)
    np.clip(x, -_NEARLY_INFINITE, _NEARLY_INFINITE, out=t)
    np.abs(t, out=d)
    np.add(d, 1.0, out=d)
    np.divide(t, d, out=out)


def _softsign_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """1 / (1 + |x|)²."""
    d = work.like(x.dtype)
    np.abs(x, out=d)
    np.add(d, 1.0, out=d)
    np.multiply(d, d, out=d)
    np.divide(grad, d, out=out)


def _squareplus(x: Any, b: float, out: Any, work: Any) -> None:
    """h = (|x| + √(x² + b)) / 2 above 0; below, where x + √(x² + b) would cancel, b / (4 h)."""
    h, low, _, _ = _squareplus_parts(x, b, work)
    inverse = np.divide(b / 4.0, h, out=work.double())
    t = np.divide(low, h, out=work.double())
    np.multiply(t, inverse, out=t)
    np.subtract(inverse, t, out=inverse)
    np.add(h, low, out=h)
    np.copyto(out, selected(mask_where(np.greater(x, 0), h.dtype, work), h, inverse, h, work))


def _squareplus_slope(grad: Any, x: Any, b: float, out: Any, work: Any) -> None:
    """f' = f / √(x² + b). What both lack is made up for at once, in the quotient."""
    t = work.double()
    np.clip(x, -1e300, 1e300, out=t)
    h, low, root, root_low = _squareplus_parts(t, b, work)
    is_above = mask_where(np.greater(x, 0), t.dtype, work)
    np.divide(low, h, out=low)
    np.negative(low, out=t)
    selected(is_above, low, t, low, work)
    np.divide(root_low, root, out=root_low)
    np.subtract(low, root_low, out=low)
    np.divide(b / 4.0, h, out=t)
    selected(is_above, h, t, h, work)
    np.divide(h, root, out=h)
    np.multiply(low, h, out=low)
    np.add(h, low, out=h)
    np.multiply(grad, h, out=out)


def _squareplus_parts(x: Any, b: float, work: Any) -> tuple[Any, Any, Any, Any]:
    """h and what it lacks; the root √(x² + b) and what it lacks.

    The root lacks what the square, its sum with b and the root itself round away, divided by twice the root. Where x²
    overflows the root is |x|. h is formed by halves, as |x| and the root may add up to infinity.
    """
    t, s, low, root, h = (work.double() for _ in range(5))
    np.abs(x, out=h)
    np.minimum(h, work.constant(1e150, h.dtype), out=t)
    square_and_rest(t, s, low, work)
    # As in `two_sum`.
    np.add(s, b, out=t)
    np.subtract(t, b, out=root)
    np.subtract(s, root, out=s)
    np.add(low, s, out=low)
    np.subtract(t, root, out=root)
    np.subtract(b, root, out=root)
    np.add(low, root, out=low)
    np.sqrt(t, out=root)
    square, square_low = work.double(), work.double()
    square_and_rest(root, square, square_low, work)
    np.subtract(t, square, out=square)
    np.subtract(square, square_low, out=square)
    np.add(low, square, out=low)
    np.divide(low, root, out=low)
    root_low = np.multiply(low, 0.5, out=square)
    np.multiply(low, 0.25, out=low)
    np.maximum(root, h, out=root)
    np.multiply(root, 0.5, out=t)
    np.multiply(h, 0.5, out=s)
    np.add(t, s, out=h)
    # What the sum h lacks, in `low`.
    np.subtract(h, t, out=t)
    np.subtract(s, t, out=s)
    np.add(low, s, out=low)
    # An infinite h lacks nothing.
    np.copyto(low, 0.0, where=np.isnan(low))
    return h, low, root, root_low


_LARGEST = float(np.finfo(np.float64).max)
_NEARLY_INFINITE = 1e38
"""x / (1 + |x|) is ±1 there, as it is at infinity."""


# --- exponentials -----------------------------------------------------------------------------------------------------


def _exponential(x: Any, out: Any, work: Any) -> None:
    np.exp(x, out=out)


def _exponential_single(x: Any, out: Any, work: Any) -> None:
    exp_of_single(x, out)


def _exponential_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    """NumPy's exp of float32 is off by 2.6 ULP; where it over- or underflows, g exp(x) may not."""
    beyond = _outside(x, -87.0, 88.0)
    settled = None if beyond is None else grad[beyond] * np.exp(x[beyond].astype(np.float64))
    y = work.single()
    np.exp(x, out=y)
    np.multiply(grad, y, out=out)
    if beyond is not None:
        out[beyond] = settled


def _exponential_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """exp' = exp. Where exp(x) over- or underflows, g exp(x) may not: there it is a product of three that do not."""
    beyond = _outside(x, -708.0, 709.0)
    settled = None
    if beyond is not None:
        above = x[beyond] > 0
        rest = x[beyond] - np.where(above, _BEYOND, -_BEYOND)
        most = np.clip(rest, -700.0, 700.0)
        first = np.where(above, grad[beyond] * _EXP_OF_BEYOND, grad[beyond] / _EXP_OF_BEYOND)
        settled = first * np.exp(most) * np.exp(rest - most)
    y = work.double()
    np.exp(x, out=y)
    np.multiply(grad, y, out=out)
    if beyond is not None:
        out[beyond] = settled


def _outside(x: Any, low: float, high: float) -> Any:
    """Where x lies outside of [low, high); None where it does so nowhere."""
    if np.fmax.reduce(x) < high and np.fmin.reduce(x) >= low:
        return None
    return np.flatnonzero((x >= high) | (x < low))


def _elu(x: Any, alpha: float, out: Any, work: Any) -> None:
    """x above 0, α (exp(x) - 1) below: one of the halves is +0 in each element."""
    below, above = halves(x, work)
    _expm1(below)
    if alpha != 1.0:
        np.multiply(below, alpha, out=below)
    if alpha >= 0.0:
        joined(below, above, out)
    else:
        selected(sign_mask(x, work), below, x, out, work)


def _elu_slope(grad: Any, x: Any, alpha: float, out: Any, work: Any) -> None:
    """(α (exp(x) - 1))' = α exp(x)."""
    slope = _exp_below(x, work)
    if alpha != 1.0:
        np.multiply(slope, alpha, out=slope)
        selected(mask_where(np.less_equal(x, 0), x.dtype, work), slope, 1.0, slope, work)
    np.multiply(grad, slope, out=out)


def _selu(x: Any, out: Any, work: Any) -> None:
    """λ x above 0, λ α (exp(x) - 1) below."""
    below, above = halves(x, work)
    _expm1(below)
    np.multiply(below, _SELU_PRODUCT, out=below)
    np.multiply(above, _SELU_SCALE, out=above)
    joined(below, above, out)


def _selu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """λ above 0, λ α exp(x) below."""
    slope = _at_most_zero(x, work.like(x.dtype), work)
    np.exp(slope, out=slope, dtype=np.float64, casting="same_kind")
    np.multiply(slope, _SELU_PRODUCT, out=slope)
    selected(mask_where(np.less_equal(x, 0), x.dtype, work), slope, _SELU_SCALE, slope, work)
    np.multiply(grad, slope, out=out)


def _celu(x: Any, alpha: float, out: Any, work: Any) -> None:
    """x above 0, α (exp(x / α) - 1) below; what the quotient z rounds away adds α exp(z) times itself."""
    below, above = halves(x, work)
    z, rest = quotient_and_rest(below, alpha, work)
    y = work.double()
    np.expm1(z, out=y)
    if rest is None:
        np.multiply(y, alpha, out=y)
    else:
        # The sum keeps what it rounds away: it would count twice where the product has a smaller mantissa.
        np.add(y, 1.0, out=z)
        np.multiply(rest, z, out=rest)
        np.add(y, rest, out=z)
        np.subtract(z, y, out=y)
        np.subtract(rest, y, out=rest)
        np.multiply(rest, alpha, out=rest)
        np.multiply(z, alpha, out=y)
        np.add(y, rest, out=y)
    # Near 0 it is x, of which z may be subnormal, or a zero without its sign.
    selected(mask_where(np.greater(below, -alpha * 2.0**-56), x.dtype, work), below, y, y, work)
    joined(y, above, out)


def _celu_single(x: Any, alpha: float, out: Any, work: Any) -> None:
    if alpha == 1.0:
        _elu(x, alpha, out, work)
        return
    below, above = halves(x, work)
    z = work.double()
    np.divide(below, alpha, out=z, dtype=np.float64)
    np.expm1(z, out=z)
    np.multiply(z, alpha, out=below, casting="same_kind")
    joined(below, above, out)


def _celu_slope_single(grad: Any, x: Any, alpha: float, out: Any, work: Any) -> None:
    t = work.single()
    _at_most_zero(x, t, work)
    if is_power_of_two(alpha):
        np.divide(t, alpha, out=t)
        np.exp(t, out=t)
        np.multiply(grad, t, out=out)
    else:
        e = work.double()
        np.divide(t, alpha, out=e, dtype=np.float64)
        np.exp(e, out=e)
        np.multiply(grad, e, out=out)


def _celu_slope(grad: Any, x: Any, alpha: float, out: Any, work: Any) -> None:
    """(α (exp(x / α) - 1))' = exp(x / α)."""
    t = work.double()
    _at_most_zero(x, t, work)
    z, rest = quotient_and_rest(t, alpha, work)
    y = work.double()
    np.exp(z, out=y)
    if rest is not None:
        np.multiply(rest, y, out=rest)
        np.add(y, rest, out=y)
    np.multiply(grad, y, out=out)


def _expm1(x: Any) -> None:
    """exp(x) - 1 in place, correct to 0.53 ULP; NumPy's expm1 of float32 is off by up to 2.6 ULP."""
    np.expm1(x, out=x, dtype=np.float64, casting="same_kind")


def _at_most_zero(x: Any, out: Any, work: Any) -> Any:
    """min(x, 0), and 0 for NaN; a signaling one is made quiet first, as np.fmin gives NaN for some of them."""
    np.add(x, 0.0, out=out)
    return np.fmin(out, work.constant(0.0, out.dtype), out=out)


def _exp_below(x: Any, work: Any) -> Any:
    """exp(x) below 0; 1 above 0 and for NaN. To 2.6 ULP in float32, which leaves a slope within its bound."""
    e = work.like(x.dtype)
    _at_most_zero(x, e, work)
    return np.exp(e, out=e)


_SELU_SCALE, _SELU_PRODUCT = 1.0507009873554805, 1.7580993408473768
"""λ and λ α; the 32 digits differ from them by 0.34 and 0.07 of a rounding unit."""
_BEYOND, _EXP_OF_BEYOND = 654.125, 1.2102580359092064e284
"""Of the multiples of 1/8 from 600 to 709, exp(654.125) is nearly the nearest to a float64: within 0.0003 ULP."""


# --- logarithms of 1 + exp(x) -----------------------------------------------------------------------------------------


def _softplus(x: Any, beta: float, threshold: float, out: Any, work: Any) -> None:
    """max(x, 0) + log(1 + exp(-|βx|)) / β; x where βx exceeds the threshold."""
    z, rest = product_and_rest(x, beta, None, work)
    _softplus_of(x, z, rest, beta, threshold, out, work)


def _softplus_single(x: Any, beta: float, threshold: float, out: Any, work: Any) -> None:
    """In float64, where βx is exact."""
    wide, z, y = work.double(), work.double(), work.double()
    np.copyto(wide, x)
    np.multiply(wide, beta, out=z)
    _softplus_of(wide, z, None, beta, threshold, y, work)
    np.copyto(out, y, casting="same_kind")


def _softplus_of(x: Any, z: Any, rest: Any, beta: float, threshold: float, out: Any, work: Any) -> None:
    linear = _beyond_threshold(z, rest, threshold)
    # Where exp(z) is subnormal, a division by less than 1 would magnify what it has lost.
    tail = None
    if beta < 1.0 and np.fmin.reduce(z) < _SUBNORMAL_EXP:
        tail = np.flatnonzero((z < _SUBNORMAL_EXP) & (True if linear is None else ~linear))
        settled = _lifted_exp(z[tail], 0.0 if rest is None else rest[tail]) / beta * 2.0**-_LIFT
    e, y = work.double(), work.double()
    minus_abs(z, e)
    if rest is None:
        np.log1p(np.exp(e, out=e), out=y)
        if beta != 1.0:
            np.divide(y, beta, out=y)
    else:
        # The rest of -|z| is that of z, with the sign of z flipped.
        np.bitwise_and(bits(z), _SIGN_BIT, out=bits(y))
        np.bitwise_xor(bits(rest), bits(y), out=bits(rest))
        np.negative(rest, out=rest)
        np.maximum(e, work.constant(-FARTHEST, e.dtype), out=e)
        e, low = exp_pair(e, rest, work)
        np.log1p(e, out=y)
        # d log(1 + e) = de / (1 + e).
        np.add(e, 1.0, out=e)
        np.divide(low, e, out=low)
        divide_pair(y, low, beta, work)
    np.maximum(x, work.constant(0.0, x.dtype), out=e)
    if linear is None:
        np.add(y, e, out=out)
    else:
        np.add(y, e, out=y)
        selected(mask_where(linear, y.dtype, work), x, y, out, work)
    if tail is not None:
        out[tail] = settled


_SUBNORMAL_EXP, _LIFT = -707.0, 512


def _lifted_exp(z: Any, rest: Any) -> Any:
    """exp(z + rest) 2^_LIFT for z from -1e4 to -700; adding the high part of _LIFT ln 2 to z is exact."""
    e, d = np.exp(z + _LIFT * LN2_HIGH), rest + _LIFT * LN2_LOW
    return e + e * (d + d * d / 2)


def _softplus_slope(grad: Any, x: Any, beta: float, threshold: float, out: Any, work: Any) -> None:
    """1 / (1 + exp(-βx)); 1 where βx exceeds the threshold."""
    z, rest = product_and_rest(x, beta, None, work)
    _softplus_slope_of(grad, z, rest, threshold, out, work)


def _softplus_slope_single(grad: Any, x: Any, beta: float, threshold: float, out: Any, work: Any) -> None:
    if is_power_of_two(beta):
        # 1 / (2 + expm1(-z)) in float32.
        z = work.single()
        np.multiply(x, beta, out=z)
        linear = _beyond_threshold(z, None, threshold)
        np.negative(z, out=z)
        np.expm1(z, out=z)
        np.add(z, 2.0, out=z)
        if linear is not None:
            selected(mask_where(linear, z.dtype, work), 1.0, z, z, work)
        np.divide(grad, z, out=out)
    else:
        z = work.double()
        np.multiply(x, beta, out=z, dtype=np.float64)
        _softplus_slope_of(grad, z, None, threshold, out, work)


def _softplus_slope_of(grad: Any, z: Any, rest: Any, threshold: float, out: Any, work: Any) -> None:
    linear = _beyond_threshold(z, rest, threshold)
    e = work.double()
    np.negative(z, out=e)
    np.exp(e, out=e)
    if rest is not None:
        # The largest number: infinity must not meet a rest of 0.
        np.minimum(e, work.constant(_LARGEST, e.dtype), out=e)
        np.multiply(rest, e, out=rest)
        np.subtract(e, rest, out=e)
    np.add(e, 1.0, out=e)
    if linear is not None:
        selected(mask_where(linear, e.dtype, work), 1.0, e, e, work)
    np.divide(grad, e, out=out)


def _beyond_threshold(z: Any, rest: Any, threshold: float) -> Any:
    """Where z + rest > threshold; None where it is so nowhere."""
    if np.maximum.reduce(z) < threshold:
        return None
    beyond = np.greater(z, threshold)
    if rest is not None:
        beyond |= (z == threshold) & (rest > 0)
    return beyond


def _log_sigmoid(x: Any, out: Any, work: Any) -> None:
    """-(max(-x, 0) + log(1 + exp(-|x|)))."""
    e, y = work.double(), work.double()
    np.exp(minus_abs(x, e), out=e)
    np.log1p(e, out=e)
    np.minimum(x, work.constant(0.0, x.dtype), out=y)
    np.subtract(e, y, out=y)
    np.negative(y, out=out)


def _log_sigmoid_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """1 / (1 + exp(x))."""
    e = work.double()
    np.exp(x, out=e)
    np.add(e, 1.0, out=e)
    np.divide(grad, e, out=out)


def _log_sigmoid_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    """1 / (2 + expm1(x))."""
    e = work.single()
    np.expm1(x, out=e)
    np.add(e, 2.0, out=e)
    np.divide(grad, e, out=out)


# --- tanh of something, or x without its tanh -------------------------------------------------------------------------


def _mish(x: Any, out: Any, work: Any) -> None:
    """x tanh(log(1 + exp(x))) = x / (1 + F - h) with F = exp(-x) = 1 + expm1(-x), h = F / (1 + 2 F)."""
    far = _far(x, -708.0)
    settled = None if far is None else _gated_far(x[far], x[far], None)
    e, d, lack, h = work.double(), work.double(), work.double(), work.double()
    np.negative(x, out=e)
    np.expm1(e, out=e)
    np.add(e, 2.0, out=d)
    # What the sums lack is taken from the quotient.
    excess_over_two(e, d, lack, h)
    np.add(e, 1.0, out=e)
    np.add(e, e, out=h)
    np.add(h, 1.0, out=h)
    np.divide(e, h, out=h)
    np.subtract(d, h, out=e)
    np.subtract(e, d, out=d)
    np.add(d, h, out=d)
    np.add(lack, d, out=lack)
    y = np.divide(x, e, out=d)
    np.divide(lack, e, out=lack)
    np.multiply(lack, y, out=lack)
    np.add(y, lack, out=out)
    if far is not None:
        out[far] = settled


def _mish_single(x: Any, out: Any, work: Any) -> None:
    """x n / (n + 2) with n = e (e + 2), e = exp(x), in float64. From 40 on the quotient is 1, below -200 it is 0."""
    t, e, n = work.single(), work.double(), work.double()
    np.minimum(x, work.constant(40.0, x.dtype), out=t)
    np.exp(t, out=e, dtype=np.float64)
    np.add(e, 2.0, out=n)
    np.multiply(n, e, out=n)
    np.add(n, 2.0, out=e)
    np.divide(n, e, out=n)
    np.maximum(x, work.constant(-200.0, x.dtype), out=t)
    np.multiply(t, n, out=out)


def _mish_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """f' = e B / (n + 2)², B = 4 (1 + x) + e (6 + 4 x + 4 e + e²), with e = exp(x), n = e (e + 2).

    About the zero of B, at -1.19, 1 + x and 6 + 4 x are exact; what e, the bracket's sums and n + 2 round away is kept.
    Above 0, with F = exp(-x), w = F² / (1 + 2 F + 2 F²) and s = 1 / (1 + F), it is 1 - 2 w (1 - 2 x s (1 - w)).
    """
    z, p, a, b, m, m_low, total, low, growth = (work.double() for _ in range(9))
    np.clip(x, -FARTHEST, FARTHEST, out=z)
    e, e_low = exp_pair(minus_abs(z, p), None, work)
    # m = e² + 2 e + 2, b = 4 e + e².
    square, twofold = growth, total
    np.multiply(e, e, out=square)
    above = _mish_slope_above(z, e, square, work)
    np.add(e, e, out=twofold)
    np.add(twofold, square, out=b)
    np.add(b, 2.0, out=m)
    np.subtract(b, twofold, out=low)
    np.subtract(square, low, out=m_low)
    np.subtract(m, 2.0, out=low)
    np.subtract(b, low, out=low)
    np.add(m_low, low, out=m_low)
    np.add(twofold, twofold, out=twofold)
    np.add(twofold, square, out=b)
    np.subtract(b, twofold, out=low)
    np.subtract(square, low, out=low)
    # d(e bracket) / de = bracket + 4 e + 2 e².
    np.add(b, square, out=growth)
    np.multiply(z, 4.0, out=p)
    np.add(p, 6.0, out=a)
    np.add(p, 4.0, out=p)
    two_sum(a, b, total, z)
    np.add(low, a, out=low)
    np.multiply(low, e, out=low)
    np.add(growth, total, out=growth)
    np.multiply(growth, e_low, out=growth)
    np.add(low, growth, out=low)
    # The product with e, its leading part exact.
    t_high, t_low = leading_bits(total, work)
    e_high, rest = leading_bits(e, work)
    np.multiply(t_high, rest, out=rest)
    np.multiply(t_low, e, out=t_low)
    np.add(rest, t_low, out=rest)
    np.add(low, rest, out=low)
    np.multiply(t_high, e_high, out=total)
    y = two_sum(total, p, growth, z)
    np.add(low, total, out=low)
    # 1 / m² lacks 2 m_low / m times itself, which B takes.
    np.divide(m_low, m, out=m_low)
    np.add(m_low, m_low, out=m_low)
    np.multiply(m_low, y, out=m_low)
    np.subtract(low, m_low, out=low)
    np.add(y, low, out=y)
    np.multiply(y, e, out=y)
    np.divide(y, m, out=y)
    np.divide(y, m, out=y)
    selected(sign_mask(x, work), y, above, y, work)
    np.multiply(grad, y, out=out)


def _mish_slope_above(x: Any, e: Any, square: Any, work: Any) -> Any:
    """f' for x >= 0, with e = exp(-x) and its square."""
    w, d, y = work.double(), work.double(), work.double()
    np.add(square, e, out=d)
    np.add(d, d, out=d)
    np.add(d, 1.0, out=d)
    np.divide(square, d, out=w)
    np.add(e, 1.0, out=d)
    np.subtract(1.0, w, out=y)
    np.divide(y, d, out=y)
    np.multiply(y, x, out=y)
    np.add(y, y, out=y)
    np.subtract(1.0, y, out=y)
    np.multiply(y, w, out=y)
    np.add(y, y, out=y)
    return np.subtract(1.0, y, out=y)


def _mish_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    """The same in float64."""
    t, e, p, q = work.single(), work.double(), work.double(), work.double()
    np.clip(x, -200.0, 40.0, out=t)
    np.exp(t, out=e, dtype=np.float64)
    np.multiply(t, 4.0, out=p, dtype=np.float64)
    np.add(p, 4.0, out=p)
    np.add(e, 4.0, out=q)
    np.multiply(q, e, out=q)
    np.add(q, 2.0, out=q)
    np.add(q, p, out=q)
    np.multiply(q, e, out=q)
    np.add(q, p, out=q)
    np.multiply(q, e, out=q)
    np.add(e, 2.0, out=p)
    np.multiply(p, e, out=p)
    np.add(p, 2.0, out=p)
    np.divide(q, p, out=q)
    np.divide(q, p, out=q)
    np.multiply(grad, q, out=out)


def _tanhshrink(x: Any, out: Any, work: Any) -> None:
    """x - tanh(x); up to |x| = 1.5, where that cancels, x v / (3 + v + v G(v)) with v = x².

    That is Lambert's continued fraction tanh x = x / (1 + v / (3 + v / (5 + v / (7 + ...)))), G its part from 1 / 5 on.
    What v and the sum d round away is made up for.
    """
    t, v, v_low, d, low, p = (work.double() for _ in range(6))
    np.minimum(np.abs(x, out=t), work.constant(2.0, t.dtype), out=t)
    near = np.less(t, 1.5)
    square_and_rest(t, v, v_low, work)
    np.add(v, 3.0, out=d)
    np.subtract(d, 3.0, out=low)
    np.subtract(low, v, out=low)
    np.subtract(low, v_low, out=low)
    horner(LAMBERT, v, p)
    np.multiply(p, v, out=p)
    total = work.double()
    np.add(d, p, out=total)
    np.subtract(total, d, out=d)
    np.subtract(d, p, out=d)
    np.add(low, d, out=low)
    # y = x v / total, to which v_low / v + low / total times itself is added.
    y = np.divide(v, total, out=d)
    np.multiply(y, t, out=y)
    np.divide(low, total, out=low)
    np.divide(v_low, np.maximum(v, work.constant(_TINY, v.dtype), out=v), out=v_low)
    np.add(low, v_low, out=low)
    np.multiply(low, y, out=low)
    np.add(y, low, out=y)
    np.tanh(x, out=t)
    np.subtract(x, t, out=t)
    with_sign_of(selected(mask_where(near, y.dtype, work), y, t, y, work), x, out, work)


def _tanhshrink_single(x: Any, out: Any, work: Any) -> None:
    """In float64; up to |x| = 2^-8, x³ (1/3 - 2 x² / 15)."""
    wide, y, v = work.double(), work.double(), work.double()
    np.copyto(wide, x)
    near = np.less(np.abs(x), 2.0**-8)
    np.tanh(wide, out=y)
    np.subtract(wide, y, out=y)
    np.multiply(wide, wide, out=v)
    np.multiply(wide, v, out=wide)
    np.multiply(v, -2.0 / 15.0, out=v)
    np.add(v, 1.0 / 3.0, out=v)
    np.multiply(wide, v, out=v)
    selected(mask_where(near, y.dtype, work), v, y, y, work)
    np.copyto(out, y, casting="same_kind")


def _tanhshrink_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """1 - tanh' = tanh², tanh |x| = E / (E + 2) with E = expm1(2 |x|), as a sum of two floats, the first of 24 bits."""
    e, d, less, q = (work.double() for _ in range(4))
    # There tanh is 1.
    np.minimum(np.abs(x, out=e), work.constant(20.0, e.dtype), out=e)
    np.add(e, e, out=e)
    np.expm1(e, out=e)
    np.add(e, 2.0, out=d)
    excess_over_two(e, d, less, q)
    np.divide(e, d, out=q)
    high, low = leading_bits(q, work)
    d_high, d_low = leading_bits(d, work)
    np.subtract(d_low, less, out=d_low)
    np.multiply(high, d_high, out=d_high)
    np.subtract(e, d_high, out=low)
    np.multiply(high, d_low, out=d_low)
    np.subtract(low, d_low, out=low)
    np.divide(low, d, out=low)
    # high² is exact.
    np.add(high, high, out=q)
    np.add(q, low, out=q)
    np.multiply(q, low, out=q)
    np.multiply(high, high, out=high)
    np.add(high, q, out=q)
    np.multiply(grad, q, out=out)


def _tanhshrink_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    """NumPy's tanh of float64."""
    y = work.double()
    np.copyto(y, x)
    np.tanh(y, out=y)
    np.multiply(y, y, out=y)
    np.multiply(grad, y, out=out)


_TINY = float(np.finfo(np.float64).tiny)


# --- the Gaussian's tail ----------------------------------------------------------------------------------------------


def _gelu(x: Any, out: Any, work: Any) -> None:
    """x Φ(x) = max(x, 0) - t Q(t) with t = |x|, Q the upper tail of N(0, 1)."""
    tail, above = tail_of(x, work), work.double()
    np.maximum(x, work.constant(0.0, x.dtype), out=above)
    np.subtract(above, tail, out=above)
    # Only the sign of a zero is not there yet.
    with_sign_of(above, x, out, work)


def _gelu_single(x: Any, out: Any, work: Any) -> None:
    t, g, w, y, above = work.double(), work.double(), work.double(), work.double(), work.single()
    gaussian_of_single(x, t, g, work)
    np.add(t, TAIL_SHIFT, out=w)
    np.multiply(g, t, out=g)
    np.divide(g, w, out=g)
    np.divide(-2.0 * TAIL_SHIFT, w, out=w)
    np.add(w, 1.0, out=w)
    horner_of_single(SCALED_TAIL, w, y, work)
    np.multiply(y, g, out=y)
    np.maximum(x, work.constant(0.0, x.dtype), out=above)
    np.subtract(above, y, out=above, casting="same_kind")
    with_sign_of(above, x, out, work)


def _gelu_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """f' = Φ(x) + x φ(x): with t = |x| and S = t φ(t) - Q(t), that is 1 + S above 0 and -S below.

    S exp(t²/2) = (t - t₀) R(u), t₀ the only zero of S, R a polynomial in u = (t - a) / (t + a).
    """
    t, u, y = work.double(), work.double(), work.double()
    np.minimum(np.abs(x, out=t), work.constant(TAIL_LIMIT["float64"], t.dtype), out=t)
    p, scale = gaussian(t, *leading_bits(t, work), work)
    low = work.double()
    tail_variable(t, u, y, low)
    first, *higher = TAIL_SLOPE["float64"]
    horner(higher, u, y)
    # R = first + y u; what the sum lacks joins the product with p = exp(-t²/2) - 1.
    np.multiply(y, u, out=low)
    np.add(low, first, out=y)
    np.subtract(y, first, out=u)
    np.subtract(low, u, out=low)
    np.subtract(t, TAIL_ZERO[0], out=t)
    np.subtract(t, TAIL_ZERO[1], out=t)
    np.multiply(y, t, out=y)
    np.multiply(low, t, out=low)
    np.multiply(p, y, out=p)
    np.add(p, low, out=p)
    np.add(y, p, out=y)
    scaled(y, scale)
    _times_slope(grad, y, x, out, work)


def _gelu_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    t, g, u, y = work.double(), work.double(), work.double(), work.double()
    gaussian_of_single(x, t, g, work)
    np.add(t, TAIL_SHIFT, out=u)
    np.divide(-2.0 * TAIL_SHIFT, u, out=u)
    np.add(u, 1.0, out=u)
    horner_of_single(TAIL_SLOPE_OF_SINGLE, u, y, work)
    np.subtract(t, TAIL_ZERO[0], out=t)
    np.multiply(t, g, out=t)
    np.multiply(y, t, out=y)
    np.copyto(t, x)
    _times_slope(grad, y, t, out, work)


def _times_slope(grad: Any, slope: Any, x: Any, out: Any, work: Any) -> None:
    """g (1 + S) where x has no sign, -g S where it has; S is overwritten."""
    sign, other = sign_mask(x, work), bits(work.double())
    np.bitwise_and(sign, _SIGN_BIT, out=other)
    np.bitwise_xor(bits(slope), other, out=bits(slope))
    np.invert(sign, out=sign)
    np.bitwise_and(sign, _ONE_BITS, out=other)
    np.add(slope, other.view(np.float64), out=slope)
    np.multiply(grad, slope, out=out)


# --- gelu's tanh form -------------------------------------------------------------------------------------------------


def _gelu_tanh(x: Any, out: Any, work: Any) -> None:
    """x (1 + tanh(z / 2)) / 2 = x / (1 + exp(-z)), z = √(8/π) (x + 0.044715 x³)."""
    z, rest, _ = _gelu_tanh_argument(x, work)
    _gated(x, z, rest, out, work)


def _gelu_tanh_single(x: Any, out: Any, work: Any) -> None:
    t, z, d = work.single(), work.double(), work.double()
    np.clip(x, -_GELU_TANH_LIMIT, _GELU_TANH_LIMIT, out=t)
    np.copyto(z, t)
    np.multiply(z, z, out=d)
    np.multiply(d, -CUBIC[0], out=d)
    np.subtract(d, LINEAR[0], out=d)
    np.multiply(d, z, out=d)
    np.exp(d, out=d)
    np.add(d, 1.0, out=d)
    np.maximum(x, work.constant(-_GELU_TANH_LIMIT, x.dtype), out=t)
    np.divide(t, d, out=out)


def _gelu_tanh_slope(grad: Any, x: Any, out: Any, work: Any) -> None:
    """f' = s + x z' s (1 - s), where x z' = z + 2 · √(8/π) 0.044715 x³."""
    _gated_slope(grad, *_gelu_tanh_argument(x, work), out, work)


def _gelu_tanh_slope_single(grad: Any, x: Any, out: Any, work: Any) -> None:
    """(1 + E (1 + x z')) / (1 + E)² with E = exp(-z)."""
    t, z, e, p = work.single(), work.double(), work.double(), work.double()
    np.clip(x, -20.0, 20.0, out=t)
    np.copyto(z, t)
    np.multiply(z, z, out=p)
    np.multiply(p, -CUBIC[0], out=p)
    np.subtract(p, LINEAR[0], out=e)
    np.multiply(e, z, out=e)
    np.exp(e, out=e)
    np.multiply(p, -3.0, out=p)
    np.add(p, LINEAR[0], out=p)
    np.multiply(p, z, out=p)
    np.add(p, 1.0, out=p)
    np.multiply(p, e, out=p)
    np.add(p, 1.0, out=p)
    np.add(e, 1.0, out=e)
    np.divide(p, e, out=p)
    np.divide(p, e, out=p)
    np.multiply(grad, p, out=out)


def _gelu_tanh_argument(x: Any, work: Any) -> tuple[Any, Any, Any]:
    """z = √(8/π) (x + 0.044715 x³) as a sum of two floats, and 2 · √(8/π) 0.044715 x³.

    Beyond the limit x itself is added to z: the logistic function is 0 or 1 there, but an infinity stays one.
    """
    t, s, s_low, total = work.double(), work.double(), work.double(), work.double()
    np.clip(x, -_GELU_TANH_LIMIT, _GELU_TANH_LIMIT, out=t)
    t_high, t_low = leading_bits(t, work)
    # s = t².
    exact = total
    np.multiply(t_high, t_high, out=exact)
    np.add(t, t_high, out=s_low)
    np.multiply(s_low, t_low, out=s_low)
    np.add(exact, s_low, out=s)
    np.subtract(s, exact, out=exact)
    np.subtract(s_low, exact, out=s_low)
    # term = 0.044715 √(8/π) s, total = √(8/π) + term.
    s_high, rest = leading_bits(s, work)
    np.add(rest, s_low, out=rest)
    np.multiply(rest, CUBIC[0], out=rest)
    np.multiply(s_high, CUBIC_PARTS[1], out=s_low)
    np.add(rest, s_low, out=rest)
    term, back = s, s_low
    np.multiply(s_high, CUBIC_PARTS[0], out=term)
    cube = np.add(term, rest, out=work.double())
    np.multiply(cube, t, out=cube)
    np.add(cube, cube, out=cube)
    np.add(term, LINEAR[0], out=total)
    # As in `two_sum`.
    np.subtract(total, LINEAR[0], out=back)
    np.subtract(term, back, out=s_high)
    np.add(rest, s_high, out=rest)
    np.subtract(total, back, out=back)
    np.subtract(LINEAR[0], back, out=back)
    np.add(rest, back, out=rest)
    np.add(rest, LINEAR[1], out=rest)
    # The rest is not small yet.
    np.add(total, rest, out=term)
    np.subtract(term, total, out=total)
    np.subtract(rest, total, out=rest)
    # z = t total.
    total = term
    high, low = leading_bits(total, work)
    np.add(low, rest, out=low)
    np.multiply(low, t_high, out=low)
    np.multiply(t_low, total, out=t_low)
    np.add(low, t_low, out=low)
    np.multiply(high, t_high, out=high)
    z = np.add(high, low, out=total)
    np.subtract(z, high, out=high)
    np.subtract(low, high, out=rest)
    np.subtract(x, t, out=t)
    np.add(z, t, out=z)
    return z, rest, cube


_GELU_TANH_LIMIT = 22.0
"""From here on the logistic function of z is 0 or 1 in every dtype: |z| > 790."""


# --- the functions, in the order of the catalog -----------------------------------------------------------------------


def _own(name: str, arrays: int, chain: Chain) -> Function:
    """The function of a pass that is exact enough in the dtype of its arrays."""
    return _pointwise(name, arrays, chain, chain)


def _cheap(name: str, arrays: int, chain: Chain) -> Function:
    """The same of a pass without exponentials."""
    return _pointwise(name, arrays, chain, chain, PARALLEL_FROM_CHEAP)


sigmoid = _pointwise("sigmoid", 1, _sigmoid, _sigmoid_single)
sigmoid_backward = _own("sigmoid_backward", 2, _sigmoid_slope)
tanh = _own("tanh", 1, _tanh)
tanh_backward = _own("tanh_backward", 2, _tanh_slope)
relu = _cheap("relu", 1, _relu)
relu_backward = _cheap("relu_backward", 2, _relu_slope)
leaky_relu = _cheap("leaky_relu", 1, _leaky_relu)
leaky_relu_backward = _cheap("leaky_relu_backward", 2, _leaky_relu_slope)
prelu, prelu_backward = _channelwise(_prelu, _prelu_slope, _prelu, _prelu_slope)
elu = _own("elu", 1, _elu)
elu_backward = _own("elu_backward", 2, _elu_slope)
gelu = _pointwise("gelu", 1, _gelu, _gelu_single)
gelu_backward = _pointwise("gelu_backward", 2, _gelu_slope, _gelu_slope_single)
gelu_tanh = _pointwise("gelu_tanh", 1, _gelu_tanh, _gelu_tanh_single)
gelu_tanh_backward = _pointwise("gelu_tanh_backward", 2, _gelu_tanh_slope, _gelu_tanh_slope_single)
swish, swish_backward = _channelwise(_swish, _swish_slope, _swish_single, _swish_slope_single)
silu = _pointwise("silu", 1, _silu, _silu_single)
silu_backward = _pointwise("silu_backward", 2, _silu_slope, _silu_slope_single)
relu6 = _cheap("relu6", 1, _relu6)
relu6_backward = _cheap("relu6_backward", 2, _relu6_slope)
squared_relu = _cheap("squared_relu", 1, _squared_relu)
squared_relu_backward = _pointwise("squared_relu_backward", 2, _squared_relu_slope)

_RRELU = Pointwise(_rrelu, _rrelu, parallel_from=PARALLEL_FROM_CHEAP)
_RRELU_BACKWARD = Pointwise(_rrelu_slope, _rrelu_slope, parallel_from=PARALLEL_FROM_CHEAP)


def rrelu(x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
    """The mean slope where x <= 0; with a seed, a slope for each element."""
    if seed is None:
        return _RRELU((x,), _mean_slope(x, lower, upper), out)
    return _RRELU((x, _slopes(x, lower, upper, seed)), (), out)


def rrelu_backward(grad: Any, x: Any, lower: float, upper: float, seed: int | None, out: Any) -> Any:
    """The slope where x <= 0."""
    if seed is None:
        return _RRELU_BACKWARD((grad, x), _mean_slope(x, lower, upper), out)
    return _RRELU_BACKWARD((grad, x, _slopes(x, lower, upper, seed)), (), out)


def _mean_slope(x: Any, lower: float, upper: float) -> tuple[float]:
    return (sum(rounded((lower, upper), x.dtype)) / 2,)


def _slopes(x: Any, lower: float, upper: float, seed: int) -> Any:
    """Uniform between the two, by the index in C order; in float32 for float16."""
    slopes = np.empty(x.shape, np.promote_types(x.dtype, np.float32))
    philox_numpy.fill_uniform(slopes.reshape(-1), 0, seed, lower, upper)
    return slopes


celu = _pointwise("celu", 1, _celu, _celu_single)
celu_backward = _pointwise("celu_backward", 2, _celu_slope, _celu_slope_single)
selu = _own("selu", 1, _selu)
selu_backward = _own("selu_backward", 2, _selu_slope)
hard_sigmoid = _cheap("hard_sigmoid", 1, _hard_sigmoid)
hard_sigmoid_backward = _cheap("hard_sigmoid_backward", 2, _hard_sigmoid_slope)
hard_tanh = _cheap("hard_tanh", 1, _hard_tanh)
hard_tanh_backward = _cheap("hard_tanh_backward", 2, _hard_tanh_slope)
hard_swish = _pointwise("hard_swish", 1, _hard_swish)
hard_swish_backward = _cheap("hard_swish_backward", 2, _hard_swish_slope)
hard_mish = _cheap("hard_mish", 1, _hard_mish)
hard_mish_backward = _cheap("hard_mish_backward", 2, _hard_mish_slope)
threshold = _cheap("threshold", 1, _threshold)
threshold_backward = _cheap("threshold_backward", 2, _threshold_slope)
softshrink = _cheap("softshrink", 1, _softshrink)
softshrink_backward = _cheap("softshrink_backward", 2, _shrink_slope)
hardshrink = _cheap("hardshrink", 1, _hardshrink)
hardshrink_backward = _cheap("hardshrink_backward", 2, _shrink_slope)
tanhshrink = _pointwise("tanhshrink", 1, _tanhshrink, _tanhshrink_single)
tanhshrink_backward = _pointwise("tanhshrink_backward", 2, _tanhshrink_slope, _tanhshrink_slope_single)
softsign = _cheap("softsign", 1, _softsign)
softsign_backward = _cheap("softsign_backward", 2, _softsign_slope)
softplus = _pointwise("softplus", 1, _softplus, _softplus_single)
softplus_backward = _pointwise("softplus_backward", 2, _softplus_slope, _softplus_slope_single)
log_sigmoid = _pointwise("log_sigmoid", 1, _log_sigmoid)
log_sigmoid_backward = _pointwise("log_sigmoid_backward", 2, _log_sigmoid_slope, _log_sigmoid_slope_single)
mish = _pointwise("mish", 1, _mish, _mish_single)
mish_backward = _pointwise("mish_backward", 2, _mish_slope, _mish_slope_single)
quick_gelu = _pointwise("quick_gelu", 1, _quick_gelu, _quick_gelu_single)
quick_gelu_backward = _pointwise("quick_gelu_backward", 2, _quick_gelu_slope, _quick_gelu_slope_single)
squareplus = _pointwise("squareplus", 1, _squareplus)
squareplus_backward = _pointwise("squareplus_backward", 2, _squareplus_slope)
sparse_plus = _cheap("sparse_plus", 1, _sparse_plus)
sparse_plus_backward = _cheap("sparse_plus_backward", 2, _sparse_plus_slope)
sparse_sigmoid = _cheap("sparse_sigmoid", 1, _sparse_sigmoid)
sparse_sigmoid_backward = _cheap("sparse_sigmoid_backward", 2, _sparse_sigmoid_slope)
exponential = _pointwise("exponential", 1, _exponential, _exponential_single)
exponential_backward = _pointwise("exponential_backward", 2, _exponential_slope, _exponential_slope_single)
identity = _cheap("identity", 1, _identity)
identity_backward = _cheap("identity_backward", 2, _identity_slope)
