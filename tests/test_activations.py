"""Every activation, in every backend, against its formula, torch's autograd, finite differences, and each other."""

import contextlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import gradmark
from gradmark import catalog, reference
from gradmark.backends import BACKENDS
from gradmark.catalog import BACKWARD, FORWARD, backward_of
from gradmark.families import LAYOUTS, families
from gradmark.verification import sweep, wide
from gradmark.verification.activations import _worst_of_family, parameter_sets
from gradmark.verification.check import allowed, from_backend, to_backend
from targets import INEXACT_PEERS, exact_peer, namespace_of

ROWS = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS]
LEARNABLE = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.learnable]
SEEDED = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.seeded]
BACKEND_NAMES = list(BACKENDS)


def first(result):
    """The array itself, of a result that may come with gradients of parameters."""
    return result[0] if isinstance(result, tuple) else result


def call(namespace, row, operation_pass, grad, x, *parameters, **keywords):
    """One pass of an activation on arrays of the backend; with the usual parameters where none are given."""
    if not parameters:
        keywords = {p.name: p.usual for p in row.required} | keywords
    if operation_pass == FORWARD:
        return getattr(namespace, row.name)(x, *parameters, **keywords)
    return getattr(namespace, backward_of(row.name))(grad, x, *parameters, **keywords)


DEVIATIONS = [
    pytest.param(row, deviation, id=f"{row.name}-{deviation.backend}-{deviation.operation_pass}")
    for row in catalog.ACTIVATIONS
    for deviation in row.deviations
]


@pytest.mark.parametrize(("row", "deviation"), DEVIATIONS)
def test_deviations_still_exist(row, deviation):
    """A backend that has been mended must lose its deviation, or the next regression would hide behind it."""
    namespace = gradmark.backend(deviation.backend)
    found = False
    for dtype in ("float32", "float64"):
        for parameters in parameter_sets(row):
            for family in families(row, dtype):
                error, _ = _worst_of_family(row, deviation.operation_pass, namespace, dtype, parameters, family, None)
                found = found or not error <= allowed(row, deviation.operation_pass, dtype)
    assert found, "no deviation found: delete it from the catalog"


