"""Every row-wise operation, in every backend: torch's autograd, axes and layouts, special values, bad input."""

import numpy as np
import pytest
import torch

import gradmark
from gradmark import catalog
from gradmark.backends import BACKENDS, DTYPES
from gradmark.catalog import backward_of
from gradmark.verification.check import from_backend, to_backend

numba = pytest.importorskip("numba")

from gradmark.numerics import fused  # noqa: E402

ROWS = [pytest.param(row, id=row.name) for row in catalog.ROWWISE]
# Rows of one element, short and long ones, along every kind of axis; beyond a vector, a tile and a chunk.
SHAPES = [
    ((1,), 0),
    ((7,), 0),
    ((5, 3), 1),
    ((3, 33), -1),
    ((4, 1), 1),
    ((6, 130), 0),
    ((2, 5, 7), 1),
    ((2, 64, 3), -2),
]
SHAPES += [((1, 40_000), 1), ((3, 0), 0), ((0, 4), 1), ((200, 2), 0), ((3, 5, 4, 6), 2)]


def keywords_of(row):
    return {"seed": 7} if row.seeded else {}


def peer(row, x, axis, n=None):
    """The peer's value, and a function from the incoming gradient to that of x, by torch's autograd in float64."""
    leaf = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    names = {"torch": torch, "F": torch.nn.functional, "x": leaf, "axis": axis, "n": n, "tau": 1.0}
    y = eval(row.peer, names)

    def gradient(grad):
        return torch.autograd.grad(y, leaf, torch.tensor(np.asarray(grad, np.float64)), retain_graph=True)[0].numpy()

    return y.detach().numpy(), gradient


def noise(x, axis, seed=7):
    """The seed's noise: what softmax((x + n) / tau) is of, by its logarithm at x = 0."""
    zeros = np.zeros(np.shape(x))
    y = gradmark.backend("numpy").gumbel_softmax(zeros, seed=seed, axis=axis)
    return torch.tensor(np.log(y))


