"""Stabilizers against their definitions, in mpmath, with errors on the scale of the sums that enter them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mpmath
import numpy as np

from gradmark import catalog, reference
from gradmark.backends import Backend
from gradmark.catalog import BACKWARD, FORWARD, Pass, Stabilizer
from gradmark.families import rounded
from gradmark.verification.check import Check, allowed, from_backend, to_backend

_EPS = mpmath.mpf("1e-5")
_MAX_NORM = 0.75
_CLIP_VALUE = 0.5

Compared = tuple[str, Any, Any, Any]
"""What was compared: a name, the backend's values, the exact ones, and the scale of the error of each."""


def check_stabilizer(row: Stabilizer, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """Forward and backward, every result of each."""
    forward, backward = _COMPARISONS[row.name]
    passes: tuple[tuple[Pass, Any], ...] = ((FORWARD, forward), (BACKWARD, backward))
    for operation_pass, compare in passes:
        worst, where = -1.0, ""
        with mpmath.workprec(300):
            for name, found, exact, scale in compare(namespace, dtype):
                # Statistics and norms are float32 or wider in half precision; they are not held to less here.
                for value, truth, size in zip(
                    *(np.broadcast_to(v, np.shape(exact)).ravel() for v in (found, exact, scale)), strict=True
                ):
                    error = reference.error_in_ulp(float(value), truth, size, dtype)
                    if not error <= worst:
                        worst, where = error, name
        yield Check(
            row.name,
            operation_pass,
            target,
            dtype,
            worst,
            allowed(row, operation_pass, dtype),
            where,
            unit="ULP of the magnitudes that enter",
        )


def _exactly(values: Any) -> Any:
    """float64 numbers as an object array of mpmath ones; NumPy's operators then compute exactly enough."""
    return np.vectorize(mpmath.mpf, otypes=[object])(np.asarray(values, dtype=np.float64))


def _data(seed: int, shape: tuple[int, ...], dtype: str, *, scale: float = 1.0, shift: float = 0.0) -> Any:
    return rounded(np.random.default_rng(seed).normal(size=shape) * scale + shift, dtype)


_SHAPE = (6, 3, 5)
_AXES = (0, 2)


def _channel(values: Any) -> Any:
    return np.asarray(values).reshape(1, -1, 1)


def _batch_norm_data(dtype: str) -> dict[str, Any]:
    return {
        "x": _data(1, _SHAPE, dtype, scale=2.0, shift=0.5),
        "grad": _data(2, _SHAPE, dtype),
        "weight": _data(3, (3,), dtype),
        "bias": _data(4, (3,), dtype),
        "running_mean": _data(5, (3,), dtype),
        "running_var": np.abs(_data(6, (3,), dtype)) + 0.5,
    }


def _sent(namespace: Backend, dtype: str, data: dict[str, Any], *names: str) -> list[Any]:
    """Arrays of the backend. Statistics of half precision are float32."""
    wide = "float64" if dtype == "float64" else "float32"
    return [to_backend(namespace, data[name], wide if name.startswith("running") else dtype) for name in names]


def _moments(x: Any) -> tuple[Any, Any]:
    count = x.shape[0] * x.shape[2]
    mean = x.sum(axis=_AXES) / count
    return mean, ((x - _channel(mean)) ** 2).sum(axis=_AXES) / count


_sqrt = np.vectorize(mpmath.sqrt, otypes=[object])


def _normalized(data: dict[str, Any], mean: Any, invstd: Any) -> tuple[Any, Any]:
    """y, and the magnitudes that enter it, those of the mean included."""
    x, weight, bias = (_exactly(data[name]) for name in ("x", "weight", "bias"))
    factor = _channel(weight * invstd)
    y = (x - _channel(mean)) * factor + _channel(bias)
    magnitude = np.abs(x).sum(axis=_AXES) / (x.shape[0] * x.shape[2])
    scale = (np.abs(x) + _channel(np.abs(mean) + magnitude)) * np.abs(factor) + np.abs(_channel(bias))
    return y, scale


def _batch_norm(namespace: Backend, dtype: str) -> Iterator[Compared]:
    data = _batch_norm_data(dtype)
    result = namespace.batch_norm(
        *_sent(namespace, dtype, data, "x", "weight", "bias", "running_mean", "running_var"), momentum=0.25
    )
    x = _exactly(data["x"])
    mean, variance = _moments(x)
    magnitude = np.abs(x).sum(axis=_AXES) / (x.shape[0] * x.shape[2])
    invstd = 1 / _sqrt(variance + _EPS)
    y, scale = _normalized(data, mean, invstd)
    count = x.shape[0] * x.shape[2]
    old_mean, old_variance = _exactly(data["running_mean"]), _exactly(data["running_var"])
    yield "y", from_backend(result.y), y, scale
    yield "mean", from_backend(result.mean), mean, magnitude
    yield "invstd", from_backend(result.invstd), invstd, 0
    yield "running_mean", from_backend(result.running_mean), 0.75 * old_mean + 0.25 * mean, np.abs(old_mean) + magnitude
    running_variance = 0.75 * old_variance + 0.25 * variance * count / (count - 1)
    yield "running_var", from_backend(result.running_var), running_variance, 0


def _batch_norm_gradients(
    data: dict[str, Any], mean: Any, invstd: Any, *, through_moments: bool
) -> list[tuple[Any, Any]]:
    """(value, scale) of dx, dweight, dbias. The moments depend on x in training only (Ioffe, Szegedy, section 3)."""
    x, grad, weight = (_exactly(data[name]) for name in ("x", "grad", "weight"))
    count = x.shape[0] * x.shape[2]
    centred = (x - _channel(mean)) * _channel(invstd)
    centred_scale = (np.abs(x) + np.abs(_channel(mean))) * _channel(invstd)
    dweight, dbias = (grad * centred).sum(axis=_AXES), grad.sum(axis=_AXES)
    dweight_scale, dbias_scale = (np.abs(grad) * centred_scale).sum(axis=_AXES), np.abs(grad).sum(axis=_AXES)
    inner, inner_scale = grad, np.abs(grad)
    if through_moments:
        inner = grad - _channel(dbias) / count - centred * _channel(dweight) / count
        inner_scale = np.abs(grad) + (_channel(dbias_scale) + centred_scale * _channel(dweight_scale)) / count
    factor = _channel(weight * invstd)
    return [(factor * inner, np.abs(factor) * inner_scale), (dweight, dweight_scale), (dbias, dbias_scale)]


def _batch_norm_backward(namespace: Backend, dtype: str) -> Iterator[Compared]:
    data = _batch_norm_data(dtype)
    x, weight, bias, grad = _sent(namespace, dtype, data, "x", "weight", "bias", "grad")
    saved = namespace.batch_norm(x, weight, bias, None, None)
    found = namespace.batch_norm_backward(grad, x, weight, saved.mean, saved.invstd)
    mean, invstd = _exactly(from_backend(saved.mean)), _exactly(from_backend(saved.invstd))
    exact = _batch_norm_gradients(data, mean, invstd, through_moments=True)
    yield from _gradients(found, exact)


def _gradients(found: Sequence[Any], exact: list[tuple[Any, Any]]) -> Iterator[Compared]:
    for name, values, (truth, scale) in zip(("dx", "dweight", "dbias"), found, exact, strict=True):
        yield name, from_backend(values), truth, scale


def _batch_norm_inference(namespace: Backend, dtype: str) -> Iterator[Compared]:
    data = _batch_norm_data(dtype)
    found = namespace.batch_norm_inference(
        *_sent(namespace, dtype, data, "x", "weight", "bias", "running_mean", "running_var")
    )
    mean, variance = _exactly(data["running_mean"]), _exactly(data["running_var"])
    yield "y", from_backend(found), *_normalized(data, mean, 1 / _sqrt(variance + _EPS))


def _batch_norm_inference_backward(namespace: Backend, dtype: str) -> Iterator[Compared]:
    data = _batch_norm_data(dtype)
    found = namespace.batch_norm_inference_backward(
        *_sent(namespace, dtype, data, "grad", "x", "weight", "running_mean", "running_var")
    )
    mean, variance = _exactly(data["running_mean"]), _exactly(data["running_var"])
    yield from _gradients(found, _batch_norm_gradients(data, mean, 1 / _sqrt(variance + _EPS), through_moments=False))


def _lists(dtype: str) -> tuple[list[Any], list[Any]]:
    shapes = [(3, 4), (5,), (2, 1, 3)]
    return [_data(7 + i, s, dtype) for i, s in enumerate(shapes)], [
        _data(17 + i, s, dtype) for i, s in enumerate(shapes)
    ]


def _norm_and_coefficient(grads: list[Any]) -> tuple[Any, Any]:
    norm = mpmath.sqrt(mpmath.fsum(v * v for g in grads for v in g.ravel()))
    return norm, mpmath.mpf(_MAX_NORM) / (norm + mpmath.mpf("1e-6"))


def _clip_grad_norm(namespace: Backend, dtype: str) -> Iterator[Compared]:
    grads, _ = _lists(dtype)
    clipped, total = namespace.clip_grad_norm([to_backend(namespace, g, dtype) for g in grads], _MAX_NORM)
    exact = [_exactly(g) for g in grads]
    norm, coefficient = _norm_and_coefficient(exact)
    yield "total_norm", from_backend(total), np.array(norm), 0
    for index, (found, g) in enumerate(zip(clipped, exact, strict=True)):
        yield f"clipped[{index}]", from_backend(found), g * coefficient, 0


def _clip_grad_norm_backward(namespace: Backend, dtype: str) -> Iterator[Compared]:
    grads, cotangents = _lists(dtype)
    sent = [[to_backend(namespace, a, dtype) for a in arrays] for arrays in (cotangents, grads)]
    found = namespace.clip_grad_norm_backward(*sent, _MAX_NORM)
    g_exact, v_exact = [_exactly(g) for g in grads], [_exactly(v) for v in cotangents]
    norm, coefficient = _norm_and_coefficient(g_exact)
    # c' = -c / (n + 1e-6) and n' = g / n, so dg = c v - c / (n (n + 1e-6)) <v, g> g.
    share = coefficient / (norm * (norm + mpmath.mpf("1e-6")))
    products = [
        v * g for vs, gs in zip(v_exact, g_exact, strict=True) for v, g in zip(vs.ravel(), gs.ravel(), strict=True)
    ]
    inner, magnitude = mpmath.fsum(products), mpmath.fsum(abs(p) for p in products)
    for index, (values, v, g) in enumerate(zip(found, v_exact, g_exact, strict=True)):
        exact = coefficient * v - share * inner * g
        yield f"dgrads[{index}]", from_backend(values), exact, coefficient * np.abs(v) + share * magnitude * np.abs(g)


def _clip_grad_value(namespace: Backend, dtype: str) -> Iterator[Compared]:
    grads, _ = _lists(dtype)
    clipped = namespace.clip_grad_value([to_backend(namespace, g, dtype) for g in grads], _CLIP_VALUE)
    for index, (found, g) in enumerate(zip(clipped, grads, strict=True)):
        yield f"clipped[{index}]", from_backend(found), _exactly(np.clip(g, -_CLIP_VALUE, _CLIP_VALUE)), 0


def _clip_grad_value_backward(namespace: Backend, dtype: str) -> Iterator[Compared]:
    grads, cotangents = _lists(dtype)
    sent = [[to_backend(namespace, a, dtype) for a in arrays] for arrays in (cotangents, grads)]
    found = namespace.clip_grad_value_backward(*sent, _CLIP_VALUE)
    for index, (values, v, g) in enumerate(zip(found, cotangents, grads, strict=True)):
        yield f"dgrads[{index}]", from_backend(values), _exactly(np.where(np.abs(g) <= _CLIP_VALUE, v, 0.0)), 0


_ACTIVATION = "silu"


def _sums(dtype: str) -> tuple[Any, Any, Any]:
    return _data(31, (9, 11), dtype, scale=2.0), _data(32, (9, 11), dtype, scale=2.0), _data(33, (9, 11), dtype)


def _of_sum(function: Callable[..., Any], total: Any) -> Any:
    """A reference function of the activation at x + f, which a backend rounds to float32 or wider."""
    row = catalog.operation(_ACTIVATION)
    return np.vectorize(lambda v: function(row, v, ()), otypes=[object])(total)


def _rounded_sum(x: Any, f: Any, dtype: str) -> Any:
    return rounded(x + f, "float64" if dtype == "float64" else "float32")


def _residual_add(namespace: Backend, dtype: str) -> Iterator[Compared]:
    x, f, _ = _sums(dtype)
    sent = [to_backend(namespace, a, dtype) for a in (x, f)]
    yield "y without activation", from_backend(namespace.residual_add(*sent)), _exactly(x) + _exactly(f), 0
    found = namespace.residual_add(*sent, activation=_ACTIVATION)
    total = _rounded_sum(x, f, dtype)
    yield f"y with {_ACTIVATION}", from_backend(found), _of_sum(reference.forward, total), np.abs(_exactly(total))


def _residual_add_backward(namespace: Backend, dtype: str) -> Iterator[Compared]:
    x, f, grad = _sums(dtype)
    sent = [to_backend(namespace, a, dtype) for a in (grad, x, f)]
    yield "d without activation", from_backend(namespace.residual_add_backward(*sent)), _exactly(grad), 0
    found = namespace.residual_add_backward(*sent, activation=_ACTIVATION)
    slopes = _of_sum(reference.derivative, _rounded_sum(x, f, dtype))
    yield f"d with {_ACTIVATION}", from_backend(found), _exactly(grad) * slopes, np.abs(_exactly(grad))


_COMPARISONS: dict[str, tuple[Callable[..., Iterator[Compared]], Callable[..., Iterator[Compared]]]] = {
    "batch_norm": (_batch_norm, _batch_norm_backward),
    "batch_norm_inference": (_batch_norm_inference, _batch_norm_inference_backward),
    "clip_grad_norm": (_clip_grad_norm, _clip_grad_norm_backward),
    "clip_grad_value": (_clip_grad_value, _clip_grad_value_backward),
    "residual_add": (_residual_add, _residual_add_backward),
}
