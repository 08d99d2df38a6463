"""Every activation, in every backend, against its formula, torch's autograd, finite differences, and each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import gradmark
from gradmark import catalog
from gradmark.backends import BACKENDS
from gradmark.catalog import BACKWARD, FORWARD, backward_of
from gradmark.families import LAYOUTS, families
from gradmark.verification.activations import _worst_of_family, parameter_sets
from gradmark.verification.check import allowed, from_backend, to_backend
from targets import namespace_of

ROWS = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS]
LEARNABLE = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.learnable]
BACKEND_NAMES = list(BACKENDS)


def first(result):
    """The array itself, of a result that may come with gradients of parameters."""
    return result[0] if isinstance(result, tuple) else result


def call(namespace, row, operation_pass, grad, x, *parameters, **keywords):
    """One pass of an activation on float64 numbers already converted for the backend."""
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
    y = from_backend(getattr(namespace, row.name)(to_backend(namespace, np.array([0.0, -0.0]), "float64")))
    # Every activation here but sigmoid is 0 at 0, with a positive slope there.
    expected = [0.5, 0.5] if row.name == "sigmoid" else [0.0, 0.0]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), [False, row.name != "sigmoid"])


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
    y = eval(row.peer, names)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(y, wanted, torch.tensor(grad))
    return y.detach().numpy(), [g.numpy() for g in gradients]


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_autograd(row, backend):
    namespace = namespace_of(backend)
    rng = np.random.default_rng(9)
    x, grad = rng.normal(size=(5, 3, 4)) * 2, rng.normal(size=(5, 3, 4))
    x[0, 0, :2] = 0.0, -0.0
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
    """Central differences of the backend's own forward; the step leaves 1e-10 of truncation and 1e-10 of rounding."""
    namespace = namespace_of(backend)
    rng = np.random.default_rng(10)
    x = rng.normal(size=60) * 2
    x = x[np.all(np.abs(x[:, None] - np.array([*row.kinks, np.inf])) > 1e-2, axis=1)]
    step = 2.0**-15
    at = [to_backend(namespace, x + d, "float64") for d in (step, -step)]
    above, below = (from_backend(getattr(namespace, row.name)(v)) for v in at)
    ones, v = to_backend(namespace, np.ones_like(x), "float64"), to_backend(namespace, x, "float64")
    dx = from_backend(first(call(namespace, row, BACKWARD, ones, v)))
    np.testing.assert_allclose(dx, (above - below) / (2 * step), rtol=0, atol=1e-9)


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
        a, b = getattr(numpy, row.name)(x), getattr(numba, row.name)(x)
        assert a.shape == b.shape == x.shape
        floor = np.float32(2.0**-119)
        ulp = np.spacing(np.maximum(np.maximum(np.abs(a), np.abs(b)), floor))
        with np.errstate(invalid="ignore"):
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
