"""What chains of ufuncs share: selections without branches, sums of two floats, polynomials.

NumPy's where takes as long as an exponential, as it is not vectorized. So elements are selected by their bits, with
masks of the dtype's width: all bits set where a condition holds, none elsewhere. Arrays are blocks of one length,
float32 or float64; `work` (`numerics.blocked`) has the temporaries. Functions that take `out` return it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_INTEGERS: dict[Any, Any] = {np.dtype(np.float32): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.int64)}
_SIGN: dict[Any, Any] = {np.dtype(np.float32): np.int32(-(2**31)), np.dtype(np.float64): np.int64(-(2**63))}
_SIGN_SHIFT: dict[Any, Any] = {np.dtype(np.float32): np.int32(31), np.dtype(np.float64): np.int64(63)}


def bits(array: Any) -> Any:
    """The array's bits, as signed integers: the same memory."""
    return array.view(_INTEGERS[array.dtype])


def minus_abs(x: Any, out: Any) -> Any:
    """-|x|."""
    np.bitwise_or(bits(x), _SIGN[x.dtype], out=bits(out))
    return out


def with_sign_of(y: Any, x: Any, out: Any, work: Any) -> Any:
    """Y with the sign of x, for y that has none or the sign of x."""
    sign = bits(work.like(x.dtype))
    np.bitwise_and(bits(x), _SIGN[x.dtype], out=sign)
    np.bitwise_or(bits(y), sign, out=bits(out))
    return out


def sign_mask(x: Any, work: Any) -> Any:
    """Where x has a sign: x < 0, -0 and half of the NaN."""
    mask = bits(work.like(x.dtype))
    np.right_shift(bits(x), _SIGN_SHIFT[x.dtype], out=mask)
    return mask


def halves(x: Any, work: Any) -> tuple[Any, Any]:
    """(x, +0) where x has a sign, (+0, x) elsewhere: the bits of functions of the two are joined by `joined`."""
    below, above = work.like(x.dtype), work.like(x.dtype)
    np.right_shift(bits(x), _SIGN_SHIFT[x.dtype], out=bits(below))
    np.bitwise_and(bits(below), bits(x), out=bits(below))
    np.bitwise_xor(bits(x), bits(below), out=bits(above))
    return below, above


def joined(a: Any, b: Any, out: Any) -> Any:
    """A where b is +0, b where a is +0."""
    np.bitwise_or(bits(a), bits(b), out=bits(out))
    return out


def mask_where(condition: Any, dtype: Any, work: Any) -> Any:
    """The mask of a boolean array, which is overwritten."""
    small = condition.view(np.int8)
    np.negative(small, out=small)
    mask = bits(work.like(dtype))
    np.copyto(mask, small)
    return mask


def mask_unless(condition: Any, dtype: Any, work: Any) -> Any:
    """The mask of where a boolean array, which is overwritten, is false."""
    small = condition.view(np.int8)
    np.subtract(small, 1, out=small)
    mask = bits(work.like(dtype))
    np.copyto(mask, small)
    return mask


def kept(mask: Any, a: Any, out: Any) -> Any:
    """A where the mask is set, +0 elsewhere."""
    np.bitwise_and(bits(a), mask, out=bits(out))
    return out


def selected(mask: Any, a: Any, b: Any, out: Any, work: Any) -> Any:
    """A where the mask is set, b elsewhere; both arrays, or numbers."""
    dtype = out.dtype
    first, second = (bits(v if isinstance(v, np.ndarray) else dtype.type(v)) for v in (a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        target = bits(work.like(dtype))
        np.bitwise_xor(first, second, out=target)
        np.bitwise_and(target, mask, out=target)
    else:
        target = bits(out)
        np.bitwise_and(mask, first ^ second, out=target)
    np.bitwise_xor(target, second, out=bits(out))
    return out


def exp_of_single(x: Any, out: Any) -> Any:
    """exp(x) of float32 in float64, rounded once: NumPy's float32 exp is off by up to 2.6 ULP."""
    np.exp(x, out=out, dtype=np.float64, casting="same_kind")
    return out


def horner(coefficients: Sequence[float], x: Any, out: Any) -> Any:
    """Σ coefficients[k] x^k."""
    *lower, second, last = coefficients
    np.multiply(x, last, out=out)
    np.add(out, second, out=out)
    for c in reversed(lower):
        np.multiply(out, x, out=out)
        np.add(out, c, out=out)
    return out
