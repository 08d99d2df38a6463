"""Activations in NumPy: the reference. Whole-array expressions in forms that do not cancel.

Half precision is computed in float32 (`_wide`). Scratch arrays are reused where that costs no clarity.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
from scipy import special


def sigmoid(x: Any, out: Any) -> Any:
    """1 / (1 + exp(-x)), through exp(-|x|), which cannot overflow."""
    smaller, larger = _logistic(_wide(x))
    out[...] = np.where(x < 0, smaller, larger)
    return out


def sigmoid_backward(grad: Any, x: Any, out: Any) -> Any:
    """s' = s (1 - s)."""
    smaller, larger = _logistic(_wide(x))
    out[...] = grad * (smaller * larger)
    return out


def tanh(x: Any, out: Any) -> Any:
    """tanh(x)."""
    out[...] = np.tanh(_wide(x))
    return out


def tanh_backward(grad: Any, x: Any, out: Any) -> Any:
    """tanh' = 1 - tanh² = 4 s (1 - s) with s = 1 / (1 + exp(-2x))."""
    smaller, larger = _logistic(2 * _wide(x))
    out[...] = grad * (4 * smaller * larger)
    return out


def relu(x: Any, out: Any) -> Any:
    """max(x, 0)."""
    return np.maximum(x, 0, out=out)


def relu_backward(grad: Any, x: Any, out: Any) -> Any:
    """0 for x <= 0, the gradient elsewhere."""
    out[...] = np.where(x <= 0, _zero(grad), grad)
    return out


def leaky_relu(x: Any, negative_slope: float, out: Any) -> Any:
    """The slope for x <= 0, 1 above."""
    wide = _wide(x)
    out[...] = np.where(x > 0, wide, wide * wide.dtype.type(negative_slope))
    return out


def leaky_relu_backward(grad: Any, x: Any, negative_slope: float, out: Any) -> Any:
    """The slope for x <= 0, 1 above."""
    wide = _wide(grad)
    out[...] = np.where(x > 0, wide, wide * wide.dtype.type(negative_slope))
    return out


def prelu(x: Any, alpha: Any, out: Any) -> Any:
    """leaky_relu with a slope per channel."""
    wide = _wide(x)
    out[...] = np.where(x > 0, wide, wide * _wide(_along_channels(alpha, x)))
    return out


def prelu_backward(grad: Any, x: Any, alpha: Any, out: Any) -> tuple[Any, Any]:
    """df/dα = x for x <= 0, 0 above."""
    wide = _wide(grad)
    dalpha = _channel_sums(np.where(x > 0, _zero(wide), wide * _wide(x)), alpha)
    out[...] = np.where(x > 0, wide, wide * _wide(_along_channels(alpha, x)))
    return out, dalpha


def elu(x: Any, alpha: float, out: Any) -> Any:
    """x above 0, α (exp(x) - 1) below."""
    wide = _wide(x)
    out[...] = np.where(x > 0, wide, wide.dtype.type(alpha) * np.expm1(np.where(x > 0, _zero(wide), wide)))
    return out


def elu_backward(grad: Any, x: Any, alpha: float, out: Any) -> Any:
    """(α (exp(x) - 1))' = α exp(x)."""
    wide = _wide(grad)
    slope = wide.dtype.type(alpha) * np.exp(np.minimum(_wide(x), 0))
    out[...] = np.where(x <= 0, wide * slope, wide)
    return out


def gelu(x: Any, out: Any) -> Any:
    """Φ(x) = Q(|x|) below 0, 1 - Q(|x|) above, Q the upper tail of N(0, 1): the small part is never a difference."""
    wide = _wide(x)
    t = np.minimum(np.abs(wide), _TAIL_LIMIT)
    tail = t * (_gaussian(t) * _mills(t))
    out[...] = np.where(x < 0, -tail, wide - tail)
    return out


