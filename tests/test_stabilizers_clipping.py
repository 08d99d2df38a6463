"""clip_grad_norm and clip_grad_value: values, vector-Jacobian products, extreme magnitudes, lists as `out`."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradmark
from stabilizing import FULL_PRECISION, HALF_PRECISION, Arrays, bits, exact, to_numpy, tolerance, worst_ulp

SHAPES = [(3, 4), (), (7,), (0,), (2, 0, 3), (5, 1, 70), (300, 120)]
MAX_NORMS = [0.0, 1e-30, 0.5, 1e3]


def lists(arrays, scale=1.0, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [[arrays(s * rng.standard_normal(shape)) for shape in shapes] for s in (scale, 1.0)]


def norm_of(grads):
    """The global norm, by exactly rounded summation."""
    return np.sqrt(np.longdouble(math.fsum(float(v) ** 2 for g in grads for v in exact(g).reshape(-1))))


def coefficient_of(norm, max_norm):
    return min(np.longdouble(1), np.longdouble(max_norm) / (norm + np.longdouble(1e-6)))


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION + HALF_PRECISION)
def test_norm_forward(name, dtype, max_norm):
    arrays = Arrays(name, dtype)
    grads, _ = lists(arrays)
    norm = norm_of(grads)
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, max_norm)
    assert tuple(total_norm.shape) == ()
    assert str(total_norm.dtype).endswith("float64")
    assert worst_ulp(total_norm, norm, 0, "float64") <= aten_sum(name, 8.0)
    c = coefficient_of(norm, max_norm)
    # Below float64 the product is rounded once; ATen rounds the coefficient to float32 as well.
    rounded = 1.51 if (name, dtype) == ("torch", "float32") else 0.51
    bound = aten_sum(name, tolerance("clip_grad_norm", "forward")) if dtype == "float64" else rounded
    for g, y in zip(grads, clipped, strict=True):
        assert y.dtype == g.dtype
        assert worst_ulp(y, c * exact(g), 0, dtype) <= bound


def aten_sum(name, bound):
    """ATen's norm adds in sequence, so its error grows as √n; measured up to 42 ULP of float64 at this n of 36 377."""
    count = sum(math.prod(shape) for shape in SHAPES)
    return bound * math.sqrt(count) / 32 if name == "torch" else bound


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION + HALF_PRECISION)
def test_norm_backward(name, dtype, max_norm):
    arrays = Arrays(name, dtype)
    grads, cotangents = lists(arrays)
    dgrads = arrays.backend.clip_grad_norm_backward(cotangents, grads, max_norm)
    norm = norm_of(grads)
    c = coefficient_of(norm, max_norm)
    if c >= 1:
        assert [bits(d) for d in dgrads] == [bits(v) for v in cotangents]
        assert not any(np.shares_memory(to_numpy(d), to_numpy(v)) for d, v in zip(dgrads, cotangents, strict=True))
        return
    products = [(exact(v) * exact(g)).sum() for v, g in zip(cotangents, grads, strict=True)]
    magnitudes = [np.abs(exact(v) * exact(g)).sum() for v, g in zip(cotangents, grads, strict=True)]
    k = c / (norm * (norm + np.longdouble(1e-6)))
    for d, v, g in zip(dgrads, cotangents, grads, strict=True):
        expected = c * exact(v) - k * sum(products) * exact(g)
        scale = c * np.abs(exact(v)) + k * sum(magnitudes) * np.abs(exact(g))
        assert worst_ulp(d, expected, scale, dtype) <= tolerance("clip_grad_norm", "backward")


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("max_norm", [0.7, 1e6])
def test_norm_equals_torch(name, max_norm):
    arrays = Arrays(name)
    grads, cotangents = lists(arrays)
    leaves = [torch.from_numpy(np.array(to_numpy(g))).requires_grad_() for g in grads]
    # torch clips in place and outside of autograd, so its coefficient is spelled out: clamp(max_norm / (n + 1e-6), 1).
    norm = torch.sqrt(sum((leaf * leaf).sum() for leaf in leaves))
    scaled = [leaf * torch.clamp(max_norm / (norm + 1e-6), max=1.0) for leaf in leaves]
    expected = torch.autograd.grad(scaled, leaves, [torch.from_numpy(np.array(to_numpy(v))) for v in cotangents])
    dgrads = arrays.backend.clip_grad_norm_backward(cotangents, grads, max_norm)
    for d, value in zip(dgrads, expected, strict=True):
        np.testing.assert_allclose(to_numpy(d), value.numpy(), rtol=1e-12, atol=1e-15)
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, max_norm)
    holders = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in leaves]
    for holder, leaf in zip(holders, leaves, strict=True):
        holder.grad = leaf.detach().clone()
    torch_norm = torch.nn.utils.clip_grad_norm_(holders, max_norm)
    np.testing.assert_allclose(to_numpy(total_norm), float(torch_norm), rtol=1e-13)
    for y, holder in zip(clipped, holders, strict=True):
        np.testing.assert_allclose(to_numpy(y), holder.grad.numpy(), rtol=1e-13)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("max_norm", [0.7, 1e6])
