"""batch_norm and batch_norm_inference: values, gradients, statistics, memory, threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradmark
from stabilizing import FULL_PRECISION, HALF_PRECISION, Arrays, bits, exact, to_numpy, tolerance, worst_ulp

# Both layouts of the Numba backend, tiles that are full, partial, split rows, and more than one thread's worth.
SHAPES = [(2, 1), (7, 3), (130, 300), (5, 4, 3), (2, 3, 31), (3, 2, 32), (4, 3, 8, 9), (2, 2, 5000), (70, 5, 33, 31)]
SMALL_SHAPES = [(6, 3), (4, 2, 5), (2, 3, 4, 9)]
FAMILIES = {"ordinary": (0.5, 2.0), "far": (1e4, 1.0), "tiny": (0.0, 1e-6), "huge": (0.0, 1e15)}


def data(shape, family="ordinary", seed=0):
    mean, std = FAMILIES[family]
    rng = np.random.default_rng(seed)
    channels = shape[1]
    return {
        "x": mean + std * rng.standard_normal(shape),
        "grad": rng.standard_normal(shape),
        "weight": rng.standard_normal(channels),
        "bias": rng.standard_normal(channels),
        "running_mean": rng.standard_normal(channels),
        "running_var": rng.uniform(0.5, 2.0, channels),
    }


def as_arrays(arrays, values):
    kinds = {"running_mean": arrays.statistics, "running_var": arrays.statistics}
    return {name: arrays(value, kinds.get(name)) for name, value in values.items()}


def along(values, x):
    return np.asarray(values).reshape(-1, *(1,) * (x.ndim - 2))


def axes(x):
    return (0, *range(2, x.ndim))


def moments(x):
    """Mean and biased variance per channel, in extended precision, in two passes."""
    mean = x.mean(axis=axes(x))
    return mean, np.square(x - along(mean, x)).mean(axis=axes(x))


def forward_reference(x, weight, bias, mean, var, eps):
    """y, and two scales of its error: the magnitudes that enter it, without and with those that enter the mean."""
    invstd = 1 / np.sqrt(var + np.longdouble(eps))
    factor = along(invstd * weight, x)
    y = (x - along(mean, x)) * factor + along(bias, x)
    centred_scale = np.abs((x - along(mean, x)) * factor) + np.abs(along(bias, x))
    magnitude = np.abs(x).mean(axis=axes(x)) if x.size else np.abs(mean)
    return y, centred_scale, centred_scale + np.abs(along(np.maximum(magnitude, np.abs(mean)), x) * factor)


def backward_reference(grad, x, weight, mean, invstd, training):
    """dx, dweight, dbias and the scales of their errors: the sums of the magnitudes that enter."""
    count = x.size // x.shape[1]
    xhat = (x - along(mean, x)) * along(invstd, x)
    dbias, dweight = grad.sum(axis=axes(x)), (grad * xhat).sum(axis=axes(x))
    dbias_scale, dweight_scale = np.abs(grad).sum(axis=axes(x)), np.abs(grad * xhat).sum(axis=axes(x))
    inner, inner_scale = grad, np.abs(grad)
    if training:
        inner = grad - along(dbias, x) / count - xhat * along(dweight, x) / count
        inner_scale = inner_scale + (along(dbias_scale, x) + np.abs(xhat) * along(dweight_scale, x)) / count
    factor = along(weight * invstd, x)
    return (factor * inner, dweight, dbias), (np.abs(factor) * inner_scale, dweight_scale, dbias_scale)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION)
def test_training_forward(name, dtype, shape, family):
    arrays = Arrays(name, dtype)
    a = as_arrays(arrays, data(shape, family))
    del a["grad"]
    result = arrays.backend.batch_norm(**a, momentum=0.3, eps=1e-5)
    x, weight, bias = (exact(a[k]) for k in ("x", "weight", "bias"))
    mean, var = moments(x)
    y, centred_scale, scale = forward_reference(x, weight, bias, mean, var, 1e-5)
    bound = tolerance("batch_norm", "forward")
    count = x.size // x.shape[1]
    square_of_the_mean = 0
    if name == "torch":
        bound *= aten_growth(dtype, count)
        # ATen's mean is off by ULPs of itself, and a variance about a point that is off by d is larger by d².
        square_of_the_mean = bound * np.square(mean) * np.finfo(dtype).eps
    # ATen multiplies x, not x - mean: its error is relative to the mean as well. In float64 so is everybody's, as the
    # mean is a sum in float64.
    precise = name != "torch" and dtype == "float32"
    assert worst_ulp(result.y, y, centred_scale if precise else scale, dtype) <= bound
    # A mean is a sum of magnitudes; a variance and what is made of it has one sign.
    magnitude = np.abs(x).mean(axis=axes(x))
    assert worst_ulp(result.mean, mean, magnitude, dtype) <= bound
    invstd = 1 / np.sqrt(var + np.longdouble(1e-5))
    assert worst_ulp(result.invstd, invstd, invstd * (1 + invstd**2 * square_of_the_mean / 2), dtype) <= bound
    old_mean, old_var = exact(a["running_mean"]), exact(a["running_var"])
    share, rest = np.longdouble(0.3), 1 - np.longdouble(0.3)
    running = rest * old_mean + share * mean
    assert worst_ulp(result.running_mean, running, np.abs(rest * old_mean) + share * magnitude, dtype) <= bound
    running = rest * old_var + share * var * count / (count - 1)
    assert worst_ulp(result.running_var, running, running + share * square_of_the_mean, dtype) <= bound


def aten_growth(dtype, count):
    """How much more than the row's tolerance ATen needs: in float64 it adds a channel's values in float64.

    The error of a plain sum of n terms grows as √n; measured up to 91 ULP at n = 71 610, where √n / 16 = 17.
    """
    return max(1.0, count**0.5 / 16) if dtype == "float64" else 1.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION)
def test_training_backward(name, dtype, shape):
    arrays = Arrays(name, dtype)
    a = as_arrays(arrays, data(shape))
    saved = arrays.backend.batch_norm(a["x"], a["weight"], a["bias"], None, None)
    result = arrays.backend.batch_norm_backward(a["grad"], a["x"], a["weight"], saved.mean, saved.invstd)
    inputs = [exact(v) for v in (a["grad"], a["x"], a["weight"], saved.mean, saved.invstd)]
    expected, scales = backward_reference(*inputs, training=True)
    for part, value, scale in zip(result, expected, scales, strict=True):
        assert worst_ulp(part, value, scale, dtype) <= tolerance("batch_norm", "backward")


@pytest.mark.parametrize("shape", [*SHAPES, (1, 3), (3, 2, 1)], ids=str)
@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION)
def test_inference(name, dtype, shape):
    arrays = Arrays(name, dtype)
    a = as_arrays(arrays, data(shape))
    grad = a.pop("grad")
    y = arrays.backend.batch_norm_inference(**a, eps=1e-3)
    x, weight, bias, mean, var = (exact(v) for v in a.values())
    expected, _, scale = forward_reference(x, weight, bias, mean, var, 1e-3)
    assert worst_ulp(y, expected, scale, dtype) <= tolerance("batch_norm_inference", "forward")
    del a["bias"]
    result = arrays.backend.batch_norm_inference_backward(grad, **a, eps=1e-3)
    invstd = 1 / np.sqrt(var + np.longdouble(1e-3))
    values, scales = backward_reference(exact(grad), x, weight, mean, invstd, training=False)
    for part, value, scale in zip(result, values, scales, strict=True):
        assert worst_ulp(part, value, scale, dtype) <= tolerance("batch_norm_inference", "backward")


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), HALF_PRECISION)
@pytest.mark.parametrize("mixed", [False, True], ids=["weight like x", "weight float32"])
def test_half_precision_is_computed_in_float32(name, dtype, shape, mixed):
    arrays = Arrays(name, dtype)
    a = as_arrays(arrays, data(shape))
    if mixed:
        a |= {k: arrays(to_numpy(a[k]), "float32") for k in ("weight", "bias")}
    grad = a.pop("grad")
    result = arrays.backend.batch_norm(**a)
    x, weight, bias, _, _ = (exact(v) for v in a.values())
    y, _, scale = forward_reference(x, weight, bias, *moments(x), 1e-5)
    # One rounding to half precision, and float32's error, which is far below.
    assert result.y.dtype == a["x"].dtype
    assert worst_ulp(result.y, y, scale, dtype) <= 0.51
    for statistic in result[1:]:
        assert str(statistic.dtype).endswith("float32")
    back = arrays.backend.batch_norm_backward(grad, a["x"], a["weight"], result.mean, result.invstd)
    expected, scales = backward_reference(*(exact(v) for v in (grad, a["x"], a["weight"], *result[1:3])), True)
    assert back.dx.dtype == a["x"].dtype
    assert back.dweight.dtype == back.dbias.dtype == a["weight"].dtype
    for part, value, part_scale in zip(back, expected, scales, strict=True):
        assert worst_ulp(part, value, part_scale, dtype) <= 0.51


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_half_precision_without_parameters(name):
    for dtype in gradmark.backend(name).dtypes:
        arrays = Arrays(name, dtype)
        a = as_arrays(arrays, data((6, 3)))
        result = arrays.backend.batch_norm(a["x"], None, None, None, None)
        assert str(result.mean.dtype).endswith(arrays.statistics)
        assert result.running_mean is None
        assert result.running_var is None
        back = arrays.backend.batch_norm_backward(a["grad"], a["x"], None, result.mean, result.invstd)
        assert back.dweight is None
        assert back.dbias is None
        ones, zeros = arrays(np.ones(3), arrays.statistics), arrays(np.zeros(3), arrays.statistics)
        assert bits(result.y) == bits(arrays.backend.batch_norm(a["x"], ones, zeros, None, None).y)


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_backward_equals_autograd(name, shape, training):
    arrays, values = Arrays(name), data(shape)
    t = {k: torch.from_numpy(v) for k, v in values.items()}
    leaves = [t[k].requires_grad_() for k in ("x", "weight", "bias")]
    y = torch.nn.functional.batch_norm(
        t["x"], t["running_mean"].clone(), t["running_var"].clone(), t["weight"], t["bias"], training=training
    )
    expected = torch.autograd.grad(y, leaves, t["grad"])
    for part, value in zip(_gradients(arrays.backend, as_arrays(arrays, values), training), expected, strict=True):
        np.testing.assert_allclose(to_numpy(part), value.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_backward_equals_finite_differences(name, shape, training):
    arrays, values = Arrays(name), data(shape)

    def loss(changed):
        a = as_arrays(arrays, {k: v for k, v in changed.items() if k != "grad"})
        y = arrays.backend.batch_norm(**a).y if training else arrays.backend.batch_norm_inference(**a)
        return float((to_numpy(y) * values["grad"]).sum())

    step = 1e-5
    gradients = _gradients(arrays.backend, as_arrays(arrays, values), training)
    for part, argument in zip(gradients, ("x", "weight", "bias"), strict=True):
        numeric = np.empty(values[argument].shape)
        for i in np.ndindex(numeric.shape):
            nudge = np.zeros(numeric.shape)
            nudge[i] = step
            up, down = (loss(values | {argument: values[argument] + sign * nudge}) for sign in (1, -1))
            numeric[i] = (up - down) / (2 * step)
        # Truncation step² and rounding eps / step, both about 1e-10.
        np.testing.assert_allclose(to_numpy(part), numeric, rtol=1e-7, atol=1e-8)


def _gradients(backend, a, training):
    if training:
        saved = backend.batch_norm(a["x"], a["weight"], a["bias"], None, None)
        return backend.batch_norm_backward(a["grad"], a["x"], a["weight"], saved.mean, saved.invstd)
    return backend.batch_norm_inference_backward(a["grad"], a["x"], a["weight"], a["running_mean"], a["running_var"])


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_running_statistics_equal_those_of_torch(name):
    arrays, values = Arrays(name), data((5, 3, 4))
    result = arrays.backend.batch_norm(**as_arrays(arrays, {k: v for k, v in values.items() if k != "grad"}))
    mean, var = torch.from_numpy(values["running_mean"].copy()), torch.from_numpy(values["running_var"].copy())
    torch.nn.functional.batch_norm(torch.from_numpy(values["x"]), mean, var, training=True)
    np.testing.assert_allclose(to_numpy(result.running_mean), mean.numpy(), rtol=1e-14)
    np.testing.assert_allclose(to_numpy(result.running_var), var.numpy(), rtol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 9), st.integers(0, 6), st.integers(1, 70), st.integers(1, 3)),
    cut=st.integers(2, 4),
    seed=st.integers(0, 1000),
)
def test_backends_agree_on_any_shape(shape, cut, seed):
    values = data(shape[:cut], seed=seed)
    results = []
    for name in gradmark.BACKENDS:
        arrays = Arrays(name)
        a = as_arrays(arrays, values)
        forward = arrays.backend.batch_norm(**{k: v for k, v in a.items() if k != "grad"})
        inference = arrays.backend.batch_norm_inference(**{k: v for k, v in a.items() if k != "grad"})
        results.append(
            [*forward, inference, *_gradients(arrays.backend, a, True), *_gradients(arrays.backend, a, False)]
        )
    for parts in zip(*results, strict=True):
        for part in parts[1:]:
            # Float64; with few values a channel may be nearly constant, which amplifies by up to 1/√eps = 316.
            np.testing.assert_allclose(to_numpy(part), to_numpy(parts[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION)
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (4, 3, 0), (4, 0, 2), (2, 3, 0, 5)], ids=str)
def test_empty(name, dtype, shape):
    arrays = Arrays(name, dtype)
    a = as_arrays(arrays, data(shape))
    y = arrays.backend.batch_norm_inference(**{k: v for k, v in a.items() if k != "grad"})
    assert tuple(y.shape) == shape
    channels = shape[1]
    statistic = arrays(np.ones(channels), arrays.statistics)
    for back in (
        arrays.backend.batch_norm_backward(a["grad"], a["x"], a["weight"], statistic, statistic),
        arrays.backend.batch_norm_inference_backward(
            a["grad"], a["x"], a["weight"], a["running_mean"], a["running_var"]
        ),
    ):
        assert tuple(back.dx.shape) == shape
        assert not to_numpy(back.dweight).any()
        assert not to_numpy(back.dbias).any()
        assert tuple(back.dweight.shape) == (channels,)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_training_without_channels(name):
    arrays = Arrays(name)
    a = as_arrays(arrays, data((4, 0, 2)))
    result = arrays.backend.batch_norm(**{k: v for k, v in a.items() if k != "grad"})
    assert [tuple(part.shape) for part in result] == [(4, 0, 2), (0,), (0,), (0,), (0,)]


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_nan_and_infinity_stay_in_their_channel(name):
    arrays, values = Arrays(name, "float32"), data((4, 3, 40))
    values["x"][1, 0, 2], values["x"][2, 1, 3] = np.nan, np.inf
    a = as_arrays(arrays, values)
    y = to_numpy(arrays.backend.batch_norm(**{k: v for k, v in a.items() if k != "grad"}).y)
    assert np.isnan(y[:, :2]).all()
    assert np.isfinite(y[:, 2]).all()


@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 40), (3, 2, 2000)], ids=str)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_of_a_channel_with_an_infinity_is_that_infinity(dtype, place, shape):
    """In the reference and in the kernels, wherever in the channel it is."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x.reshape(shape[0], 2, -1)[place, 0, place] = -np.inf
    for name in ("numpy", "numba"):
        result = gradmark.backend(name).batch_norm(x, None, None, np.zeros(2, dtype), np.ones(2, dtype))
        assert result.mean[0] == result.running_mean[0] == -np.inf, name
        assert np.isnan(result.y[:, 0]).all()
        assert np.isfinite(result.y[:, 1]).all()


