"""Initializers: what of ours and of others fills an array in place, or makes a new one."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .cases import IN_PLACE, AbsentError, Data

Call = Callable[[], Any]

_SEED = 1

_PARAMETERS: Mapping[str, dict[str, float]] = {
    "uniform": {"low": -1.0, "high": 1.0},
    "normal": {"mean": 0.0, "std": 1.0},
    "trunc_normal": {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
    "orthogonal": {},
}
"""What everybody is asked for, by our names."""

_FILLS = {"uniform": "fill_uniform", "normal": "fill_normal", "trunc_normal": "fill_truncated_normal"}
"""Of NumPy's and Numba's backends: what fills the new array that they give."""


def ours(backend: str, data: Data) -> Call:
    """The function of a backend; in place what fills its result, and of PyTorch gradmark.nn.init."""
    import gradmark

    name, parameters = data.case.operation, _PARAMETERS[data.case.operation]
    if data.case.variant != IN_PLACE:
        function = getattr(gradmark.backend(backend), name)
        return functools.partial(function, data.shape, seed=_SEED, dtype=data.case.dtype, **parameters)
    out = np.empty(data.shape, data.case.dtype)
    if backend == "torch":
        import torch

        init = importlib.import_module("gradmark.nn.init")
        return functools.partial(getattr(init, f"{name}_"), torch.from_numpy(out), *parameters.values(), seed=_SEED)
    numerics = importlib.import_module(f"gradmark.numerics.philox_{backend}")
    return _then(functools.partial(getattr(numerics, _FILLS[name]), out, 0, _SEED, *parameters.values()), out)


def in_torch(data: Data) -> Call:
    """torch.nn.init, on a tensor that exists or on a new one."""
    import torch

    function = getattr(torch.nn.init, f"{data.case.operation}_")
    parameters = tuple(_PARAMETERS[data.case.operation].values())
    new = functools.partial(torch.empty, data.shape, dtype=getattr(torch, data.case.dtype))
    if data.case.variant == IN_PLACE:
        return functools.partial(function, new(), *parameters)
    return lambda: function(new(), *parameters)


def in_numpy(data: Data) -> Call:
    """NumPy's Generator, in place as far as it goes; an orthogonal matrix by numpy.linalg.qr."""
    name, shape, dtype = data.case.operation, data.shape, np.dtype(data.case.dtype)
    if name not in _NUMPY:
        raise AbsentError("NumPy draws no truncated normals")
    make, generator = _NUMPY[name], np.random.default_rng(_SEED)
    if data.case.variant == IN_PLACE:
        return functools.partial(make, generator, np.empty(shape, dtype))
    return lambda: make(generator, np.empty(shape, dtype))


def _uniform(generator: Any, out: np.ndarray) -> np.ndarray:
    generator.random(out=out, dtype=out.dtype)
    out *= 2.0
    out -= 1.0
    return out


def _normal(generator: Any, out: np.ndarray) -> np.ndarray:
    generator.standard_normal(out=out, dtype=out.dtype)
    return out


def _orthogonal(generator: Any, out: np.ndarray) -> np.ndarray:
    wide = out.shape[0] < out.shape[1]
    q, r = np.linalg.qr(_normal(generator, out.reshape(out.shape[::-1]) if wide else out))
    # Without this it is not Haar's distribution.
    q *= np.sign(np.diagonal(r))
    return q.T if wide else q


_NUMPY: Mapping[str, Callable[[Any, np.ndarray], np.ndarray]] = {
    "uniform": _uniform,
    "normal": _normal,
    "orthogonal": _orthogonal,
}


def in_jax(data: Data) -> Call:
    """jax.nn.initializers, jitted; the key is an argument, so that nothing is computed beforehand."""
    import jax

    if data.case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    initializers, dtype = jax.nn.initializers, jax.numpy.dtype(data.case.dtype)
    initializer: Any = {
        # initializers.uniform begins at 0.
        "uniform": functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
        "normal": initializers.normal(1.0),
        "trunc_normal": initializers.truncated_normal(1.0, lower=-2.0, upper=2.0),
        "orthogonal": initializers.orthogonal(),
    }[data.case.operation]
    function = jax.jit(lambda key: initializer(key, shape=data.shape, dtype=dtype))
    key = jax.random.key(_SEED)
    return lambda: function(key).block_until_ready()