def results(row, namespace, grad, x, axis):
    """(y, dx) of a backend, as float64."""
    more = keywords_of(row)
    y = getattr(namespace, row.name)(x, axis=axis, **more)
    saved = x if row.seeded else y
    return from_backend(y), from_backend(getattr(namespace, backward_of(row.name))(grad, saved, axis=axis, **more))


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_agrees_with_autograd(row, backend, shape, axis):
    namespace = gradmark.backend(backend)
    rng = np.random.default_rng(3)
    x, grad = 3 * rng.normal(size=shape), rng.normal(size=shape)
    expected, gradient = peer(row, x, axis, noise(x, axis) if row.seeded else None)
    arrays = (to_backend(namespace, a, "float64") for a in (grad, x))
    y, dx = results(row, namespace, *arrays, axis)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dx, gradient(grad), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("backend", "dtype"), [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes if dtype != "float64"]
)
@pytest.mark.parametrize("row", [row for row in ROWS if row.id != "gumbel_softmax"])
def test_narrow_dtypes(row, backend, dtype):
    namespace = gradmark.backend(backend)
    rng = np.random.default_rng(4)
    x, grad = (to_backend(namespace, rng.normal(size=(9, 50)), dtype) for _ in range(2))
    wide = (to_backend(namespace, from_backend(a), "float64") for a in (grad, x))
    found, exact = results(row, namespace, grad, x, -1), results(row, namespace, *wide, -1)
    step = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6}[dtype]
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=step, atol=step)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_out_and_in_place(row, backend):
    """Results go where they are told to, dense or not, also over their input."""
    namespace = gradmark.backend(backend)
    rng = np.random.default_rng(5)
    more = keywords_of(row)

    def fresh():
        return to_backend(namespace, np.arange(48.0).reshape(6, 8) % 7 / 3, "float32")

    forward, backward = getattr(namespace, row.name), getattr(namespace, backward_of(row.name))
    grad = to_backend(namespace, rng.normal(size=(6, 8)), "float32")
    saved = fresh() if row.seeded else forward(fresh(), **more)
    y, dx = from_backend(forward(fresh(), **more)), from_backend(backward(grad, saved, **more))
    across = to_backend(namespace, np.zeros((8, 6)), "float32").T
    for out in (fresh(), to_backend(namespace, np.zeros((6, 16)), "float32")[:, ::2], across):
        assert forward(fresh(), out=out, **more) is out
        np.testing.assert_allclose(from_backend(out), y, rtol=1e-6)
        assert backward(grad, saved, out=out, **more) is out
        np.testing.assert_allclose(from_backend(out), dx, rtol=1e-5, atol=1e-7)
    x = fresh()
    assert forward(x, out=x, **more) is x
    np.testing.assert_allclose(from_backend(x), y, rtol=1e-6)
    g = to_backend(namespace, from_backend(grad), "float32")
    backward(g, saved, out=g, **more)
    np.testing.assert_allclose(from_backend(g), dx, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("row", ROWS)
def test_layouts(row, backend):
    """Fortran order, strides, negative ones, broadcasts and read-only arrays give what a dense copy gives."""
    namespace = gradmark.backend(backend)
    x = np.random.default_rng(6).normal(size=(4, 6, 10)).astype(np.float32)
    views = [np.asfortranarray(x), np.repeat(x, 2, axis=2)[:, :, ::2], x[::-1, :, ::-1], x.transpose(2, 0, 1)]
    views.append(np.broadcast_to(x[:1], x.shape))
    frozen = x.copy()
    frozen.flags.writeable = False
    for view in (*views, frozen):
        for axis in (0, 1, 2):
            dense = results(row, namespace, np.ascontiguousarray(view), np.ascontiguousarray(view), axis)
            before = view.copy()
            for ours, theirs in zip(results(row, namespace, view, view, axis), dense, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=1e-6)
            np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 40_000), -1), ((6, 130), -1), ((130, 70), 0), ((5000, 7), -1)], ids=str
)
@pytest.mark.parametrize("row", [row for row in ROWS if row.id in ("softmax", "sparsemax")])
def test_every_loop_works_in_place(row, shape, axis):
    namespace = gradmark.backend("numba")
    rng = np.random.default_rng(9)
    x, grad = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    y, dx = results(row, namespace, grad, x, axis)
    in_place = x.copy()
    getattr(namespace, row.name)(in_place, axis=axis, out=in_place)
    np.testing.assert_array_equal(in_place, y)
    for aliased in (0, 1):
        inputs = [grad.copy(), y.astype(np.float32)]
        getattr(namespace, backward_of(row.name))(*inputs, axis=axis, out=inputs[aliased])
        np.testing.assert_array_equal(inputs[aliased], dx)


# Rows, long rows, columns, and rows that are gathered: of one slab each, and of several.
LOOPS = [((700, 333), -1), ((3, 70_001), -1), ((333, 700), 0), ((5000, 7), -1), ((300, 7, 11), 1)]


@pytest.mark.parametrize(("shape", "axis"), LOOPS, ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_results_do_not_depend_on_threads(row, shape, axis):
    namespace = gradmark.backend("numba")
    rng = np.random.default_rng(8)
    x, grad = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    threads = numba.get_num_threads()
    found = []
    try:
        for count in {1, threads}:
            numba.set_num_threads(count)
            found.append(results(row, namespace, grad, x, axis))
        with fused._threads:  # As if another call had the threads: the serial loop.
            found.append(results(row, namespace, grad, x, axis))
    finally:
        numba.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.id in ("softmax", "log_softmax", "softmin")])
