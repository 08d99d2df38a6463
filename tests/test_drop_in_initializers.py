"""The drop-in names of initializers: complete for the installed libraries, with theirs as to formula and defaults."""

import importlib
import inspect
import os

import numpy as np
import pytest
import torch

import gradmark
from gradmark import catalog, drop_in
from gradmark.initializers import numpy as implementation

SHAPES = [(7, 4), (6, 5, 3), (8, 3, 2, 5)]
"""In our layout, (out, in, *kernel)."""
ARGUMENTS = {
    "a": -0.3,
    "b": 0.4,
    "distribution": "normal",
    "gain": 1.7,
    "groups": 2,
    "lower": -1.5,
    "maxval": 0.7,
    "mean": 0.25,
    "minval": -0.1,
    "mode": "fan_out",
    "scale": 0.6,
    "sparsity": 0.45,
    "std": 0.2,
    "stddev": 0.3,
    "upper": 1.25,
    "val": 2.5,
    "value": -2.5,
}
"""What the names in the calls stand for; no function's defaults."""

# Public names that are no initializers of weights. A name that a new version brings stands in none of these lists:
# then the test below fails, and the function belongs into gradmark.drop_in or here.
NO_INITIALIZERS = {
    # Names without the underscore at the end are deprecated in PyTorch.
    "torch.nn.init": """
        Tensor calculate_gain constant dirac eye kaiming_normal kaiming_uniform normal orthogonal sparse uniform
        xavier_normal xavier_uniform
    """,
    "jax.nn.initializers": "Initializer",
    # STFT: the Fourier transform of a spectrogram as a fixed kernel.
    "keras.initializers": "Initializer STFT STFTInitializer deserialize get serialize stft",
}

# Parameters of theirs that no call names: where they draw from, their dtype, and other layouts of the weights.
WITHOUT_COUNTERPART = {
    *("generator", "tensor", "key", "shape", "dtype", "out_sharding", "seed"),
    *("in_axis", "out_axis", "batch_axis", "column_axis", "input_axes", "output_axes"),
}

CASES = [
    pytest.param(name, theirs, id=f"{name}.{theirs}".replace(" ", ""))
    for name, calls in drop_in.INITIALIZERS.items()
    for theirs in calls
]


