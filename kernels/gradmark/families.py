"""Families of inputs, as data: what elementwise operations are tested on, for every dtype.

Random numbers never land on the points where a piecewise function switches, where a result under- or overflows, or
on a signed zero. So these are written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradmark.catalog import Activation
from gradmark.reference import MANTISSA_BITS, SMALLEST_EXPONENT


@dataclass(frozen=True)
class Family:
    """A named set of inputs: float64 numbers that the dtype represents exactly."""

    name: str
    values: Any
    finite: bool = True


def families(row: Activation, dtype: str) -> list[Family]:
    """The families on which an activation is compared with the reference in `dtype`."""
    tiny, huge = 2.0 ** SMALLEST_EXPONENT[dtype], _largest(dtype)
    subnormal = tiny * 2.0 ** -MANTISSA_BITS[dtype]
    # Where exp(-x) of this dtype has its first subnormal result, and its last.
    underflow = -SMALLEST_EXPONENT[dtype] * np.log(2)
    vanished = underflow + (MANTISSA_BITS[dtype] + 2) * np.log(2)
    rng = np.random.default_rng(20260101)
    moderate = np.concatenate([np.linspace(-12, 12, 97), rng.normal(size=64) * 3])
    tail = np.sqrt(2 * vanished)
    named = {
        "moderate": moderate,
        "small": _both_signs(_powers_of_two(SMALLEST_EXPONENT[dtype], -7, 24)),
        "large": _both_signs(_powers_of_two(3, _LARGEST_EXPONENT[dtype], 24)),
        "tails": np.concatenate(
            [np.linspace(-vanished - 1, -5, 40), np.linspace(-tail - 0.5, -4, 40), np.linspace(4, vanished, 24)]
        ),
        "kinks": np.array([k + d for k in row.kinks for d in (0.0, 1e-3, -1e-3, *_steps(k, dtype))]),
        "zero of the derivative": np.array([z + d for z in _ZEROS for d in (0.0, 1e-3, -1e-3, *_steps(z, dtype))]),
        "subnormal": _both_signs(np.array([1.0, 2.0, 3.0, 1000.0]) * subnormal),
        "extremal": _both_signs(np.array([tiny, 1.0, huge, huge / 2])),
        "zeros": np.array([0.0, -0.0]),
    }
    finite = [Family(name, rounded(values, dtype)) for name, values in named.items() if values.size]
    # Enough for two vectors of any width and a rest, which other instructions compute.
    special = {name: np.resize([-value, value], 38) for name, value in (("infinite", np.inf), ("nan", np.nan))}
    return [*finite, *(Family(name, values, finite=False) for name, values in special.items())]


def gradients(values: Any, dtype: str) -> Any:
    """Incoming gradients for the values: of both signs and several magnitudes, none of them 1."""
    scale = np.array([1.5, -0.75, 3e-3, -200.0])
    return rounded(scale[np.arange(values.size) % scale.size], dtype)


_LARGEST_EXPONENT: Mapping[str, int] = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}


_ZEROS = (-0.7517915247, -0.7524614, -0.7511542561, -1.2784645428, 2.5569290856, -1.1924312145, -1.0, -1.5)
"""Where the derivative of an activation here crosses 0: gelu, gelu_tanh, quick_gelu (and swish of β = 1.702), silu,
swish of β = -1/2, mish, hard_mish, hard_swish."""


def _steps(value: float, dtype: str) -> tuple[float, ...]:
    """From the value to its neighbours in the dtype (below a power of two they are nearer), and to the third ones."""
    exponent = max(int(np.frexp(value)[1]) - 1, SMALLEST_EXPONENT[dtype]) if value else SMALLEST_EXPONENT[dtype]
    step = 2.0 ** (exponent - MANTISSA_BITS[dtype])
    return step, -step, -step / 2, 3 * step, -3 * step


def _both_signs(values: Any) -> Any:
    return np.concatenate([values, -values])


def _powers_of_two(low: int, high: int, count: int) -> Any:
    return 2.0 ** np.linspace(low, high, count)


def _largest(dtype: str) -> float:
    return float(np.ldexp(2.0 - 2.0 ** -MANTISSA_BITS[dtype], _LARGEST_EXPONENT[dtype]))


def rounded(values: Any, dtype: str) -> Any:
    """The values, rounded to the dtype (to nearest, ties to even), as float64."""
    values = np.asarray(values, dtype=np.float64)
    if dtype == "float64":
        return values
    with np.errstate(all="ignore"):
        mantissa, exponent = np.frexp(values)
        bits = np.maximum(exponent - 1, SMALLEST_EXPONENT[dtype]) - MANTISSA_BITS[dtype]
        return np.copysign(np.ldexp(np.rint(np.ldexp(mantissa, exponent - bits)), bits), values)


LAYOUTS: Mapping[str, str] = {
    "C": "contiguous",
    "F": "Fortran order",
    "strided": "every second element",
    "reversed": "negative strides",
    "transposed": "permuted axes",
    "broadcast": "stride zero",
    "unaligned": "not aligned to the element size",
    "read-only": "not writeable",
    "0-d": "no axes",
    "empty": "no elements",
}
"""Memory layouts of an input array; the tests build each of them from the same values."""