def in_keras(data: Data) -> Call:
    """keras.initializers, on `keras_backend()`."""
    keras_backend()
    import keras

    initializers = keras.initializers
    initializer = {
        "uniform": lambda: initializers.RandomUniform(-1.0, 1.0, seed=_SEED),
        "normal": lambda: initializers.RandomNormal(0.0, 1.0, seed=_SEED),
        # Of two standard deviations, always.
        "trunc_normal": lambda: initializers.TruncatedNormal(0.0, 1.0, seed=_SEED),
        "orthogonal": lambda: initializers.Orthogonal(seed=_SEED),
    }[data.case.operation]()
    if keras.backend.backend() != "jax":
        return functools.partial(initializer, data.shape, dtype=data.case.dtype)
    return lambda: initializer(data.shape, dtype=data.case.dtype).block_until_ready()


def keras_backend() -> str:
    """The library that Keras computes by: what KERAS_BACKEND names, by default PyTorch, which is here anyway."""
    return os.environ.setdefault("KERAS_BACKEND", "torch")


def _then(fill: Call, out: np.ndarray) -> Call:
    def call() -> np.ndarray:
        fill()
        return out

    return call


# --- distributions ----------------------------------------------------------------------------------------------------

_DEVIATIONS = 6.0
"""Standard errors that the mean and the standard deviation of a sample may be off by: a right one is beyond with a
probability of 2e-9."""

_TAIL = math.exp(-2.0) / math.sqrt(2.0 * math.pi) / math.erf(math.sqrt(2.0))
"""φ(2) / (2 Φ(2) - 1). Of a normal z within ±2, E z² = 1 - 4 of it, and E z⁴ = 3 E z² - 16 of it (by parts)."""

_SQUARE = 1.0 - 4.0 * _TAIL

_MOMENTS: Mapping[str, tuple[float, float, float]] = {
    "uniform": (1.0, 1.0 / math.sqrt(3.0), 1.8),
    "normal": (9.0, 1.0, 3.0),
    "trunc_normal": (2.0, math.sqrt(_SQUARE), (3.0 * _SQUARE - 16.0 * _TAIL) / _SQUARE**2),
}
"""Largest magnitude, standard deviation and kurtosis, of mean 0. A normal is beyond 9 with a probability of 2e-19."""

_COLUMNS = 64
"""Of an orthogonal matrix: those that are looked at."""

_ORTHOGONALITY = 32.0
"""‖QᵀQ - I‖_F of these columns in units of √64 eps. This tells another matrix, not another rounding: of Householder's,
it is a few."""


def same_distribution(data: Data, result: Any) -> bool:
    """Whether a result has the shape and the dtype that are asked for, and the distribution as far as one draw shows.

    The mean and the standard deviation within `_DEVIATIONS` standard errors, and the bounds; of an orthogonal matrix,
    orthogonality.
    """
    found = np.asarray(result)
    if found.shape != data.shape or found.dtype != data.case.dtype:
        return False
    return _is_orthogonal(found) if data.case.operation == "orthogonal" else _has_moments(data.case.operation, found)


def _has_moments(name: str, found: np.ndarray) -> bool:
    largest, std, kurtosis = _MOMENTS[name]
    error = std / math.sqrt(found.size)
    # Var s² = σ⁴ (kurtosis - 1) / n, of which s has the half, relative to σ.
    of_std = error * math.sqrt((kurtosis - 1.0) / 4.0)
    return bool(
        np.abs(found).max() <= largest
        and abs(found.mean(dtype=np.float64)) <= _DEVIATIONS * error
        and abs(found.std(dtype=np.float64) - std) <= _DEVIATIONS * of_std
    )


def _is_orthogonal(found: np.ndarray) -> bool:
    tall = found if found.shape[0] >= found.shape[1] else found.T
    q = tall[:, :_COLUMNS].astype(np.float64)
    error = np.linalg.norm(q.T @ q - np.eye(q.shape[1]))
    return bool(error <= _ORTHOGONALITY * math.sqrt(q.shape[1]) * np.finfo(found.dtype).eps)
