"""Row-wise operations in Numba: a row is read from memory once, and the passes over it find it in cache.

Every pass of every operation is one plan: the largest logit of a row (forward), sums of terms, what is to be known of
them, and a value of each element. `numerics.rows` runs a plan over rows of any layout.

Exponentials come from `numerics.ratios`, sums are float64 (compensated where the elements are float64), their inverse
is a sum of two floats: so errors stay near 1 ULP, however long the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradmark.numerics import philox_numba
from gradmark.numerics.elementary import elementary, inlined
from gradmark.numerics.functions import Elementary
from gradmark.numerics.fused import Pointwise
from gradmark.numerics.plans import Plan
from gradmark.numerics.ratios import LIFT, difference, lifted_exp, scaled_exp, scaled_exp_of_peak
from gradmark.numerics.rows import Rows
from gradmark.rowwise.numpy import one_hot

Function = Callable[..., Any]


def _forward(name: str, plan: Callable[[Elementary], Plan]) -> Function:
    rows = Rows(name, plan)
    return lambda x, axis, out: rows((x,), axis, out)


def _backward(name: str, plan: Callable[[Elementary], Plan]) -> Function:
    rows = Rows(f"{name}_backward", plan)
    return lambda grad, y, axis, out: rows((grad, y), axis, out)


def _softmax_of(sign: float) -> Callable[[Elementary], Plan]:
    def plan(m: Elementary) -> Plan:
        exp, fma, sign_of_x = scaled_exp(m.dtype), m.fma, m.real(sign)

        def logit(x: Any) -> Any:
            return sign_of_x * x

        def kept(a: Any, b: Any, peak: Any) -> Any:
            return exp(sign_of_x * a, peak)

        def term(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
            return np.float64(e)

        def value(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
            return fma(e, high, e * low)

        return Plan(
            logit=logit,
            kept=kept,
            term=term,
            found=_inverse(),
            value=value,
            padding=-sign * math.inf,
            largest_term=2.0 ** (LIFT[m.dtype] + 1),
        )

    return plan


def _inverse() -> Function:
    """1 / (total + rest) as a sum of two floats."""
    fma = elementary("float64").fma

    def found(total: Any, rest: Any, count: Any, peak: Any) -> Any:
        inverse = 1.0 / total
        return inverse, (fma(-inverse, total, 1.0) - inverse * rest) * inverse

    return found


def _softmax_backward_of(sign: float) -> Callable[[Elementary], Plan]:
    def plan(m: Elementary) -> Plan:
        sign_of_x = m.real(sign)

        def term(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
            return np.float64(g) * np.float64(y)

        def value(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
            # ∂y_i/∂x_j = y_i (δ_ij - y_j), hence dx = y (g - Σ g y).
            return sign_of_x * y * ((g - high) - low)

        return Plan(term=term, found=_itself, value=value)

    return plan


def _itself(total: Any, rest: Any, count: Any, peak: Any) -> Any:
    return total, rest


def _log_softmax(m: Elementary) -> Plan:
    exp, exp_of_peak = (scaled_exp if m.dtype == "float32" else _exp_of_difference)(m.dtype), _exp_of_peak(m.dtype)
    difference_of, logarithm = _rounded_difference(m.dtype), _log1p()

    def logit(x: Any) -> Any:
        return x

    def term(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        # Elements equal to the largest are counted instead: where it stands alone, s may be small. e - e is 0, or NaN.
        e = exp(a, peak)
        return np.float64(e - e if a == peak else e)

    def counted(a: Any, b: Any, peak: Any, high: Any, low: Any) -> Any:
        return a == peak

    def found(total: Any, rest: Any, count: Any, peak: Any) -> Any:
        # log(Σ exp(x - peak)) = log(1 + s), s the sum over all but one of the largest.
        unit = exp_of_peak(peak)
        others = total / unit
        s = others + (count - 1.0)
        return logarithm(s, rest / unit + (others - (s - (count - 1.0)))), 0.0

    def value(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        d, rest = difference_of(a, peak)
        return (d - high) + (rest - low)

    return Plan(
        logit=logit,
        term=term,
        counted=counted,
        found=found,
        value=value,
        padding=-math.inf,
        largest_term=2.0 ** (LIFT[m.dtype] + 1),
    )


def _exp_of_difference(dtype: str) -> Function:
    """(x, peak) -> exp(x - peak) 2^LIFT. In float64, where no wider format gives that of the peak, it is exactly 1."""
    difference_of, exp_of = difference(dtype), lifted_exp(dtype)

    @inlined
    def exp(x: Any, peak: Any) -> Any:
        d, rest = difference_of(x, peak)
        return exp_of(d, rest)

    return exp


def _exp_of_peak(dtype: str) -> Function:
    if dtype == "float32":
        return scaled_exp_of_peak(dtype)
    unit = 2.0 ** LIFT[dtype]
    return inlined(lambda peak: unit)


def _rounded_difference(dtype: str) -> Function:
    """x - peak and its rounding error; in float32 not that, as the logarithm has none there and 2 ULP are kept."""
    if dtype == "float64":
        return difference(dtype)
    zero = np.float32(0)
    return inlined(lambda x, peak: (x - peak, zero))


def _log1p() -> Function:
    """(s, rest) -> log(1 + s + rest) for s >= 0 in float64."""
    m = elementary("float64")
    log, log1p_unit = m.log, m.log1p_unit

    @inlined
    def log1p(s: Any, rest: Any) -> Any:
        near = log1p_unit(s, rest)
        t = 1.0 + s
        # log takes no NaN, but its correction is one where s is.
        return near if s <= 1.0 else log(t) + ((s - (t - 1.0)) + rest) / t

    return log1p


def _log_softmax_backward(m: Elementary) -> Plan:
    exp, fma = m.exp, m.fma

    def term(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        return np.float64(g)

    def value(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        # ∂y_i/∂x_j = δ_ij - exp(y_j), hence dx = g - exp(y) Σ g.
        p = exp(y)
        return fma(-p, high, g) - p * low

    return Plan(term=term, found=_itself, value=value)


def _sparsemax(m: Elementary) -> Plan:
    """The threshold by Newton's method, which from below reaches it in a few steps (Michelot, JOTA 50, 1986).

    From a threshold t, the next is (Σ x - 1) / k over the k elements above t. It rises until k no longer falls.
    """
    difference_of, zero = difference(m.dtype), m.real(0)

    def logit(x: Any) -> Any:
        return x

    def above(a: Any, peak: Any, high: Any, low: Any) -> Any:
        d, rest = difference_of(a, peak)
        return (d - high) + (rest - low)

    above = inlined(above)

    def term(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        d, rest = difference_of(a, peak)
        # Not above <= 0: NaN goes into the sum.
        return np.float64(zero) if above(a, peak, high, low) <= zero else np.float64(d) + np.float64(rest)

    def counted(a: Any, b: Any, peak: Any, high: Any, low: Any) -> Any:
        return not above(a, peak, high, low) <= zero

    def found(total: Any, rest: Any, count: Any, peak: Any) -> Any:
        return ((total - 1.0) + rest) / count, 0.0

    def value(a: Any, b: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        y = above(a, peak, high, low)
        return zero if y <= zero else y

    # The largest element alone gives the threshold -1, relative to it: no other below that can be in the support.
    return Plan(
        logit=logit,
        term=term,
        counted=counted,
        found=found,
        value=value,
        padding=-math.inf,
        start=-1.0,
        repeats=True,
    )


def _sparsemax_backward(m: Elementary) -> Plan:
    zero = m.real(0)

    def term(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        # y - y is 0, and NaN in a row of NaN.
        return np.float64(zero if y <= zero else g + (y - y))

    def counted(g: Any, y: Any, peak: Any, high: Any, low: Any) -> Any:
        return not y <= zero

    def found(total: Any, rest: Any, count: Any, peak: Any) -> Any:
        return (total + rest) / count, 0.0

    def value(g: Any, y: Any, e: Any, peak: Any, high: Any, low: Any) -> Any:
        # On the support ∂y_i/∂x_j = δ_ij - 1/k, 0 elsewhere: g less its mean.
        return zero if y <= zero else (g - high) - low

    return Plan(term=term, counted=counted, found=found, value=value)


softmax, softmax_backward = _forward("softmax", _softmax_of(1.0)), _backward("softmax", _softmax_backward_of(1.0))
log_softmax, log_softmax_backward = (
    _forward("log_softmax", _log_softmax),
    _backward("log_softmax", _log_softmax_backward),
)
softmin, softmin_backward = _forward("softmin", _softmax_of(-1.0)), _backward("softmin", _softmax_backward_of(-1.0))
sparsemax, sparsemax_backward = _forward("sparsemax", _sparsemax), _backward("sparsemax", _sparsemax_backward)


def gumbel_softmax(x: Any, seed: int, tau: float, hard: bool, axis: int, out: Any) -> Any:
    """softmax of (x + n) / tau; with `hard`, a one at its largest element."""
    # The noise may not overwrite x.
    y = _logits(x, seed, tau, np.empty(x.shape, x.dtype) if hard or np.may_share_memory(x, out) else out)
    softmax(y, axis, y if hard else out)
    if hard:
        out[...] = one_hot(y, axis)
    return out


def gumbel_softmax_backward(grad: Any, x: Any, seed: int, tau: float, axis: int, out: Any) -> Any:
    """That of softmax, over tau."""
    y = _logits(x, seed, tau, np.empty(x.shape, x.dtype))
    softmax_backward(grad, softmax(y, axis, y), axis, out)
    return out if tau == 1.0 else np.divide(out, out.dtype.type(tau), out=out)


def _logits(x: Any, seed: int, tau: float, out: Any) -> Any:
    """(x + n) / tau."""
    noise = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    philox_numba.fill_gumbel(noise.reshape(-1), 0, seed)
    return _perturbed((x, noise), (tau,), noise)


_perturbed = Pointwise("gumbel_logits", 2, lambda m: lambda x, n, tau: (x + n) / tau)