def test_special_values_are_torchs(row, backend):
    """Masked logits, a row that is masked whole, infinities of the other sign, NaN, and logits whose exp overflows."""
    namespace = gradmark.backend(backend)
    inf, nan = np.inf, np.nan
    x = np.array([[1, -inf, 2], [-inf, -inf, -inf], [1, inf, 2], [1, nan, 2], [1e30, -1e30, 1e30], [800, 801, -900]])
    expected, _ = peer(row, x, -1)
    y = from_backend(getattr(namespace, row.name)(to_backend(namespace, x, "float64")))
    np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparsemax_is_sparse_and_sums_to_one(backend):
    namespace = gradmark.backend(backend)
    x = 2 * np.random.default_rng(9).normal(size=(50, 30))
    y = from_backend(namespace.sparsemax(to_backend(namespace, x, "float64")))
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-12)
    assert (y == 0).mean() > 0.5
    assert (y >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gumbel_softmax(backend):
    """The seed decides the noise, the same in all backends; hard rows are one-hot where the soft ones are largest."""
    namespace = gradmark.backend(backend)
    x = to_backend(namespace, np.zeros((4000, 4)), "float32")
    soft = from_backend(namespace.gumbel_softmax(x, seed=3, tau=0.5))
    hard = from_backend(namespace.gumbel_softmax(x, seed=3, tau=0.5, hard=True))
    np.testing.assert_array_equal(hard, np.eye(4)[soft.argmax(axis=1)])
    assert not np.array_equal(soft, from_backend(namespace.gumbel_softmax(x, seed=4, tau=0.5)))
    # The uniforms of a dtype are made of as many bits as it has: the noise is that of the same dtype.
    reference = gradmark.backend("numpy").gumbel_softmax(np.zeros((4000, 4), np.float32), seed=3, tau=0.5)
    np.testing.assert_allclose(soft, reference, rtol=2e-5, atol=1e-7)
    # Equal logits: each class a quarter of the time, within five standard deviations.
    assert np.all(np.abs(hard.mean(axis=0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, backend):
    namespace = gradmark.backend(backend)
    forward, backward = getattr(namespace, row.name), getattr(namespace, backward_of(row.name))
    more = keywords_of(row)
    x = to_backend(namespace, np.ones((2, 3)), "float32")
    with pytest.raises(ValueError, match=r"axis.*2 "):
        forward(x, axis=2, **more)
    with pytest.raises(TypeError, match="axis"):
        forward(x, axis=0.5, **more)
    with pytest.raises(ValueError, match="has length 0 along axis 1"):
        forward(to_backend(namespace, np.ones((2, 0)), "float32"), **more)
    with pytest.raises(ValueError, match="x has no axes"):
        forward(to_backend(namespace, np.array(1.0), "float32"), **more)
    with pytest.raises(TypeError, match=r"x is .*takes"):
        forward([1.0, 2.0], **more)
    with pytest.raises(TypeError, match="x has dtype int64"):
        forward(to_backend(namespace, np.ones((2, 3)), "int64"), **more)
    with pytest.raises(ValueError, match=r"grad has shape \(3,\)"):
        backward(to_backend(namespace, np.ones(3), "float32"), x, **more)
    with pytest.raises(ValueError, match="out has shape"):
        forward(x, out=to_backend(namespace, np.ones((3, 2)), "float32"), **more)
    if row.seeded:
        for tau in (0.0, -1.0):
            with pytest.raises(ValueError, match="requires tau > 0"):
                forward(x, seed=1, tau=tau)
        with pytest.raises(ValueError, match="tau must be finite"):
            forward(x, seed=1, tau=float("nan"))
        with pytest.raises(TypeError, match="seed"):
            forward(x)
        with pytest.raises(ValueError, match="seed must be"):
            forward(x, seed=-1)
        with pytest.raises(TypeError, match="hard"):
            forward(x, seed=1, hard="yes")


def test_devices_without_values_give_shapes():
    y = gradmark.backend("torch").gumbel_softmax(torch.empty(3, 4, device="meta"), seed=1)
    assert (y.device.type, y.shape) == ("meta", (3, 4))
    out = torch.empty_like(y)
    assert gradmark.backend("torch").softmax(y, out=out) is out