@pytest.mark.parametrize("shape", [(64, 1), (2, 1, 2048), (2, 2, 31)], ids=str)
@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("size", [1e38, 2e38])
def test_sums_of_gradients_do_not_overflow_on_their_way(size, name, shape):
    """ATen's do: it adds float32 gradients in float32. Of the larger ones, two are beyond it already."""
    arrays = Arrays(name, "float32")
    grad = np.full(shape, size)
    grad[shape[0] // 2 :] *= -1
    x, zeros, ones = np.random.default_rng(2).standard_normal(shape), np.zeros(shape[1]), np.ones(shape[1])
    arguments = [arrays(v) for v in (grad, x, ones, zeros, ones)]
    for function in ("batch_norm_backward", "batch_norm_inference_backward"):
        dx, _, dbias = getattr(arrays.backend, function)(*arguments)
        assert not dbias.any()
        if function == "batch_norm_inference_backward":
            assert np.isfinite(dx).all()


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_constant_channel_gives_the_bias(name):
    arrays = Arrays(name, "float32")
    x = np.full((8, 2, 40), 0.1)
    bias = np.array([1.5, -2.0])
    result = arrays.backend.batch_norm(arrays(x), arrays(np.ones(2)), arrays(bias), None, None)
    np.testing.assert_allclose(to_numpy(result.y), np.broadcast_to(bias[:, None], x.shape), rtol=0, atol=1e-4)
    np.testing.assert_allclose(to_numpy(result.invstd), 1e5**0.5, rtol=1e-5)


STRIDED = {
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "negative strides": lambda a: np.ascontiguousarray(a[::-1, ..., ::-1])[::-1, ..., ::-1],
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_strided_inputs_and_outputs(name, layout):
    arrays, values = Arrays(name), data((6, 3, 4, 9))
    strided = values | {k: STRIDED[layout](values[k]) for k in ("x", "grad")}
    for training in (True, False):
        plain = _run_all(arrays, values, training)
        out = (arrays(STRIDED[layout](np.zeros((6, 3, 4, 9)))), arrays(STRIDED[layout](np.zeros((6, 3, 4, 9)))))
        for result in (_run_all(arrays, strided, training), _run_all(arrays, strided, training, *out)):
            for part, expected in zip(result, plain, strict=True):
                np.testing.assert_allclose(to_numpy(part), to_numpy(expected), rtol=1e-12, atol=1e-12)


def _run_all(arrays, values, training, out=None, out_backward=None):
    a = as_arrays(arrays, values)
    grad = a.pop("grad")
    forward = arrays.backend.batch_norm if training else arrays.backend.batch_norm_inference
    result = forward(**a, out=out)
    y = result.y if training else result
    assert out is None or y is out
    if training:
        arguments = grad, a["x"], a["weight"], result.mean, result.invstd
        gradients = arrays.backend.batch_norm_backward(*arguments, out=out_backward)
    else:
        arguments = grad, a["x"], a["weight"], a["running_mean"], a["running_var"]
        gradients = arrays.backend.batch_norm_inference_backward(*arguments, out=out_backward)
    assert out_backward is None or gradients.dx is out_backward
    return [y, *gradients]


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 40)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_out_may_be_an_input(name, training, shape):
    for dtype in gradmark.backend(name).dtypes:
        arrays = Arrays(name, dtype)
        a = as_arrays(arrays, data(shape))
        grad = a.pop("grad")
        copy = (lambda t: t.clone()) if name == "torch" else (lambda t: t.copy())
        forward = arrays.backend.batch_norm if training else arrays.backend.batch_norm_inference
        expected = forward(**a)
        inputs = a | {"x": copy(a["x"])}
        result = forward(**inputs, out=inputs["x"])
        y, expected_y = (r.y if training else r for r in (result, expected))
        assert y is inputs["x"]
        assert bits(y) == bits(expected_y)
        backward = arrays.backend.batch_norm_backward if training else arrays.backend.batch_norm_inference_backward
        statistics = expected[1:3] if training else (a["running_mean"], a["running_var"])
        plain = backward(grad, a["x"], a["weight"], *statistics)
        for position in (0, 1):
            pair = [copy(grad), copy(a["x"])]
            aliased = backward(*pair, a["weight"], *statistics, out=pair[position])
            assert aliased.dx is pair[position]
            assert [bits(part) for part in aliased] == [bits(part) for part in plain]


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 40)], ids=str)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_inputs_are_read_only_and_unchanged(name, shape):
    arrays = Arrays(name)
    values = data(shape)
    a = as_arrays(arrays, values)
    if name != "torch":
        for array in a.values():
            array.flags.writeable = False
    before = {k: bits(v) for k, v in a.items()}
    versions = {k: v._version for k, v in a.items()} if name == "torch" else {}
    for training in (True, False):
        grad = a["grad"]
        forward = arrays.backend.batch_norm if training else arrays.backend.batch_norm_inference
        result = forward(**{k: v for k, v in a.items() if k != "grad"})
        _gradients(arrays.backend, a | {"grad": grad}, training)
        if training:
            assert not np.shares_memory(to_numpy(result.running_mean), to_numpy(a["running_mean"]))
    assert {k: bits(v) for k, v in a.items()} == before
    assert versions == ({k: v._version for k, v in a.items()} if name == "torch" else {})