def test_norm_backward_equals_finite_differences(name, max_norm):
    arrays = Arrays(name)
    shapes = [(3, 2), (), (4,)]
    grads, cotangents = (list(map(to_numpy, items)) for items in lists(arrays, shapes=shapes))
    dgrads = arrays.backend.clip_grad_norm_backward(
        [arrays(v) for v in cotangents], [arrays(g) for g in grads], max_norm
    )
    step = 1e-5

    def loss(position, nudge):
        changed = [arrays(g + nudge if i == position else g) for i, g in enumerate(grads)]
        clipped, _ = arrays.backend.clip_grad_norm(changed, max_norm)
        return sum(float((to_numpy(y) * v).sum()) for y, v in zip(clipped, cotangents, strict=True))

    for position, (g, d) in enumerate(zip(grads, dgrads, strict=True)):
        for i in np.ndindex(g.shape):
            nudge = np.zeros(g.shape)
            nudge[i] = step
            numeric = (loss(position, nudge) - loss(position, -nudge)) / (2 * step)
            assert to_numpy(d)[i] == pytest.approx(numeric, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        ("float32", 1e38),
        ("float32", 1e-30),
        ("float32", 1e-44),
        ("float64", 1e300),
        ("float64", 1e-30),
        ("float64", 1e-310),
    ],
)
def test_extreme_norms(name, dtype, magnitude):
    arrays = Arrays(name, dtype)
    grads = [arrays(np.full((3,), magnitude)), arrays(np.full((2, 3), -magnitude))]
    value = exact(grads[0])[0]
    norm = 3 * value
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, 1.0)
    assert worst_ulp(total_norm, norm, 0, "float64") <= 8
    c = coefficient_of(norm, 1.0)
    assert worst_ulp(clipped[0], np.full(3, c * value), 0, dtype) <= 8
    cotangents = [arrays(np.array([1.0, 2.0, 3.0])), arrays(np.ones((2, 3)))]
    dgrads = arrays.backend.clip_grad_norm_backward(cotangents, grads, 1.0)
    if c == 1:
        assert [bits(d) for d in dgrads] == [bits(v) for v in cotangents]
        return
    # <v, g> is 6 value - 6 value = 0 up to rounding: dg = c v.
    for d, v in zip(dgrads, cotangents, strict=True):
        assert worst_ulp(d, c * exact(v), 0, dtype) <= 16


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_tiny_norm_that_is_clipped(name):
    arrays = Arrays(name)
    grads = [arrays(np.array([3e-170, 4e-170]))]
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, 1e-8)
    assert float(total_norm) == pytest.approx(5e-170, rel=1e-15)
    np.testing.assert_allclose(to_numpy(clipped[0]), [3e-172, 4e-172], rtol=1e-14)
    # n is negligible beside 1e-6, so c is constant: dg = c v.
    dgrads = arrays.backend.clip_grad_norm_backward([arrays(np.array([1.0, 2.0]))], grads, 1e-8)
    np.testing.assert_allclose(to_numpy(dgrads[0]), [0.01, 0.02], rtol=1e-14)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_zero_gradients(name):
    arrays = Arrays(name, "float32")
    grads = [arrays(np.zeros(5)), arrays(np.zeros((0, 2)))]
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, 1e-7)
    assert float(total_norm) == 0.0
    assert not to_numpy(clipped[0]).any()
    (d, _) = arrays.backend.clip_grad_norm_backward([arrays(np.ones(5)), grads[1]], grads, 1e-7)
    np.testing.assert_allclose(to_numpy(d), 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_empty_list(name):
    backend = gradmark.backend(name)
    clipped, total_norm = backend.clip_grad_norm([], 1.0)
    assert clipped == []
    assert float(total_norm) == 0.0
    assert tuple(total_norm.shape) == ()
    assert backend.clip_grad_norm_backward([], [], 1.0) == []
    assert backend.clip_grad_norm_backward([], [], 0.0) == []
    assert backend.clip_grad_value([], 1.0) == []
    assert backend.clip_grad_value_backward((), (), 1.0) == []
    assert backend.clip_grad_norm([], 1.0, out=[]).clipped == []


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_mixed_dtypes(name):
    arrays = Arrays(name)
    dtypes = arrays.backend.dtypes
    values = [np.linspace(-2.0, 3.0, 6 + i) for i in range(len(dtypes))]
    grads = [arrays(v, dtype) for v, dtype in zip(values, dtypes, strict=True)]
    clipped, total_norm = arrays.backend.clip_grad_norm(grads, 0.5)
    norm = norm_of(grads)
    assert worst_ulp(total_norm, norm, 0, "float64") <= 8
    dgrads = arrays.backend.clip_grad_norm_backward(grads, grads, 0.5)
    radial = coefficient_of(norm, 0.5) * np.longdouble(1e-6) / (norm + np.longdouble(1e-6))
    for g, y, d, dtype in zip(grads, clipped, dgrads, dtypes, strict=True):
        assert y.dtype == d.dtype == g.dtype
        assert worst_ulp(y, coefficient_of(norm, 0.5) * exact(g), 0, dtype) <= 8
        # Along g itself the norm is all but constant: dg = c δ / (n + δ) g, the difference of two terms of size c g.
        assert worst_ulp(d, radial * exact(g), coefficient_of(norm, 0.5) * np.abs(exact(g)), dtype) <= 16


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_dtypes_that_are_equal_but_not_identical(name):
    """Of an unpickled array, or with metadata: each of them was a dtype that no array had."""
    backend = gradmark.backend(name)
    annotated = np.ones(2, np.dtype("float32", metadata={"unit": "1"}))
    grads = [np.full(3, 3.0), pickle.loads(pickle.dumps(np.full(4, 2.0, np.float32))), annotated]
    assert grads[1].dtype is not annotated.dtype is not np.dtype("float32")
    clipped, norm = backend.clip_grad_norm(grads, 1.0)
    assert float(norm) == pytest.approx(math.sqrt(27 + 16 + 2), rel=1e-15)
    for g, y in zip(grads, clipped, strict=True):
        np.testing.assert_allclose(y, g / float(norm), rtol=1e-6)
    for y, g in zip(backend.clip_grad_value(grads, 1.5), grads, strict=True):
        np.testing.assert_array_equal(y, np.minimum(g, 1.5))
    annotated[0] = np.nan
    with pytest.raises(gradmark.NonFiniteError, match=r"grads\[2\] \(NaN\)"):
        backend.clip_grad_norm(grads, 1.0)


@pytest.mark.parametrize(("name", "dtype"), FULL_PRECISION + HALF_PRECISION)
def test_value(name, dtype):
    arrays = Arrays(name, dtype)
    limit = 0.5  # a number of every dtype, so that the kink is met exactly
    edge = np.array([0.5, -0.5, np.nextafter(0.5, 1), 0.0, -0.0, 3.0, -3.0])
    grads, cotangents = lists(arrays)
    grads.append(arrays(edge))
    cotangents.append(arrays(np.arange(1.0, 8.0)))
    for g, y in zip(grads, arrays.backend.clip_grad_value(grads, limit), strict=True):
        assert y.dtype == g.dtype
        expected = np.clip(to_numpy(g), -limit, limit)
        np.testing.assert_array_equal(to_numpy(y), expected)
        np.testing.assert_array_equal(np.signbit(to_numpy(y)), np.signbit(expected))
    leaves = [torch.from_numpy(np.array(to_numpy(g))).requires_grad_() for g in grads]
    clamped = [leaf.clamp(-limit, limit) for leaf in leaves]
    values = torch.autograd.grad(clamped, leaves, [torch.from_numpy(np.array(to_numpy(v))) for v in cotangents])
    dgrads = arrays.backend.clip_grad_value_backward(cotangents, grads, limit)
    for d, value in zip(dgrads, values, strict=True):
        np.testing.assert_array_equal(to_numpy(d), value.numpy())


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_value_limits(name):
    for dtype in gradmark.backend(name).dtypes:
        arrays = Arrays(name, dtype)
        g = arrays(np.array([-1.5, 0.25]))
        assert not to_numpy(arrays.backend.clip_grad_value([g], 0.0)[0]).any()
        assert bits(arrays.backend.clip_grad_value([g], 1e300)[0]) == bits(g)
        assert bits(arrays.backend.clip_grad_value_backward([g], [g], 1e300)[0]) == bits(g)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", ["clip_grad_norm", "clip_grad_value", "clip_grad_norm_backward"])
def test_not_finite(name, function, bad):
    for dtype in gradmark.backend(name).dtypes:
        arrays = Arrays(name, dtype)
        grads, cotangents = lists(arrays)
        spoiled = to_numpy(grads[6]).copy()
        spoiled[299, 119] = bad
        grads[6] = arrays(spoiled)
        arguments = ([grads], [cotangents, grads])[function.endswith("backward")]
        kind = "NaN" if np.isnan(bad) else "infinity"
        with pytest.raises(gradmark.NonFiniteError, match=rf"grads\[6\] \({kind}\)"):
            getattr(arrays.backend, function)(*arguments, 1.0)
        with pytest.raises(ValueError, match="finite gradients only"):
            getattr(arrays.backend, function)(*arguments, 1.0, out=grads)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_norm_beyond_float64(name):
    arrays = Arrays(name)
    with pytest.raises(gradmark.NonFiniteError, match="beyond the largest float64"):
        arrays.backend.clip_grad_norm([arrays(np.full(10, 1.7e308))], 1.0)


CALLS = ["clip_grad_norm", "clip_grad_value", "clip_grad_norm_backward", "clip_grad_value_backward"]


def call(arrays, function, grads, cotangents, out=None, limit=0.5):
    arguments = ([grads], [cotangents, grads])[function.endswith("backward")]
    result = getattr(arrays.backend, function)(*arguments, limit, out=out)
    return result.clipped if function == "clip_grad_norm" else result


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("limit", [0.5, 1e9])
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_out(name, function, limit):
    for dtype in gradmark.backend(name).dtypes:
        arrays = Arrays(name, dtype)
        grads, cotangents = lists(arrays)
        before = [bits(a) for a in grads + cotangents]
        expected = [bits(y) for y in call(arrays, function, grads, cotangents, limit=limit)]
        assert [bits(a) for a in grads + cotangents] == before
        fresh = [arrays(np.full(shape, 9.0)) for shape in SHAPES]
        result = call(arrays, function, grads, cotangents, fresh, limit)
        assert all(y is o for y, o in zip(result, fresh, strict=True))
        assert [bits(y) for y in result] == expected
        for inside in ("grads", "cotangents") if function.endswith("backward") else ("grads",):
            again = dict(zip(("grads", "cotangents"), lists(arrays), strict=True))
            result = call(arrays, function, **again, out=again[inside], limit=limit)
            assert all(y is o for y, o in zip(result, again[inside], strict=True))
            assert [bits(y) for y in result] == expected


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_strided_and_read_only(name, function):
    arrays = Arrays(name)
    grads, cotangents = lists(arrays, shapes=[(40, 50), (6, 5, 4)])
    expected = [to_numpy(y) for y in call(arrays, function, grads, cotangents)]
    strided = [
        [arrays(to_numpy(a).swapaxes(0, -1).copy().swapaxes(0, -1)) for a in items] for items in (grads, cotangents)
    ]
    reversed_ = [[arrays(to_numpy(a)[::-1].copy()[::-1]) for a in items] for items in (grads, cotangents)]
    for items in (strided, reversed_):
        if name != "torch":
            for a in items[0] + items[1]:
                a.flags.writeable = False
        out = [arrays(np.zeros((50, 40)).T), arrays(np.zeros((12, 5, 4))[::2])]
        for result in (call(arrays, function, *items), call(arrays, function, *items, out=out)):
            for y, value in zip(result, expected, strict=True):
                np.testing.assert_allclose(to_numpy(y), value, rtol=1e-14, atol=1e-16)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 20), max_size=3).map(tuple), max_size=6),
    limit=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
    seed=st.integers(0, 1000),
)
def test_backends_agree_on_any_list(shapes, limit, seed):
    results = []
    for name in gradmark.BACKENDS:
        arrays = Arrays(name)
        grads, cotangents = lists(arrays, shapes=shapes, seed=seed)
        results.append([y for function in CALLS for y in call(arrays, function, grads, cotangents, limit=limit)])
    for parts in zip(*results, strict=True):
        for part in parts[1:]:
            np.testing.assert_allclose(to_numpy(part), to_numpy(parts[0]), rtol=1e-12, atol=1e-14)


def test_bits_do_not_depend_on_threads(monkeypatch):
    import numba

    from gradmark.numerics import fused

    threads = numba.get_num_threads()
    for dtype in ("float32", "float64"):
        arrays = Arrays("numba", dtype)
        grads, cotangents = lists(arrays, shapes=[(500, 400), (7,), (100_000,)])

        def run():
            results = [y for function in CALLS for y in call(arrays, function, grads, cotangents)]  # noqa: B023
            return [bits(y) for y in results]

        try:
            numba.set_num_threads(1)
            one = run()
            numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
            assert run() == one
        finally:
            numba.set_num_threads(threads)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "PARALLEL_FROM", np.inf)
            assert run() == one, "the serial loops differ from the parallel ones"


def test_torch_results_carry_no_graph():
    arrays = Arrays("torch")
    grads, cotangents = lists(arrays)
    for tensor in grads + cotangents:
        tensor.requires_grad_()
    for function in CALLS:
        for limit in (0.5, 1e9):
            with pytest.raises(ValueError, match="requires grad"):
                call(arrays, function, grads, cotangents, limit=limit)
            with torch.no_grad():
                assert not any(y.requires_grad for y in call(arrays, function, grads, cotangents, limit=limit))
