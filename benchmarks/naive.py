"""Every activation as a user of NumPy writes it: whole arrays, a temporary for each operation, no care for digits.

`NAIVE` gives the value and the gradient of a row, callables of (x, *parameters) and (grad, x, *parameters). They do
the work of the row's functions: a learnable parameter is a number, and its gradient, a sum, is given too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import special

Function = Callable[..., Any]

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _sigmoid_gradient(g: Any, x: Any) -> Any:
    s = _logistic(x)
    return g * s * (1 - s)


def _prelu_gradient(g: Any, x: Any, alpha: Any) -> tuple[Any, Any]:
    return g * np.where(x > 0, 1, alpha).astype(x.dtype), np.sum(g * np.minimum(x, 0))


def _swish_gradient(g: Any, x: Any, beta: Any) -> tuple[Any, Any]:
    s = _logistic(beta * x)
    slope = s * (1 - s)
    return g * (s + beta * x * slope), np.sum(g * x * x * slope)


def _silu_gradient(g: Any, x: Any) -> Any:
    s = _logistic(x)
    return g * (s + x * s * (1 - s))


def _quick_gelu_gradient(g: Any, x: Any) -> Any:
    s = _logistic(1.702 * x)
    return g * (s + 1.702 * x * s * (1 - s))


def _gelu_gradient(g: Any, x: Any) -> Any:
    cdf = 0.5 * (1 + special.erf(x / math.sqrt(2)))
    return g * (cdf + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


def _gelu_tanh_gradient(g: Any, x: Any) -> Any:
    t = np.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x))


def _mish_gradient(g: Any, x: Any) -> Any:
    t = np.tanh(np.log1p(np.exp(x)))
    return g * (t + x * (1 - t * t) * _logistic(x))


def _squareplus_gradient(g: Any, x: Any, b: Any) -> Any:
    return g * 0.5 * (1 + x / np.sqrt(x * x + b))


NAIVE: Mapping[str, tuple[Function, Function]] = MappingProxyType(
    {
        "sigmoid": (_logistic, _sigmoid_gradient),
        "tanh": (np.tanh, lambda g, x: g * (1 - np.tanh(x) ** 2)),
        "relu": (lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0)),
        "leaky_relu": (lambda x, s: np.where(x > 0, x, s * x), lambda g, x, s: np.where(x > 0, g, s * g)),
        "prelu": (lambda x, a: np.where(x > 0, x, a * x), _prelu_gradient),
        "elu": (
            lambda x, a: np.where(x > 0, x, a * np.expm1(x)),
            lambda g, x, a: g * np.where(x > 0, 1, a * np.exp(x)).astype(x.dtype),
        ),
        "gelu": (lambda x: 0.5 * x * (1 + special.erf(x / math.sqrt(2))), _gelu_gradient),
        "gelu_tanh": (_gelu_tanh, _gelu_tanh_gradient),
        "swish": (lambda x, b: x / (1 + np.exp(-b * x)), _swish_gradient),
        "silu": (lambda x: x / (1 + np.exp(-x)), _silu_gradient),
        "relu6": (lambda x: np.clip(x, 0, 6), lambda g, x: g * ((x > 0) & (x < 6))),
        "squared_relu": (lambda x: np.maximum(x, 0) ** 2, lambda g, x: g * 2 * np.maximum(x, 0)),
        "rrelu": (
            lambda x, a, b: np.where(x >= 0, x, (a + b) / 2 * x),
            lambda g, x, a, b: np.where(x > 0, g, (a + b) / 2 * g),
        ),
        "celu": (
            lambda x, a: np.where(x > 0, x, a * np.expm1(x / a)),
            lambda g, x, a: g * np.where(x > 0, 1, np.exp(x / a)).astype(x.dtype),
        ),
        "selu": (
            lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(x)),
            lambda g, x: g * _SELU_SCALE * np.where(x > 0, 1, _SELU_ALPHA * np.exp(x)).astype(x.dtype),
        ),
        "hard_sigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, lambda g, x: g * ((x > -3) & (x < 3)) / 6),
        "hard_tanh": (lambda x, a, b: np.clip(x, a, b), lambda g, x, a, b: g * ((x > a) & (x < b))),
        "hard_swish": (
            lambda x: x * np.clip(x + 3, 0, 6) / 6,
            lambda g, x: g * np.where(x > -3, np.where(x < 3, (2 * x + 3) / 6, 1), 0).astype(x.dtype),
        ),
        "hard_mish": (
            lambda x: x * np.clip(x + 2, 0, 2) / 2,
            lambda g, x: g * np.where(x >= -2, np.where(x < 0, x + 1, 1), 0).astype(x.dtype),
        ),
        "threshold": (lambda x, t, v: np.where(x > t, x, v), lambda g, x, t, v: g * (x > t)),
        "softshrink": (
            lambda x, s: np.sign(x) * np.maximum(np.abs(x) - s, 0),
            lambda g, x, s: g * (np.abs(x) > s),
        ),
        "hardshrink": (lambda x, s: x * (np.abs(x) > s), lambda g, x, s: g * (np.abs(x) > s)),
        "tanhshrink": (lambda x: x - np.tanh(x), lambda g, x: g * np.tanh(x) ** 2),
        "softsign": (lambda x: x / (1 + np.abs(x)), lambda g, x: g / (1 + np.abs(x)) ** 2),
        "softplus": (
            lambda x, b, t: np.where(b * x > t, x, np.log1p(np.exp(b * x)) / b),
            lambda g, x, b, t: g * np.where(b * x > t, 1, _logistic(b * x)).astype(x.dtype),
        ),
        "log_sigmoid": (lambda x: -np.log1p(np.exp(-x)), lambda g, x: g / (1 + np.exp(x))),
        "mish": (lambda x: x * np.tanh(np.log1p(np.exp(x))), _mish_gradient),
        "quick_gelu": (lambda x: x / (1 + np.exp(-1.702 * x)), _quick_gelu_gradient),
        "squareplus": (lambda x, b: 0.5 * (x + np.sqrt(x * x + b)), _squareplus_gradient),
        "sparse_plus": (
            lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)).astype(x.dtype),
            lambda g, x: g * np.clip((x + 1) / 2, 0, 1),
        ),
        "sparse_sigmoid": (lambda x: np.clip((x + 1) / 2, 0, 1), lambda g, x: g * 0.5 * ((x > -1) & (x < 1))),
        "exponential": (np.exp, lambda g, x: g * np.exp(x)),
        "identity": (np.copy, lambda g, x: np.copy(g)),
    }
)