def library(name):
    """The library, or a skip."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    package = name.partition(".")[0]
    pytest.importorskip(package, reason=f"{name} is not installed: pip install 'gradmark[peers]'")
    return importlib.import_module(name)


def public(module):
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and value.__module__.partition(".")[0] == module.__name__.partition(".")[0]
    }


@pytest.mark.parametrize("name", NO_INITIALIZERS)
def test_every_initializer_of_the_installed_library_is_here(name):
    found = set(public(library(name)))
    known = set(map(drop_in.function_of, drop_in.INITIALIZERS[name]))
    others = set(NO_INITIALIZERS[name].split())
    assert found - known - others == set(), "new: is it an initializer?"
    assert known - found == set(), "no longer there"
    assert known & others == set()


@pytest.mark.parametrize("name", NO_INITIALIZERS)
def test_every_option_of_theirs_is_named_in_a_call(name):
    module = library(name)
    for function in set(map(drop_in.function_of, drop_in.INITIALIZERS[name])):
        options = set(inspect.signature(getattr(module, function)).parameters) - WITHOUT_COUNTERPART
        calls = [call for call in drop_in.INITIALIZERS[name] if drop_in.function_of(call) == function]
        named = {word for call in calls for word in _words(call)}
        assert options <= named, function


def _words(call):
    inside = call.partition("(")[2]
    return "".join(c if c.isidentifier() else " " for c in inside).split()


def names(name, shape):
    """What the names in a call of theirs stand for, for weights of this shape in our layout."""
    if name == "torch.nn.init":
        return {**ARGUMENTS, "w": torch.zeros(shape)}
    theirs = (*shape[2:], shape[1], shape[0])
    key = {"key": importlib.import_module("jax").random.key(3)} if name.startswith("jax") else {}
    return {**ARGUMENTS, "shape": theirs, **key}


def evaluated(call, functions, arguments):
    function = drop_in.function_of(call)
    return eval("function" + call.removeprefix(function), {"function": getattr(functions, function)}, dict(arguments))


def their_weights(name, theirs, shape):
    """Weights of theirs in our layout, or None where they refuse the shape."""
    module = library(name)
    # Unseeded, one run in some hundred draws a zero among 60 000 normals: PyTorch's Box-Muller takes log(1) as well.
    torch.manual_seed(7)
    try:
        weights = evaluated(theirs, module, names(name, shape))
    except ValueError:
        return None
    weights = weights.detach().numpy() if isinstance(weights, torch.Tensor) else np.asarray(weights)
    return weights if name == "torch.nn.init" else np.moveaxis(weights, (-1, -2), (0, 1))


def our_weights(name, theirs, shape, seed=5, backend="numpy"):
    """Ours, or None where we refuse the shape."""
    arguments = {**ARGUMENTS, "shape": shape, "seed": seed}
    try:
        return np.asarray(evaluated(drop_in.INITIALIZERS[name][theirs], gradmark.backend(backend), arguments))
    except ValueError:
        return None


def row_of(name, theirs):
    return catalog.operation(drop_in.function_of(drop_in.INITIALIZERS[name][theirs]))


FIXED = [case for case in CASES if not row_of(*case.values).seeded]
ORTHOGONAL = [case for case in CASES if row_of(*case.values).distribution == "orthogonal"]
SPARSE = [case for case in CASES if row_of(*case.values).distribution == "sparse"]
SCALED = [case for case in CASES if case not in [*FIXED, *ORTHOGONAL, *SPARSE]]


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize(("name", "theirs"), FIXED)
def test_fixed_weights_are_theirs(name, theirs, backend):
    compared = 0
    for shape in [*SHAPES, (4, 7)]:
        expected, found = their_weights(name, theirs, shape), our_weights(name, theirs, shape, backend=backend)
        assert (expected is None) == (found is None), shape
        if expected is not None:
            assert (found == expected).all(), shape
            compared += 1
    assert compared


@pytest.mark.parametrize(("name", "theirs"), ORTHOGONAL)
def test_orthogonal_weights_have_the_singular_values_of_theirs(name, theirs):
    for shape in [*SHAPES, (4, 7), (5, 5, 2)]:
        expected, found = their_weights(name, theirs, shape), our_weights(name, theirs, shape)
        assert (expected is None) == (found is None), shape
        if expected is not None:
            assert ((found == 0) == (expected == 0)).all(), shape
            assert spectrum(found) == pytest.approx(spectrum(expected), rel=1e-5)


def spectrum(weights):
    return np.linalg.svd(weights.reshape(weights.shape[0], -1).astype(np.float64), compute_uv=False)


@pytest.mark.parametrize(("name", "theirs"), SPARSE)
def test_sparse_weights_have_the_zeros_and_the_scale_of_theirs(name, theirs):
    expected, found = (weights(name, theirs, (200, 300)) for weights in (their_weights, our_weights))
    assert ((found == 0).sum(axis=0) == (expected == 0).sum(axis=0)).all()
    # Of 33 000 normals each, the ratio of standard deviations is 1 within 5 / √33 000.
    assert found.std() / expected.std() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(("name", "theirs"), SCALED)
def test_the_distribution_drawn_from_is_theirs(name, theirs, monkeypatch):
    """What their function asks its generator for is what ours asks for: the formula, without a sample."""
    module = library(name)
    choices = [{"mode": mode} for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")] if "mode" in theirs else [{}]
    if name == "keras.initializers":
        choices = [c for c in choices if c.get("mode") != "fan_geo_avg"]
    if name == "torch.nn.init":
        choices = [c for c in choices if c.get("mode") in (None, "fan_in", "fan_out")]
    if "distribution)" in theirs:
        words = ("truncated_normal", "normal", "uniform")
        choices = [{**c, "distribution": word} for c in choices for word in words]
    for shape in SHAPES:
        for chosen in choices:
            with monkeypatch.context() as patch:
                asked = RECORD[name](patch)
                result = evaluated(theirs, module, {**names(name, shape), **chosen})
            expected = asked(result)
            assert ours_asks(drop_in.INITIALIZERS[name][theirs], shape, chosen) == (
                expected[0],
                pytest.approx(expected[1], rel=3e-7),
            )


def ours_asks(call, shape, chosen):
    """The implementation that our call comes to, and its arguments."""
    asked = []

    def recorder(kind):
        return lambda shape, seed, dtype, device, **arguments: asked.append((kind, tuple(arguments.values())))

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("uniform", "normal", "trunc_normal"):
            patch.setattr(implementation, kind, recorder(kind))
        evaluated(call, gradmark.backend("numpy"), {**ARGUMENTS, **chosen, "shape": shape, "seed": 5})
    (only,) = asked
    return only


def record_torch(patch):
    asked = []
    patch.setattr(torch.Tensor, "uniform_", lambda w, a, b, generator=None: asked.append(("uniform", (a, b))))
    patch.setattr(torch.Tensor, "normal_", lambda w, a, b, generator=None: asked.append(("normal", (a, b))))
    patch.setattr(
        torch.nn.init,
        "_no_grad_trunc_normal_",
        lambda w, mean, std, a, b, generator=None: asked.append(("trunc_normal", (mean, std, a, b))),
    )
    return lambda result: asked[0]


def record_jax(patch):
    """JAX scales what it has drawn: where every draw is 1, the result is the scale."""
    import jax
    from jax._src import random

    drawn = []

    def ones(kind, *bounds):
        def draw(key, *arguments, **keywords):
            numbers = [x for x in arguments if isinstance(x, int | float)]
            shape, dtype = (x for x in arguments if not isinstance(x, int | float))
            drawn.append((kind, numbers))
            return jax.numpy.ones(shape, dtype)

        return draw

    for kind in ("uniform", "normal", "truncated_normal"):
        patch.setattr(random, kind, ones(kind))

    def asked(result):
        ((kind, numbers),) = drawn
        scale = float(np.asarray(result).flat[0])
        if kind == "uniform":
            return "uniform", ((numbers[0] if numbers else 0.0) * scale, scale)
        if kind == "normal":
            return "normal", (0.0, scale)
        return "trunc_normal", (0.0, scale, numbers[0] * scale, numbers[1] * scale)

    return asked


def record_keras(patch):
    random = importlib.import_module("keras.src.initializers.random_initializers").random
    asked = []

    def uniform(shape, minval, maxval, **_):
        asked.append(("uniform", (minval, maxval)))

    def normal(shape, mean, stddev, **_):
        asked.append(("normal", (mean, stddev)))

    def truncated_normal(shape, mean, stddev, **_):
        # Keras truncates at two standard deviations, see test_keras_truncates_at_two_standard_deviations.
        asked.append(("trunc_normal", (mean, stddev, mean - 2 * stddev, mean + 2 * stddev)))

    for function in (uniform, normal, truncated_normal):
        patch.setattr(random, function.__name__, function)
    return lambda result: asked[0]


RECORD = {"torch.nn.init": record_torch, "jax.nn.initializers": record_jax, "keras.initializers": record_keras}


def test_keras_truncates_at_two_standard_deviations():
    keras = library("keras")
    sample = np.asarray(keras.random.truncated_normal((100_000,), mean=1.0, stddev=0.5, seed=1))
    assert 0.0 <= sample.min() < 0.01
    assert 1.99 < sample.max() <= 2.0


@pytest.mark.parametrize("name", ["jax.nn.initializers.he_normal", "keras.initializers.he_normal"])
def test_he_normal_of_jax_and_keras_is_truncated(name):
    (ours,) = drop_in.calls(name).values()
    assert ours == "he_truncated_normal(shape, seed=seed)"


def test_every_initializer_is_somebodys():
    ours = {drop_in.function_of(call) for calls in drop_in.INITIALIZERS.values() for call in calls.values()}
    assert ours == {row.name for row in catalog.INITIALIZERS}
