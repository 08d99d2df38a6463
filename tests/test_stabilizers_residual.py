"""residual_add with every activation: the activation's own function, applied to the rounded sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradmark
from gradmark.backends import DTYPES
from gradmark.catalog import backward_of, operation
from gradmark.stabilizers.public import residual_activations
from stabilizing import Arrays, bits, to_numpy
from targets import exact_peer

ACTIVATIONS = (None, *residual_activations())
CASES = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 1.0, -1.0, 30.0, -30.0]


def data(shape, seed=0):
    rng = np.random.default_rng(seed)
    return [3 * rng.standard_normal(shape) for _ in range(3)]


# The last is beyond the sizes from which loops are parallel; all activations share the template of that loop.
SHAPES = [(257,), (), (0, 3), (4, 5, 6), (300, 300)]
SHARED_BY_THREADS = (None, "relu", "gelu", "mish", "hard_swish")


@pytest.mark.parametrize(
    ("activation", "shape"),
    [(a, shape) for a in ACTIVATIONS for shape in SHAPES if shape != SHAPES[-1] or a in SHARED_BY_THREADS],
    ids=str,
)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_equals_the_activation_of_the_sum(name, dtype, activation, shape):
    """To the bit: the accuracy of the activation itself is measured by its own tests.

    In half precision the sum is float32, and rounding comes last.
    """
    arrays = Arrays(name, dtype)
    backend = arrays.backend
    grad, x, f = map(arrays, data(shape))
    wide = Arrays(name, "float32" if "16" in dtype else dtype)
    wide_grad, wide_x, wide_f = (wide(to_numpy(a)) for a in (grad, x, f))
    total = wide_x + wide_f if name == "torch" else np.add(wide_x, wide_f, out=np.empty_like(wide_x))
    y, d = (
        backend.residual_add(x, f, activation=activation),
        backend.residual_add_backward(grad, x, f, activation=activation),
    )
    assert y.dtype == d.dtype == x.dtype
    if activation is None:
        assert bits(y) == bits(arrays(to_numpy(total)))
        assert bits(d) == bits(grad)
        assert not np.shares_memory(to_numpy(d), to_numpy(grad))
    else:
        value = getattr(backend, activation)(total)
        gradient = getattr(backend, backward_of(activation))(wide_grad, total)
        assert bits(y) == bits(arrays(to_numpy(value)))
        assert bits(d) == bits(arrays(to_numpy(gradient)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_special_values(name, activation):
    arrays = Arrays(name, "float32")
    x, f = (arrays(v.reshape(-1)) for v in np.meshgrid(SPECIAL, SPECIAL))
    grad = arrays(np.linspace(-1, 1, len(SPECIAL) ** 2))
    with np.errstate(all="ignore"):
        total = x + f
    same = getattr(arrays.backend, activation)(total) if activation else total
    np.testing.assert_array_equal(to_numpy(arrays.backend.residual_add(x, f, activation=activation)), to_numpy(same))
    d = arrays.backend.residual_add_backward(grad, x, f, activation=activation)
    same = getattr(arrays.backend, backward_of(activation))(grad, total) if activation else grad
    np.testing.assert_array_equal(to_numpy(d), to_numpy(same))


def peer(activation, x):
    """The activation in torch, of a tensor; its parameters have their defaults."""
    if activation is None:
        return x + 0
    row = operation(activation)
    defaults = {p.name: p.default for p in row.parameters}
    return eval(exact_peer(row), {"torch": torch, "F": torch.nn.functional, "x": x, **defaults})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_equals_autograd_and_finite_differences(name, activation):
    arrays = Arrays(name)
    grad, x, f = data((11, 7))
    x[0, :3] = -f[0, :3]  # a sum of 0, where relu and its kin switch
    leaves = [torch.from_numpy(v.copy()).requires_grad_() for v in (x, f)]
    y = peer(activation, leaves[0] + leaves[1])
    expected_x, expected_f = torch.autograd.grad(y, leaves, torch.from_numpy(grad))

    def forward(x):
        return to_numpy(arrays.backend.residual_add(arrays(x), arrays(f), activation=activation))

    np.testing.assert_allclose(forward(x), y.detach(), rtol=1e-12, atol=1e-14)
    d = to_numpy(arrays.backend.residual_add_backward(arrays(grad), arrays(x), arrays(f), activation=activation))
    for expected in (expected_x, expected_f):
        np.testing.assert_allclose(d, expected, rtol=1e-12, atol=1e-13)
    step = 1e-6
    ends = [forward(x + s) for s in (step, -step)]
    smooth = np.abs(x + f) > 1e-3
    numeric = grad * (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(d[smooth], numeric[smooth], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_out_strides_and_read_only(name, activation):
    arrays = Arrays(name)
    grad, x, f = data((30, 40))
    backend = arrays.backend
    y = backend.residual_add(arrays(x), arrays(f), activation=activation)
    d = backend.residual_add_backward(arrays(grad), arrays(x), arrays(f), activation=activation)
    for position in (0, 1):
        inputs = [arrays(v.copy()) for v in (x, f)]
        result = backend.residual_add(*inputs, activation=activation, out=inputs[position])
        assert result is inputs[position]
        assert bits(result) == bits(y)
    for position in (0, 1, 2):
        inputs = [arrays(v.copy()) for v in (grad, x, f)]
        result = backend.residual_add_backward(*inputs, activation=activation, out=inputs[position])
        assert result is inputs[position]
        assert bits(result) == bits(d)
    inputs = [arrays(v) for v in (grad[::-1].copy()[::-1], np.asfortranarray(x), np.repeat(f, 2, axis=1)[:, ::2])]
    if name != "torch":
        for array in inputs:
            array.flags.writeable = False
    before = [bits(array) for array in inputs]
    out = arrays(np.zeros((40, 30)).T)
    np.testing.assert_allclose(
        to_numpy(backend.residual_add(*inputs[1:], activation=activation)), to_numpy(y), rtol=1e-14
    )
    assert backend.residual_add_backward(*inputs, activation=activation, out=out) is out
    np.testing.assert_allclose(to_numpy(out), to_numpy(d), rtol=1e-13, atol=1e-15)
    assert [bits(array) for array in inputs] == before


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 1000),
)
def test_backends_agree_on_any_shape(shape, activation, seed):
    values = data(shape, seed)
    results = []
    for name in gradmark.BACKENDS:
        arrays = Arrays(name)
        grad, x, f = map(arrays, values)
        y = arrays.backend.residual_add(x, f, activation=activation)
        results.append((y, arrays.backend.residual_add_backward(grad, x, f, activation=activation)))
    # torch's derivative of gelu_tanh cancels: near -6 it errs by some ULP of 1, times |x| and the gradient.
    slope_atol = 1e-13 if activation == "gelu_tanh" else 1e-14
    for parts, atol in zip(zip(*results, strict=True), (1e-14, slope_atol), strict=True):
        for part in parts[1:]:
            np.testing.assert_allclose(to_numpy(part), to_numpy(parts[0]), rtol=1e-12, atol=atol)


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize("activation", ["prelu", "swish", "rleu", "batch_norm", 3, ["relu"]])
def test_activations_that_are_not_accepted(name, activation):
    arrays = Arrays(name)
    x = arrays(np.ones(3))
    learnable = activation in ("prelu", "swish")
    assert not learnable or operation(activation).learnable
    why = "learnable parameter" if learnable else "unknown activation"
    with pytest.raises(LookupError, match=f"{why}; accepted: None, sigmoid, tanh, relu"):
        arrays.backend.residual_add(x, x, activation=activation)
    with pytest.raises(LookupError, match=why):
        arrays.backend.residual_add_backward(x, x, x, activation=activation)
