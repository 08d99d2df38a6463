"""Every gated unit, in every backend: torch's autograd, finite differences, layouts, special values, bad input."""

import functools
import importlib
import inspect
import platform
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradmark
from gradmark import catalog
from gradmark.backends import BACKENDS, DTYPES
from gradmark.catalog import BACKWARD, FORWARD, backward_of
from gradmark.verification.check import from_backend, to_backend

numba = pytest.importorskip("numba")

from gradmark.gated import numba as loops  # noqa: E402
from gradmark.numerics import fused, variants  # noqa: E402
from machine_code import text_of  # noqa: E402

ROWS = [pytest.param(row, id=row.name) for row in catalog.GATED]
HALF_PRECISION = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes if "16" in dtype]
# Along the axis: runs of one element, short ones, ones that fill vectors, and ones that do not.
SHAPES = [((2,), 0), ((6, 2), 1), ((5, 6), -1), ((3, 128), 1), ((4, 130), 1), ((2, 4, 33), 1), ((6, 5, 7), 0)]
SHAPES += [((2, 2, 64), 1), ((1, 3000), 1), ((3, 0), 1), ((0, 4), 1), ((4, 0, 3), 0)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_implementations_are_the_catalogs(backend):
    """Files that are read side by side have the same names in the same order."""
    module = importlib.import_module(f"gradmark.gated.{backend}")
    source = inspect.getsource(module)
    places = []
    for row in catalog.GATED:
        assert list(inspect.signature(getattr(module, row.name)).parameters) == ["x", "axis", "gate_last", "out"]
        backward = inspect.signature(getattr(module, backward_of(row.name)))
        assert list(backward.parameters) == ["grad", "x", "axis", "gate_last", "out"]
        places.append(re.search(rf"^(def )?{row.name}(\(|, )", source, re.MULTILINE).start())
    assert places == sorted(places)


@pytest.mark.parametrize("row", ROWS)
def test_rows_hold_together(row):
    assert not row.activation.parameters
    gates = {"glu": "sigmoid", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu", "swiglu": "silu"}
    assert row.activation.name == gates.get(row.name, "identity")
    for name, arrays in ((row.name, "x"), (backward_of(row.name), "grad, x")):
        function = getattr(gradmark.backend("numpy"), name)
        assert str(inspect.signature(function)) == f"({arrays}, *, axis=-1, gate_last={row.gate_last}, out=None)"
        assert row.source in function.__doc__
        assert row.conventions in function.__doc__


def halves(x, axis, gate_last):
    first, second = torch.chunk(x, 2, axis) if x.shape[axis] else (x, x)
    return (second, first) if gate_last else (first, second)


def peer(row, x, axis, gate_last):
    a, b = halves(x, axis, gate_last)
    return eval(row.peer, {"F": torch.nn.functional, "torch": torch, "a": a, "b": b})


def data(shape, axis, seed=0):
    rng = np.random.default_rng(seed)
    of_half = list(shape)
    of_half[axis] //= 2
    return rng.normal(size=shape) * 2, rng.normal(size=of_half)


@pytest.mark.parametrize("gate_last", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_autograd(row, backend, shape, axis, gate_last):
    namespace = gradmark.backend(backend)
    x, grad = data(shape, axis)
    leaf = torch.tensor(x, requires_grad=True)
    y = peer(row, leaf, axis, gate_last)
    (dx,) = torch.autograd.grad(y, leaf, torch.tensor(grad))
    v, g = (to_backend(namespace, array, "float64") for array in (x, grad))
    found = getattr(namespace, row.name)(v, axis=axis, gate_last=gate_last)
    assert tuple(found.shape) == tuple(y.shape)
    np.testing.assert_allclose(from_backend(found), y.detach(), rtol=1e-13, atol=1e-15)
    found = getattr(namespace, backward_of(row.name))(g, v, axis=axis, gate_last=gate_last)
    np.testing.assert_allclose(from_backend(found), dx, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(from_backend(v), x)
    np.testing.assert_array_equal(from_backend(g), grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_of_glu_is_pytorchs(backend):
    namespace = gradmark.backend(backend)
    x, _ = data((4, 6), 1)
    v = to_backend(namespace, x, "float64")
    for axis in (0, 1, -2):
        expected = torch.nn.functional.glu(torch.tensor(x), axis)
        np.testing.assert_allclose(from_backend(namespace.glu(v, axis=axis)), expected, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_finite_differences(row, backend):
    """Central differences of Σ grad · y in the backend's own forward; the step leaves 1e-9 of truncation."""
    namespace = gradmark.backend(backend)
    x, grad = data((3, 8), 1, seed=1)
    x[np.abs(x) < 1e-2] = 1.0  # relu's kink
    step = 2.0**-15

    def forward(x):
        return from_backend(getattr(namespace, row.name)(to_backend(namespace, x, "float64")))

    expected = np.empty_like(x)
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        expected[place] = np.sum(grad * (forward(x + moved) - forward(x - moved))) / (2 * step)
    v, g = (to_backend(namespace, array, "float64") for array in (x, grad))
    dx = from_backend(getattr(namespace, backward_of(row.name))(g, v))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-8)


def laid_out(values, layout):
    """The values, of 4 axes, in a memory layout."""
    if layout == "F":
        return np.asfortranarray(values)
    if layout == "channels last":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "strided":
        return np.repeat(values, 2, axis=3)[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(values[::-1])[::-1]
    if layout == "broadcast":
        return np.broadcast_to(values[:1], values.shape)
    if layout == "unaligned":
        raw = np.empty(values.nbytes + 1, np.uint8)
        array = raw[1:].view(values.dtype).reshape(values.shape)
        array[...] = values
        return array
    values = np.ascontiguousarray(values)
    values.flags.writeable = layout != "read-only"
    return values


LAYOUTS = ["C", "F", "channels last", "strided", "reversed", "broadcast", "unaligned", "read-only"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("row", ROWS)
def test_layouts_of_numpy_arrays(row, backend, axis, layout):
    namespace = gradmark.backend(backend)
    x, grad = (laid_out(array.astype(np.float32), layout) for array in data((2, 6, 5, 4), axis))
    forward = functools.partial(getattr(namespace, row.name), axis=axis)
    backward = functools.partial(getattr(namespace, backward_of(row.name)), axis=axis)
    y, dx = forward(np.ascontiguousarray(x)), backward(np.ascontiguousarray(grad), np.ascontiguousarray(x))
    np.testing.assert_array_equal(forward(x), y)
    np.testing.assert_array_equal(backward(grad, x), dx)
    for out in (
        np.full_like(dx, np.nan),
        np.full(dx.shape, np.nan, np.float32, order="F"),
        np.full((2, 6, 5, 8), np.nan, np.float32)[..., ::2],
    ):
        assert backward(grad, x, out=out) is out
        np.testing.assert_array_equal(out, dx)
    out = np.full(y.shape, np.nan, np.float32, order="F")
    assert forward(x, out=out) is out
    np.testing.assert_array_equal(out, y)
    if x.flags.writeable and layout != "broadcast":
        assert backward(grad, x, out=x) is x
        np.testing.assert_array_equal(x, dx)


@pytest.mark.parametrize("layout", ["C", "F", "channels last", "strided", "broadcast"])
@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("row", ROWS)
def test_layouts_of_tensors(row, axis, layout):
    namespace = gradmark.backend("torch")
    # NumPy's layouts carry over but for their sharing of memory.
    x, grad = (
        torch.from_numpy(laid_out(array.astype(np.float32), layout).copy("K")) for array in data((2, 6, 5, 4), axis)
    )
    forward = functools.partial(getattr(namespace, row.name), axis=axis)
    backward = functools.partial(getattr(namespace, backward_of(row.name)), axis=axis)
    y, dx = forward(x.contiguous()), backward(grad.contiguous(), x.contiguous())
    # ATen's vector and scalar paths differ in the last bits; its 1 + erf makes that relative to |a b|.
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(forward(x), y)
    close(backward(grad, x), dx)
    for out in (torch.full_like(dx, torch.nan), torch.full((2, 6, 5, 8), torch.nan)[..., ::2]):
        assert backward(grad, x, out=out) is out
        close(out, dx)
    out = torch.full((*y.shape[:-1], 2 * y.shape[-1]), torch.nan)[..., ::2]
    assert forward(x, out=out) is out
    close(out, y)
    assert backward(grad, x, out=x) is x
    close(x, dx)


@pytest.mark.parametrize(("backend", "dtype"), HALF_PRECISION)
@pytest.mark.parametrize("row", ROWS)
def test_half_precision_is_rounded_once(row, backend, dtype):
    """The float32 result, rounded."""
    namespace = gradmark.backend(backend)
    x, grad = data((7, 34), 1)
    v, g = (to_backend(namespace, array, dtype) for array in (x, grad))
    wide_v, wide_g = (to_backend(namespace, from_backend(array), "float32") for array in (v, g))
    backward = getattr(namespace, backward_of(row.name))
    for found, wide in (
        (getattr(namespace, row.name)(v), getattr(namespace, row.name)(wide_v)),
        (backward(g, v), backward(wide_g, wide_v)),
    ):
        assert str(found.dtype).endswith(dtype)
        # Where 1 + erf cancels, ATen's vector and scalar paths part.
        expected = from_backend(to_backend(namespace, from_backend(wide), dtype))
        assert np.mean(from_backend(found) != expected) < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_special_values(row, backend):
    """y = f(a) b and da, db as IEEE 754 has the products of f(a), f'(a), b and grad."""
    namespace = gradmark.backend(backend)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -2.0])
    a, b = (v.ravel() for v in np.meshgrid(special, special))
    x = np.concatenate([a, b])
    activation = functools.partial(getattr(namespace, row.gate))
    f = from_backend(activation(to_backend(namespace, a, "float64")))
    slope = from_backend(
        getattr(namespace, backward_of(row.gate))(*(to_backend(namespace, v, "float64") for v in (b, a)))
    )
    with np.errstate(all="ignore"):
        expected = f * b
    v = to_backend(namespace, x, "float64")
    y = from_backend(getattr(namespace, row.name)(v, gate_last=False))
    np.testing.assert_array_equal(y, expected)
    dx = from_backend(
        getattr(namespace, backward_of(row.name))(to_backend(namespace, np.ones_like(a), "float64"), v, gate_last=False)
    )
    np.testing.assert_array_equal(dx, np.concatenate([slope, f]))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    row=st.sampled_from(catalog.GATED),
    gate_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_backends_agree_on_any_shape(shape, axis, row, gate_last, seed):
    axis %= len(shape)
    shape[axis] *= 2
    x, grad = data(shape, axis, seed)
    results = []
    for name in BACKENDS:
        namespace = gradmark.backend(name)
        v, g = (to_backend(namespace, array, "float64") for array in (x, grad))
        y = getattr(namespace, row.name)(v, axis=axis, gate_last=gate_last)
        dx = getattr(namespace, backward_of(row.name))(g, v, axis=axis, gate_last=gate_last)
        results.append((from_backend(y), from_backend(dx)))
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("length", [64, 100])
@pytest.mark.parametrize("row", ROWS)
def test_results_do_not_depend_on_threads(row, length, monkeypatch):
    """Serial, parallel and streaming loops, one thread and all, in place or not: the same bits."""
    namespace = gradmark.backend("numba")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(fused.PARALLEL_FROM // length + 7, 2 * length)).astype(np.float32)
    grad = rng.normal(size=(len(x), length)).astype(np.float32)
    forward, backward = getattr(namespace, row.name), getattr(namespace, backward_of(row.name))

    def both():
        in_place = x.copy()
        return [forward(x), backward(grad, x), backward(grad, in_place, out=in_place)]

    threads = numba.get_num_threads()
    try:
        results = []
        for count in {1, threads}:
            numba.set_num_threads(count)
            results.append(both())
        with fused._threads:  # As if another call had the threads: the serial loop.
            results.append(both())
        monkeypatch.setattr(variants, "STREAM_FROM", 0)
        results.append(both())
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(results[0][1], results[0][2])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def kernels_of(module, name):
    """The variants of the kernels of an operation's forward and backward pass."""
    for function in (getattr(module, name), getattr(module, backward_of(name))):
        yield from (c.cell_contents for c in function.__closure__ if isinstance(c.cell_contents, variants.Variants))


@pytest.mark.skipif("x86" not in platform.machine(), reason="reads x86 assembly")
@pytest.mark.parametrize("row", ROWS)
def test_hot_loops_are_vectorized_and_call_nothing(row):
    kernels = {kernel.name: kernel for kernel in kernels_of(loops, row.name)}
    assert set(kernels) == {row.name, backward_of(row.name)}
    for kernel in kernels.values():
        assembly = text_of(kernel.get(np.dtype("float32")))
        assert re.findall(r"\bv\w+ps\s+.*%[yz]mm", assembly), f"{kernel.name}: no packed arithmetic"
        assert re.findall(r"\b(?:exp|expm1|tanh|erf|erfc|log|pow|fma)f?\b", assembly) == []


def array(backend, values, dtype="float32"):
    if backend != "torch":
        return np.asarray(values, dtype=dtype)
    return torch.tensor(values, dtype=getattr(torch, dtype))


X = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
BAD_CALLS = {
    "no array": (lambda f, a: f(X), TypeError, "x is of type list"),
    "integers": (lambda f, a: f(a(X, "int64")), TypeError, "x has dtype int64; .* takes"),
    "no axes": (lambda f, a: f(a(1.0)), ValueError, r"x has no axes \(its shape is \(\)\)"),
    "odd length": (
        lambda f, a: f(a([[1.0, 2.0, 3.0]])),
        ValueError,
        r"x has length 3 along axis 1 \(its shape is \(1, 3\)\); \w+ takes an even one",
    ),
    "odd length of another axis": (lambda f, a: f(a([[1.0, 2.0]]), axis=0), ValueError, "length 1 along axis 0"),
    "axis too large": (lambda f, a: f(a(X), axis=2), ValueError, "axis 2 is out of range: .*accepted: -2 <= axis < 2"),
    "axis too small": (lambda f, a: f(a(X), axis=-3), ValueError, "axis -3 is out of range"),
    "axis of floats": (lambda f, a: f(a(X), axis=1.0), TypeError, "axis must be an int, got 1.0 of type float"),
    "axis of bools": (lambda f, a: f(a(X), axis=True), TypeError, "axis must be an int"),
    "no axis": (lambda f, a: f(a(X), axis=None), TypeError, "axis must be an int"),
    "no flag": (lambda f, a: f(a(X), gate_last=1), TypeError, "gate_last must be True or False, got 1"),
    "positional axis": (lambda f, a: f(a(X), 0), TypeError, "positional argument"),
    "out of another dtype": (lambda f, a: f(a(X), out=a(X, "float64")), TypeError, "out has dtype float64"),
    "out of x's shape": (
        lambda f, a: f(a(X), out=a(X)),
        ValueError,
        r"out has shape \(2, 4\), the result has shape \(2, 2\)",
    ),
    "out in x": (lambda f, a: (lambda x: f(x, out=x[:, :2]))(a(X)), ValueError, "out overlaps x"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, backend, case):
    call, error, message = BAD_CALLS[case]
    function = getattr(gradmark.backend(backend), row.name)
    with pytest.raises(error, match=message):
        call(function, functools.partial(array, backend))


BAD_BACKWARD_CALLS = {
    "gradient of x's shape": (
        lambda f, a: f(a(X), a(X)),
        ValueError,
        r"grad has shape \(2, 4\), the result has shape \(2, 2\)",
    ),
    "gradient of another dtype": (
        lambda f, a: f(a([[1.0, 2.0], [3.0, 4.0]], "float64"), a(X)),
        TypeError,
        "grad has dtype float64, x has float32",
    ),
    "odd length": (lambda f, a: f(a([1.0]), a([1.0, 2.0, 3.0])), ValueError, "takes an even one"),
    "out of the gradient's shape": (
        lambda f, a: f(a([[1.0, 2.0], [3.0, 4.0]]), a(X), out=a([[1.0, 2.0], [3.0, 4.0]])),
        ValueError,
        r"out has shape \(2, 2\)",
    ),
    "gradient in out": (
        lambda f, a: (lambda out: f(out[:, :2], a(X), out=out))(a(X)),
        ValueError,
        "out overlaps grad",
    ),
}


@pytest.mark.parametrize("case", BAD_BACKWARD_CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_bad_input_of_backward(row, backend, case):
    call, error, message = BAD_BACKWARD_CALLS[case]
    function = getattr(gradmark.backend(backend), backward_of(row.name))
    with pytest.raises(error, match=message):
        call(function, functools.partial(array, backend))


def test_read_only_out():
    fixed = np.zeros((2, 2), np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        gradmark.backend("numba").swiglu(array("numba", X), out=fixed)


def test_tensors_within_autograd_are_refused():
    namespace = gradmark.backend("torch")
    x, grad = torch.ones(2, 4, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    for call in (lambda: namespace.swiglu(x), lambda: namespace.swiglu_backward(grad, x.detach())):
        with pytest.raises(ValueError, match="requires grad"):
            call()
        with torch.no_grad():
            assert not call().requires_grad


@pytest.mark.parametrize("operation_pass", [FORWARD, BACKWARD])
@pytest.mark.parametrize("row", ROWS)
def test_dense_float32_against_float64(row, operation_pass):
    """100 000 gates through the range where the functions bend; float64 stands for the truth, 2^29 times finer."""
    a = np.linspace(-30, 30, 100_001, dtype=np.float32)
    b, g = np.cos(np.arange(a.size)).astype(np.float32), np.sin(np.arange(a.size)).astype(np.float32)
    x = np.concatenate([a, b])
    for name in ("numpy", "numba"):
        namespace = gradmark.backend(name)
        if operation_pass == FORWARD:
            forward = functools.partial(getattr(namespace, row.name), gate_last=False)
            found, exact = forward(x), forward(x.astype(np.float64))
            scale = np.abs(exact)
        else:
            backward = functools.partial(getattr(namespace, backward_of(row.name)), gate_last=False)
            found, exact = backward(g, x), backward(g.astype(np.float64), x.astype(np.float64))
            scale = np.maximum(np.abs(exact), np.concatenate([np.abs(g * b) / 64, np.zeros_like(a)]))
        ulp = np.spacing(np.maximum(scale, 2.0**-119).astype(np.float32)).astype(np.float64)
        worst = np.max(np.abs(found.astype(np.float64) - exact) / ulp)
        assert worst <= row.ulp[operation_pass] + 0.01, (name, worst)