def gelu_backward(grad: Any, x: Any, out: Any) -> Any:
    """f' = Φ(x) + x φ(x); below 0 it is exp(-t²/2) (Q(t) exp(t²/2) - t / √(2π)) with t = |x|, above 1 minus that."""
    wide = _wide(x)
    t = np.minimum(np.abs(wide), _TAIL_LIMIT)
    tail = _gaussian(t) * (_mills(t) - t * t.dtype.type(1 / math.sqrt(2 * math.pi)))
    out[...] = grad * np.where(x < 0, tail, 1 - tail)
    return out


def gelu_tanh(x: Any, out: Any) -> Any:
    """x (1 + tanh(z / 2)) / 2 = x / (1 + exp(-z)), z = √(8/π) (x + 0.044715 x³)."""
    wide = _wide(x)
    smaller, larger = _logistic_of_sum(*_gelu_tanh_argument(wide))
    out[...] = _gated(wide, np.where(x < 0, smaller, larger))
    return out


def gelu_tanh_backward(grad: Any, x: Any, out: Any) -> Any:
    """f' = s + x s (1 - s) z', z' = √(8/π) (1 + 3 · 0.044715 x²)."""
    wide = _wide(x)
    t = np.clip(wide, -_GELU_TANH_LIMIT, _GELU_TANH_LIMIT)
    smaller, larger = _logistic_of_sum(*_gelu_tanh_argument(wide))
    below = x < 0
    s, complement = np.where(below, smaller, larger), np.where(below, larger, smaller)
    constant = t.dtype.type(math.sqrt(8 / math.pi))
    slope = constant + (constant * t.dtype.type(3 * 0.044715)) * (t * t)
    out[...] = grad * (s * (1 + t * slope * complement))
    return out


def swish(x: Any, beta: Any, out: Any) -> Any:
    """x / (1 + exp(-βx))."""
    wide = _wide(x)
    z, rest = _two_product(wide, _wide(_along_channels(beta, x)))
    smaller, larger = _logistic_of_sum(z, rest)
    out[...] = _gated(wide, np.where(z < 0, smaller, larger))
    return out


def swish_backward(grad: Any, x: Any, beta: Any, out: Any) -> tuple[Any, Any]:
    """df/dx = s + z s (1 - s), df/dβ = x² s (1 - s), z = βx."""
    wide = _wide(x)
    z, rest = _two_product(wide, _wide(_along_channels(beta, x)))
    slope, curvature = _logistic_slope(z, *_logistic_of_sum(z, rest))
    terms = np.where(curvature == 0, curvature, grad * (wide * curvature * wide))
    dbeta = _channel_sums(terms, beta)
    out[...] = grad * slope
    return out, dbeta


def silu(x: Any, out: Any) -> Any:
    """x / (1 + exp(-x))."""
    wide = _wide(x)
    smaller, larger = _logistic(wide)
    out[...] = _gated(wide, np.where(x < 0, smaller, larger))
    return out


def silu_backward(grad: Any, x: Any, out: Any) -> Any:
    """f' = s + x s (1 - s)."""
    wide = _wide(x)
    slope, _ = _logistic_slope(wide, *_logistic(wide))
    out[...] = grad * slope
    return out


# Beyond these, exp(-t²/2) and the logistic function are 0 or 1 in every dtype.
_TAIL_LIMIT = 40.0
_GELU_TANH_LIMIT = 22.0
_LOGISTIC_LIMIT = 1e4


def _wide(x: Any) -> Any:
    """Half precision as float32; others as they are."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _zero(x: Any) -> Any:
    return x.dtype.type(0)


def _logistic(z: Any) -> tuple[Any, Any]:
    """1 / (1 + exp(|z|)) and 1 / (1 + exp(-|z|)): the smaller and the larger value of the logistic function."""
    e = np.exp(-np.abs(z))
    larger = 1 / (1 + e)
    return e * larger, larger


def _logistic_of_sum(z: Any, rest: Any) -> tuple[Any, Any]:
    """`_logistic` of z + rest, where |rest| is below an ULP of z: exp(-|z + rest|) = exp(-|z|) (1 - sign(z) rest)."""
    # Beyond the limit exp(-|z|) is 0 and the rest, perhaps NaN by overflow, has no say.
    rest = np.where(np.abs(z) < _LOGISTIC_LIMIT, rest, z.dtype.type(0))
    e = np.exp(-np.abs(z))
    e = e - e * (rest * np.sign(z))
    larger = 1 / (1 + e)
    return e * larger, larger


def _logistic_slope(z: Any, smaller: Any, larger: Any) -> tuple[Any, Any]:
    """(z s(z))' = s + z s (1 - s), and s (1 - s)."""
    below = z < 0
    s, complement = np.where(below, smaller, larger), np.where(below, larger, smaller)
    # An infinite z must not meet a vanished 1 - s.
    return s * (1 + np.clip(z, -_LOGISTIC_LIMIT, _LOGISTIC_LIMIT) * complement), smaller * larger