def test_torch_results_carry_no_graph():
    arrays = Arrays("torch")
    a = as_arrays(arrays, data((4, 3)))
    a["x"].requires_grad_()
    a["weight"].requires_grad_()
    forward = {k: v for k, v in a.items() if k != "grad"}
    with pytest.raises(ValueError, match="requires grad"):
        arrays.backend.batch_norm(**forward)
    with torch.no_grad():
        assert not any(part.requires_grad for part in arrays.backend.batch_norm(**forward))
        assert not any(part.requires_grad for part in _gradients(arrays.backend, a, True))


@pytest.mark.parametrize("shape", [(1000, 200), (40, 7, 6, 50), (2, 1, 200_000)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_threads(monkeypatch, dtype, shape):
    import numba

    from gradmark.numerics import fused

    arrays, values = Arrays("numba", dtype), data(shape)

    def run():
        return [bits(part) for training in (True, False) for part in _run_all(arrays, values, training)]

    assert np.prod(shape) > fused.PARALLEL_FROM
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = run()
        numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
        assert run() == one
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(fused, "PARALLEL_FROM", np.inf)
    assert run() == one, "the serial loops differ from the parallel ones"


@pytest.mark.parametrize("shape", [(3, 2, 33, 31), (2, 3, 5000), (70, 4, 40)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_beyond_the_cache_have_the_same_bits(monkeypatch, dtype, shape):
    from gradmark.numerics import fused

    arrays, values = Arrays("numba", dtype), data(shape)

    def run():
        return [bits(part) for training in (True, False) for part in _run_all(arrays, values, training)]

    expected = run()
    monkeypatch.setattr(fused, "STREAM_FROM", 0)
    assert run() == expected