def laid_out(values, layout):
    """The values in a memory layout, and the shape that they have there."""
    count = values.size - values.size % 8
    plain = np.ascontiguousarray(values[:count].reshape(-1, 2, 4))
    if layout == "C":
        return plain
    if layout == "F":
        return np.asfortranarray(plain)
    if layout == "strided":
        return np.repeat(plain, 2, axis=2)[:, :, ::2]
    if layout == "reversed":
        return np.ascontiguousarray(plain[::-1, :, ::-1])[::-1, :, ::-1]
    if layout == "transposed":
        return np.ascontiguousarray(plain.transpose(1, 2, 0)).transpose(2, 0, 1)
    if layout == "broadcast":
        return np.broadcast_to(plain[:1], plain.shape)
    if layout == "unaligned":
        raw = np.empty(plain.nbytes + 1, np.uint8)
        array = raw[1:].view(plain.dtype).reshape(plain.shape)
        array[...] = plain
        return array
    if layout == "read-only":
        plain.flags.writeable = False
        return plain
    if layout == "0-d":
        return np.array(values[0])
    if layout == "empty":
        return np.empty((3, 0, 2), values.dtype)
    raise LookupError(layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation_pass", [FORWARD, BACKWARD])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("row", ROWS)
def test_layouts_of_numpy_arrays(row, backend, operation_pass, layout):
    namespace = gradmark.backend(backend)
    rng = np.random.default_rng(7)
    x = laid_out(rng.normal(size=96).astype(np.float32) * 3, layout)
    grad = laid_out(rng.normal(size=96).astype(np.float32), layout)
    before = x.copy(), grad.copy()
    expected = call(namespace, row, operation_pass, np.ascontiguousarray(grad), np.ascontiguousarray(x))
    found = call(namespace, row, operation_pass, grad, x)
    assert first(found).shape == x.shape
    assert first(found).dtype == x.dtype
    np.testing.assert_array_equal(first(found), first(expected).reshape(x.shape))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(grad, before[1])


def tensor_laid_out(torch, values, layout):
    """As `laid_out`, with the same strides."""
    dense = torch.from_numpy(values.reshape(-1, 2, 4))
    if layout == "strided":
        return dense.repeat_interleave(2, dim=2)[:, :, ::2]
    if layout == "broadcast":
        return dense[:1].expand(dense.shape)
    return torch.from_numpy(laid_out(values, layout))


@pytest.mark.parametrize("layout", ["C", "F", "strided", "transposed", "broadcast", "0-d", "empty"])
@pytest.mark.parametrize("operation_pass", [FORWARD, BACKWARD])
@pytest.mark.parametrize("row", ROWS)
def test_layouts_of_tensors(row, operation_pass, layout):
    torch = pytest.importorskip("torch")
    namespace = gradmark.backend("torch")
    rng = np.random.default_rng(7)
    x, grad = (tensor_laid_out(torch, rng.normal(size=96).astype(np.float32) * 3, layout) for _ in range(2))
    before = x.clone(), grad.clone()
    expected = call(namespace, row, operation_pass, grad.contiguous(), x.contiguous())
    found = call(namespace, row, operation_pass, grad, x)
    # ATen's vector and scalar paths differ in the last bits; its 1 + erf makes that relative to |x| < 12.
    torch.testing.assert_close(first(found), first(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])


@pytest.mark.parametrize("operation_pass", [FORWARD, BACKWARD])
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", ROWS)
def test_out(row, backend, operation_pass):
    """Results go where they are told to, also over an input, in place."""
    namespace = namespace_of(backend)
    rng = np.random.default_rng(8)
    x, grad = rng.normal(size=(6, 10)) * 3, rng.normal(size=(6, 10))

    def arrays():
        return to_backend(namespace, grad, "float32"), to_backend(namespace, x, "float32")

    expected = from_backend(first(call(namespace, row, operation_pass, *arrays())))
    g, v = arrays()
    separate = to_backend(namespace, np.full((6, 10), np.nan), "float32")
    strided = to_backend(namespace, np.full((6, 20), np.nan), "float32")[:, ::2]
    turned = to_backend(namespace, np.full((10, 6), np.nan), "float32").T
    for out in (separate, strided, turned, v, g):
        if out is g and operation_pass == FORWARD:
            continue
        g2, v2 = arrays()
        if out is v:
            v2 = out
        if out is g:
            g2 = out
        result = first(call(namespace, row, operation_pass, g2, v2, out=out))
        assert result is out
        # ATen's paths for dense and for strided memory differ in the last bits.
        np.testing.assert_allclose(from_backend(out), expected, rtol=1e-6, atol=1e-6 if backend == "torch" else 0)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", ROWS)
def test_signed_zeros(row, backend):
    if not row.signed_zero:
        pytest.skip("the sign of max(-0, 0) is not specified")
    namespace = namespace_of(backend)
    usual = [p.usual for p in row.parameters]
    at_zero, below = (float(reference.forward(row, x, usual)) for x in (0.0, -(2.0**-1000)))
    for dtype in namespace.dtypes:
        y = from_backend(call(namespace, row, FORWARD, None, to_backend(namespace, np.array([0.0, -0.0]), dtype)))
        np.testing.assert_array_equal(y, [at_zero, at_zero])
        # The limit from below is -0 where the function is negative, or 0 (x times 0), there.
        np.testing.assert_array_equal(np.signbit(y), [False, below <= 0])


@pytest.mark.parametrize("name", INEXACT_PEERS)
def test_inexact_peers_are_still_inexact(name):
    torch = pytest.importorskip("torch")
    row = catalog.operation(name)
    x = torch.linspace(-2.5, 2.5, 100, dtype=torch.float64, requires_grad=True)

    def slopes(peer, parameters):
        names = {"torch": torch, "F": torch.nn.functional, "x": x}
        names |= {p.name: value for p, value in zip(row.parameters, parameters, strict=True)}
        return torch.autograd.grad(eval(peer, names).sum(), x)[0]

    equal = [
        torch.allclose(slopes(row.peer, parameters), slopes(INEXACT_PEERS[name], parameters), rtol=1e-12, atol=0)
        for parameters in parameter_sets(row)
    ]
    assert not all(equal), "mended: delete it from INEXACT_PEERS"


def autograd(row, grad, x, *parameters):
    """The peer's value and its gradients by torch's autograd, in float64."""
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(x, requires_grad=True)]
    for value, parameter in zip(parameters, row.parameters, strict=True):
        leaves.append(torch.tensor(value, requires_grad=True) if parameter.learnable else value)
    names = {"torch": torch, "F": torch.nn.functional, "x": leaves[0]}
    for leaf, parameter in zip(leaves[1:], row.parameters, strict=True):
        shaped = leaf
        if parameter.learnable and row.name == "swish" and leaf.numel() != 1:
            shaped = leaf.reshape(1, -1, *[1] * (x.ndim - 2))
        names[parameter.name] = shaped
    y = eval(exact_peer(row), names)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(y, wanted, torch.tensor(grad))
    return y.detach().numpy(), [g.numpy() for g in gradients]


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_autograd(row, backend):
    namespace = namespace_of(backend)
    rng = np.random.default_rng(9)
    x, grad = rng.normal(size=(5, 3, 4)) * 2, rng.normal(size=(5, 3, 4))
    # At a kink torch's branch is the row's.
    switches = [0.0, -0.0, *row.kinks]
    x.flat[: len(switches)] = switches
    for parameters in parameter_sets(row):
        shaped = [np.array([v]) if p.learnable else v for v, p in zip(parameters, row.parameters, strict=True)]
        y, (dx, *dparameters) = autograd(row, grad, x, *shaped)
        arrays = [to_backend(namespace, p, "float64") if isinstance(p, np.ndarray) else p for p in shaped]
        g, v = to_backend(namespace, grad, "float64"), to_backend(namespace, x, "float64")
        np.testing.assert_allclose(
            from_backend(call(namespace, row, FORWARD, g, v, *arrays)), y, rtol=1e-13, atol=1e-15
        )
        found = call(namespace, row, BACKWARD, g, v, *arrays)
        np.testing.assert_allclose(from_backend(first(found)), dx, rtol=1e-12, atol=1e-15)
        for ours, theirs in zip(found[1:] if row.learnable else (), dparameters, strict=True):
            np.testing.assert_allclose(from_backend(ours), theirs, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_finite_differences(row, backend):
    """Central differences of the backend's own forward; the step leaves 1e-10 of truncation and 1e-10 of rounding.

    Relative to the largest derivative for those that grow with x.
    """
    namespace = namespace_of(backend)
    rng = np.random.default_rng(10)
    x = rng.normal(size=60) * 2
    x = x[np.all(np.abs(x[:, None] - np.array([*row.kinks, np.inf])) > 1e-2, axis=1)]
    step = 2.0**-15
    at = [to_backend(namespace, x + d, "float64") for d in (step, -step)]
    above, below = (from_backend(call(namespace, row, FORWARD, None, v)) for v in at)
    ones, v = to_backend(namespace, np.ones_like(x), "float64"), to_backend(namespace, x, "float64")
    dx = from_backend(first(call(namespace, row, BACKWARD, ones, v)))
    np.testing.assert_allclose(dx, (above - below) / (2 * step), rtol=0, atol=1e-9 * max(1, np.abs(dx).max()))


SHAPES = [(7,), (40, 3), (4, 3, 5), (2, 3, 8, 9), (3, 5, 40), (130, 17), (1, 4, 64), (3, 0, 4), (0, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", LEARNABLE)
def test_one_parameter_per_channel(row, backend, shape):
    """Rows long and short, blocks with a remainder, no elements: forward, dx and dp as autograd has them."""
    namespace = namespace_of(backend)
    rng = np.random.default_rng(11)
    x, grad = rng.normal(size=shape), rng.normal(size=shape)
    channels = shape[1] if len(shape) > 1 else 1
    parameter = rng.normal(size=channels)
    x_b, grad_b, p_b = (to_backend(namespace, a, "float64") for a in (x, grad, parameter))
    y, (dx, dp) = autograd(row, grad, x, parameter)
    np.testing.assert_allclose(from_backend(getattr(namespace, row.name)(x_b, p_b)), y, rtol=1e-13, atol=1e-15)
    found_dx, found_dp = getattr(namespace, backward_of(row.name))(grad_b, x_b, p_b)
    np.testing.assert_allclose(from_backend(found_dx), dx, rtol=1e-12, atol=1e-15)
    assert tuple(found_dp.shape) == (channels,)
    np.testing.assert_allclose(from_backend(found_dp), dp, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("row", LEARNABLE)
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_gradient_has_the_parameters_shape(row, backend, shape):
    namespace = namespace_of(backend)
    x = to_backend(namespace, np.ones((2, 3)), "float32")
    parameter = to_backend(namespace, np.full(shape, 0.5), "float32")
    _, gradient = getattr(namespace, backward_of(row.name))(x, x, parameter)
    assert tuple(gradient.shape) == shape
    _, gradient = getattr(namespace, backward_of(row.name))(x, x, 0.5)
    assert tuple(gradient.shape) == ()


@settings(max_examples=25, deadline=None)
@given(
    x=npst.arrays(
        np.float32, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), elements=st.floats(width=32)
    )
)
def test_backends_agree_on_any_float32(x):
    """Whatever bits come in, NumPy and Numba agree within what the row allows each; shapes are hypothesis's."""
    numpy, numba = gradmark.backend("numpy"), gradmark.backend("numba")
    for row in catalog.ACTIVATIONS:
        a, b = call(numpy, row, FORWARD, None, x), call(numba, row, FORWARD, None, x)
        assert a.shape == b.shape == x.shape
        floor = np.float32(2.0**-119)
        with np.errstate(invalid="ignore", over="ignore"):
            ulp = np.spacing(np.maximum(np.maximum(np.abs(a), np.abs(b)), floor))
            far = np.abs(a.astype(np.float64) - b) > 2 * row.ulp[FORWARD] * ulp.astype(np.float64)
        assert not np.any(far & np.isfinite(a) & np.isfinite(b)), row.name
        np.testing.assert_array_equal(np.isnan(a), np.isnan(x), err_msg=row.name)
        np.testing.assert_array_equal(np.isnan(b), np.isnan(x), err_msg=row.name)


@pytest.mark.parametrize("row", ROWS)
def test_dense_float32_against_float64(row):
    """200 000 points through the range where the functions bend; float64 stands for the truth, 2^29 times finer."""
    x = np.linspace(-30, 30, 200_001, dtype=np.float32)
    g = np.cos(np.arange(x.size)).astype(np.float32)
    numpy = gradmark.backend("numpy")
    for operation_pass in (FORWARD, BACKWARD):
        exact = first(call(numpy, row, operation_pass, g.astype(np.float64), x.astype(np.float64)))
        scale = np.abs(exact) if operation_pass == FORWARD else np.maximum(np.abs(exact), np.abs(g) / 64.0)
        ulp = np.spacing(np.maximum(scale, 2.0**-119).astype(np.float32)).astype(np.float64)
        for name in ("numpy", "numba"):
            found = first(call(gradmark.backend(name), row, operation_pass, g, x)).astype(np.float64)
            worst = np.max(np.abs(found - exact) / ulp)
            assert worst <= allowed(row, operation_pass, "float32") + 0.01, (name, operation_pass, worst)


def bits(array):
    """The array's bits, as integers: the sign of zero counts, that of NaN does not."""
    return np.where(np.isnan(array), np.nan, array).astype(array.dtype).view(f"i{array.itemsize}")


# Longer than the shortest array that several threads share, and no multiple of a chunk or a vector.
WHOLE = 3 * 2**15 + 1037
# Of less than a vector, around one, around several, around a chunk; the last are parallel.
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 129, 1000, 4097, 8191, 8193, 16383, 16385, 2**15 + 9)


def plenty(dtype, seed):
    """Numbers of all magnitudes, the special ones among them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=WHOLE) * rng.choice([1e-3, 1.0, 4.0, 30.0], size=WHOLE)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny, -np.finfo(dtype).max]
    values[rng.integers(0, WHOLE, size=200)] = rng.choice(special, size=200)
    return values.astype(dtype)


def moved(array, shift):
    """A copy that begins `shift` bytes beyond a cache line; unaligned where that is no multiple of the element."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    first = -raw.ctypes.data % 64 + shift
    copy = raw[first : first + array.nbytes].view(array.dtype)
    copy[...] = array
    return copy


def threaded(backend, count):
    """A context in which the backend uses so many threads; NumPy's ufuncs have one."""
    if backend == "numpy":
        return contextlib.nullcontext()
    numba = pytest.importorskip("numba")

    @contextlib.contextmanager
    def context():
        before = numba.get_num_threads()
        numba.set_num_threads(min(count, before))
        try:
            yield
        finally:
            numba.set_num_threads(before)

    return context()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation_pass", [FORWARD, BACKWARD])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("row", ROWS)
def test_no_value_depends_on_its_surroundings(row, backend, operation_pass, dtype):
    """Length, offset, alignment, stride, dimensions and thread count: the bits of an element depend on none."""
    namespace = gradmark.backend(backend)
    x, grad = plenty(dtype, 21), plenty(dtype, 22)
    expected = bits(first(call(namespace, row, operation_pass, grad, x)))

    def check(what, grad, x, expected):
        found = bits(first(call(namespace, row, operation_pass, grad, x)))
        assert (found == expected).all(), what

    for threads in (1, 2, 3):
        with threaded(backend, threads):
            check(f"{threads} threads", grad, x, expected)
    for length in LENGTHS:
        for offset in (0, 1, 3, 1037) if length < 2**12 else (1037,):
            part = slice(offset, offset + length)
            check(part, grad[part], x[part], expected[part])
    for shift in (1, 2, 4, 8, 20, 32, 52):
        part = slice(0, 2**15 + 77 if shift == 4 else 777)
        check(f"{shift} bytes", moved(grad[part], 60 - shift), moved(x[part], shift), expected[part])
    for step in (2, 3, -1, -5):
        part = slice(None, None, step)
        check(part, grad[part], x[part], expected[part])
    for shape in ((17, 19), (2, 3, 5, 7), (1, 4096), (4096, 1)):
        size = math.prod(shape)
        check(shape, grad[:size].reshape(shape), x[:size].reshape(shape), expected[:size].reshape(shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("row", LEARNABLE)
def test_gradients_of_parameters_do_not_depend_on_threads_or_alignment(row, backend, dtype):
    namespace = gradmark.backend(backend)
    rng = np.random.default_rng(23)
    for shape in ((WHOLE,), (300, 7), (40, 6, 513)):
        x, grad = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
        channels = 1 if len(shape) == 1 else shape[1]
        parameter = rng.normal(size=channels).astype(dtype)
        function = getattr(namespace, backward_of(row.name))
        expected = [bits(part) for part in function(grad, x, parameter)]
        for threads in (1, 2, 3):
            with threaded(backend, threads):
                for part, before in zip(function(grad, x, parameter), expected, strict=True):
                    np.testing.assert_array_equal(bits(part), before)
        shifted = moved(grad.ravel(), 4).reshape(shape), moved(x.ravel(), 12).reshape(shape)
        for part, before in zip(function(*shifted, parameter), expected, strict=True):
            np.testing.assert_array_equal(bits(part), before)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", SEEDED)
def test_slopes_in_training_are_the_stream_of_uniform(row, backend):
    """x = -1 gives the slopes themselves: the same bits in every backend, the elements of uniform() scaled."""
    namespace = namespace_of(backend)
    low, high = -0.25, 0.75
    for dtype, drawn in (("float32", np.float32), ("float64", np.float64), ("float16", np.float32)):
        if dtype not in namespace.dtypes:
            continue
        for shape in ((5, 1031), (), (0, 3), (7,), (2**15 + 3,)):
            u = gradmark.backend("numpy").uniform(shape, seed=99, dtype=np.dtype(drawn).name)
            slopes = drawn(low) + drawn(high - low) * u
            x = to_backend(namespace, -np.ones(shape), dtype)
            y = getattr(namespace, row.name)(x, low, high, seed=99)
            np.testing.assert_array_equal(from_backend(y), -slopes.astype(dtype))
            dx = getattr(namespace, backward_of(row.name))(
                to_backend(namespace, np.ones(shape), dtype), x, low, high, seed=99
            )
            np.testing.assert_array_equal(from_backend(dx), slopes.astype(dtype))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", SEEDED)
def test_training_and_evaluation(row, backend):
    namespace = namespace_of(backend)
    rng = np.random.default_rng(24)
    x, grad = (to_backend(namespace, rng.normal(size=(60, 70)), "float64") for _ in range(2))
    function, backward = getattr(namespace, row.name), getattr(namespace, backward_of(row.name))
    mean = sum(p.usual for p in row.parameters) / 2
    x_n, grad_n = from_backend(x), from_backend(grad)
    np.testing.assert_allclose(from_backend(function(x)), np.where(x_n > 0, x_n, mean * x_n), rtol=1e-15)
    np.testing.assert_allclose(from_backend(backward(grad, x)), np.where(x_n > 0, grad_n, mean * grad_n), rtol=1e-15)
    y, again, other = (from_backend(function(x, seed=seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(y[x_n > 0], x_n[x_n > 0])
    slopes, others = (v[x_n < 0] / x_n[x_n < 0] for v in (y, other))
    low, high = (p.usual for p in row.parameters)
    assert np.all(slopes != others)
    assert np.all((slopes > low - 1e-15) & (slopes < high + 1e-15))
    # The mean of 2100 uniform numbers is off by their deviation / √2100; five of those.
    assert abs(slopes.mean() - mean) < 5 * (high - low) / np.sqrt(12 * slopes.size)
    dx = from_backend(backward(grad, x, seed=7))
    np.testing.assert_allclose(dx[x_n < 0], grad_n[x_n < 0] * slopes, rtol=1e-14)
    np.testing.assert_array_equal(dx[x_n > 0], grad_n[x_n > 0])
    largest = from_backend(function(x, seed=2**64 - 1))
    assert not np.array_equal(largest, y)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", SEEDED)
def test_slopes_follow_the_index_not_the_memory(row, backend):
    """Element i in C order has slope i, whatever the layout; also over its input."""
    namespace = namespace_of(backend)
    values = -np.abs(np.random.default_rng(25).normal(size=(8, 12)))
    plain = to_backend(namespace, values, "float32")
    expected = from_backend(getattr(namespace, row.name)(plain, seed=3))
    turned = to_backend(namespace, values.T.copy(), "float32").T
    np.testing.assert_array_equal(from_backend(getattr(namespace, row.name)(turned, seed=3)), expected)
    spread = to_backend(namespace, np.repeat(values, 2, axis=1), "float32")[:, ::2]
    np.testing.assert_array_equal(from_backend(getattr(namespace, row.name)(spread, seed=3)), expected)
    result = getattr(namespace, row.name)(plain, seed=3, out=plain)
    assert result is plain
    np.testing.assert_array_equal(from_backend(plain), expected)


# --- corners that were wrong once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_threshold_may_exceed_half_precision(backend):
    """JAX and Keras have none, which is threshold=1e30 here, in every dtype."""
    namespace = gradmark.backend(backend)
    x = np.array([-1.0, 30.0], np.float16)
    x = x if backend == "numpy" else torch.from_numpy(x)
    y = np.asarray(namespace.softplus(x, 1.0, 1e30), np.float64)
    np.testing.assert_allclose(y, np.log1p(np.exp([-1.0, 30.0])), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_swish_without_slope_is_half_of_x_also_at_infinity(dtype):
    x = np.array([np.inf, -np.inf, 3.0, np.nan], dtype)
    zero = np.zeros(1, dtype)
    with np.errstate(all="ignore"):
        y = gradmark.backend("numba").swish(x, zero)
        dx, _ = gradmark.backend("numba").swish_backward(np.ones(4, dtype), x, zero)
    np.testing.assert_array_equal(y, x / 2)
    np.testing.assert_array_equal(dx, [0.5, 0.5, 0.5, np.nan])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponential_backward_overflows_only_where_the_product_does(backend, dtype):
    limits = np.finfo(dtype)
    grad = np.array([limits.max, limits.smallest_subnormal, 1.0, -limits.max, limits.max, -limits.max], dtype)
    lowest = 1.1 * float(limits.minexp) * np.log(2)
    x = np.array([-6.0, 3 * np.log(2) - float(limits.minexp) * np.log(2), np.log(2), -1.0, lowest, -np.inf], dtype)
    found = gradmark.backend(backend).exponential_backward(grad, x)
    wide = np.exp(x.astype(np.longdouble)) * grad
    np.testing.assert_allclose(found.astype(np.longdouble), wide, rtol=4 * limits.eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_of_numpy_are_numbers(backend):
    namespace = gradmark.backend(backend)
    x = np.array([-1.0, 2.0], np.float32)
    x = torch.from_numpy(x) if backend == "torch" else x
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(namespace.prelu(x, kind(0.25)), namespace.prelu(x, 0.25))


def test_parts_of_a_tensor_that_lie_side_by_side_do_not_overlap():
    namespace = gradmark.backend("torch")
    both = torch.arange(-12.0, 12.0).reshape(4, 6)
    expected = namespace.relu(both[:, :3].clone())
    assert torch.equal(namespace.relu(both[:, :3], out=both[:, 3:]), expected)
    with pytest.raises(ValueError, match="out overlaps x"):
        namespace.relu(both[:, :3], out=both[:, 2:5])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_exact_product_is_what_exceeds_a_threshold(backend, dtype):
    """0.3 x is rounded to 5, and is more."""
    x = np.array([5.0 / float(np.dtype(dtype).type(0.3))], dtype)
    beta = Fraction(float(np.dtype(dtype).type(0.3)))
    while Fraction(float(x[0])) * beta <= 5:
        x = np.nextafter(x, np.dtype(dtype).type(np.inf))
    assert gradmark.backend(backend).softplus(x, 0.3, 5.0)[0] == x[0]
    assert gradmark.backend(backend).softplus_backward(np.ones_like(x), x, 0.3, 5.0)[0] == 1.0


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_that_are_zero_or_nan(row, dtype):
    """Numba's backward has the zeros and NaN of NumPy's, on either side of each kink."""
    required = [p.samples[0] for p in row.parameters if p.default is None]
    x = np.array([-200, -20, -3, -1, -0.5, -0.0, 0.0, 0.5, 1, 3, 6, 20, 200, np.nan], dtype)
    for grad in (0.0, -0.0, np.nan):
        found = {}
        for name in ("numpy", "numba"):
            dx = getattr(gradmark.backend(name), backward_of(row.name))(np.full_like(x, grad), x, *required)
            found[name] = dx[0] if isinstance(dx, tuple) else dx
        np.testing.assert_array_equal(found["numba"], found["numpy"])


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", -110.0, -95.0), ("float64", -752.0, -735.0)])
@pytest.mark.parametrize("name", ["silu", "swish", "quick_gelu", "gelu_tanh", "mish"])
def test_derivatives_that_are_subnormal(name, dtype, low, high):
    """The sweep judges them on the scale of the gradient, which forgives a zero."""
    row = catalog.operation(name)
    usual = sweep.rounded([p.usual for p in row.parameters], dtype)
    # Where z = x, 1.702 x, or for gelu_tanh √(8/π) (x + 0.044715 x³), is what x is for silu.
    x = np.linspace(low, high, 4001)
    if name == "quick_gelu":
        x = x / 1.702
    if name == "gelu_tanh":
        x = np.cbrt(x / 0.0713548)
        x -= (x + 0.044715 * x**3 - np.linspace(low, high, 4001) / 1.5957691) / (1 + 0.134145 * x**2)
    x = x.astype(dtype)
    found = getattr(gradmark.backend("numba"), backward_of(name))(np.ones_like(x), x, *usual)
    found = found[0] if isinstance(found, tuple) else found
    exact = wide.evaluate(row, BACKWARD, x, usual)
    smallest = np.finfo(dtype).smallest_subnormal
    assert np.count_nonzero(np.abs(exact) > 3 * smallest) > 1000
    assert np.all(np.abs(found - exact) <= 2 * smallest + 1e-5 * np.abs(exact))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", ["elu", "celu", "selu"])
def test_signaling_nans_are_as_other_nans(name, backend):
    """np.fmin(x, 0) is 0 for a quiet NaN; for a signaling one it depends on the place in the vector."""
    signaling = np.arange(0xFFAD0000, 0xFFAD0000 + 37, dtype=np.uint32).view(np.float32)
    backward = getattr(gradmark.backend(backend), backward_of(name))
    grad = np.full_like(signaling, -1.25)
    parameters = [0.5] * len(catalog.operation(name).parameters)
    quiet = backward(grad, np.full_like(signaling, np.nan), *parameters)
    assert not np.isnan(quiet).any()
    for size in (1, 3, 17, 37):
        np.testing.assert_array_equal(backward(grad[:size], signaling[:size], *parameters), quiet[:size])