def _gated(x: Any, gate: Any) -> Any:
    """x · gate, with the limit 0 where the gate has vanished and x may be infinite."""
    return np.where(gate == 0, np.copysign(_zero(gate), x), x * gate)


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """a b as a sum of two floats, exactly (Dekker 1971, with Veltkamp's splitting).

    exp turns an absolute error of its argument into a relative one, so products in its argument keep their rest.
    """
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, rest


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = a * a.dtype.type(2.0 ** ((np.finfo(a.dtype).nmant + 2) // 2) + 1)
    high = scaled - (scaled - a)
    return high, a - high


def _gelu_tanh_argument(x: Any) -> tuple[Any, Any]:
    """√(8/π) (x + 0.044715 x³) as a sum of two floats."""
    t = np.clip(x, -_GELU_TANH_LIMIT, _GELU_TANH_LIMIT)
    (constant, constant_rest), (cubic, cubic_rest) = _GELU_TANH_CONSTANTS[t.dtype.name]
    square, square_rest = _two_product(t, t)
    term, term_rest = _two_product(cubic, square)
    total = constant + term
    # Two-sum (Knuth, TAOCP 2, 4.2.2).
    back = total - constant
    rest = (constant - (total - back)) + (term - back)
    rest = rest + (term_rest + cubic * square_rest + cubic_rest * square) + constant_rest
    z, z_rest = _two_product(t, total)
    return z, z_rest + t * rest


def _two_floats(value: Any, dtype: Any) -> tuple[Any, Any]:
    """A number of mpmath as a sum of two floats."""
    high = dtype(float(value))
    return high, dtype(float(value - mpmath.mpf(float(high))))


def _gelu_tanh_constants() -> dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]]:
    with mpmath.workdps(60):
        constant = mpmath.sqrt(8 / mpmath.pi)
        cubic = constant * mpmath.mpf("0.044715")
        return {
            np.dtype(dtype).name: (_two_floats(constant, dtype), _two_floats(cubic, dtype))
            for dtype in (np.float32, np.float64)
        }


_GELU_TANH_CONSTANTS = _gelu_tanh_constants()


def _gaussian(t: Any) -> Any:
    """exp(-t²/2) = exp(-h²/2) exp(-(t - h)(t + h) / 2), h a multiple of 1/16 near t, so that h² is exact."""
    h = np.rint(t * 16) / 16
    return np.exp(-(h * h) / 2) * np.exp(-(t - h) * (t + h) / 2)


def _mills(t: Any) -> Any:
    """Q(t) exp(t²/2) = erfcx(t / √2) / 2."""
    return special.erfcx(t * t.dtype.type(math.sqrt(0.5))) / 2


def _along_channels(parameter: Any, x: Any) -> Any:
    """The parameter, shaped to lie along axis 1 of x."""
    return parameter if parameter.size == 1 else parameter.reshape(-1, *[1] * (x.ndim - 2))


def _channel_sums(terms: Any, parameter: Any) -> Any:
    """Σ terms over all axes but 1 (over all of them for a single parameter), summed in float64."""
    axes = tuple(range(terms.ndim)) if parameter.size == 1 else tuple(a for a in range(terms.ndim) if a != 1)
    return terms.sum(axis=axes, dtype=np.float64).astype(parameter.dtype).reshape(parameter.shape)
