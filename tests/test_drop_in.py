"""The drop-in names: complete for the installed libraries, and each call gives the values that theirs gives."""

import doctest
import importlib
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

import gradmark
from gradmark import catalog, drop_in
from gradmark.verification.check import to_backend
from targets import namespace_of

RNG = np.random.default_rng(31)
X = np.concatenate([RNG.normal(size=(39, 6)) * 4, [[0.0, -0.0, 1e-300, 50.0, -50.0, 700.0]]])
PAIR = RNG.normal(size=(2, 40, 6)) * 2
ARGUMENTS = {
    "alpha": 1.3,
    "axis": 0,
    "b": 0.5,
    "beta": 2.0,
    "dim": 0,
    "lambd": 0.3,
    "lower": 0.1,
    "max_val": 2.5,
    "min_val": -0.75,
    "negative_slope": 0.15,
    "seed": 5,
    "threshold": 0.4,
    "upper": 0.3,
    "value": 20.0,
    "weight": RNG.normal(size=6),
}
"""What the names in the calls stand for, beside x; numbers that are no function's default."""

# Public names that are no activation functions. A name that a new version brings stands in none of these lists: then
# the test below fails, and the function belongs into gradmark.drop_in or here.
NO_ACTIVATIONS = {
    "torch.nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_max_pool3d
        adaptive_max_pool3d_with_indices affine_grid alpha_dropout assert_int_or_pair avg_pool1d avg_pool2d avg_pool3d
        batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits boolean_dispatch channel_shuffle
        conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d cosine_embedding_loss
        cosine_similarity cross_entropy ctc_loss dropout dropout1d dropout2d dropout3d embedding embedding_bag
        feature_alpha_dropout fold fractional_max_pool2d fractional_max_pool2d_with_indices fractional_max_pool3d
        fractional_max_pool3d_with_indices gaussian_nll_loss grid_sample group_norm grouped_mm handle_torch_function
        has_torch_function has_torch_function_unary has_torch_function_variadic hinge_embedding_loss huber_loss
        instance_norm interpolate kl_div l1_loss layer_norm linear linear_cross_entropy local_response_norm lp_pool1d
        lp_pool2d lp_pool3d margin_ranking_loss max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
        max_pool3d max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d mse_loss
        multi_head_attention_forward multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss
        native_channel_shuffle nll_loss normalize one_hot pad pairwise_distance pdist pixel_shuffle pixel_unshuffle
        poisson_nll_loss rms_norm scaled_dot_product_attention scaled_grouped_mm scaled_mm smooth_l1_loss
        soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss unfold upsample upsample_bilinear
        upsample_nearest
    """,
    "jax.nn": """
        dot_product_attention get_scaled_dot_general_config initializers log1mexp logmeanexp logsumexp one_hot
        scaled_dot_general scaled_matmul standardize
    """,
    "keras.activations": "deserialize get serialize",
}


def library(name):
    """The library, or a skip; Keras on PyTorch, so that TensorFlow is not needed."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    package = name.partition(".")[0]
    how = "'gradmark[peers]'" if package in ("jax", "keras") else package.replace("_", "-")
    pytest.importorskip(package, reason=f"{name} is not installed: pip install {how}")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NO_ACTIVATIONS)
def test_every_activation_function_of_the_installed_library_is_here(name):
    module = library(name)
    public = {
        attribute
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        and (inspect.isroutine(value) or hasattr(value, "__wrapped__"))
        and not inspect.isclass(value)
    }
    known = set(map(drop_in.function_of, drop_in.LIBRARIES[name]))
    others = set(NO_ACTIVATIONS[name].split())
    assert public - known - others == set(), "new: is it an activation function?"
    assert known - public == set(), "no longer there"
    assert known & others == set()


def cases(random):
    return [
        pytest.param(name, theirs, id=f"{name}.{theirs}".replace(" ", ""))
        for name, calls in drop_in.ACTIVATIONS.items()
        for theirs, ours in calls.items()
        if ("seed=" in ours) == random
    ]


CASES, RANDOM = cases(random=False), cases(random=True)


def evaluated(call, functions, arguments):
    """The value of a call. `threshold` is a function before the parenthesis, and an argument within."""
    name = drop_in.function_of(call)
    return eval("function" + call.removeprefix(name), {"function": getattr(functions, name)}, arguments)


def arguments_of(name, call):
    """What the names in a call stand for."""
    pair = {"a": PAIR[0], "b": PAIR[1], "a_b": np.concatenate(PAIR, axis=-1)} if "(a, b)" in call else {}
    return {"x": X.copy(), **ARGUMENTS, **pair}


@pytest.mark.parametrize(("name", "theirs"), drop_in.ERRING)
def test_calls_that_err_still_err(name, theirs):
    arguments = arguments_of(name, theirs)
    sums = their_value(name, theirs, arguments).sum(axis=ARGUMENTS["axis"] if "axis" in theirs else -1)
    assert not np.allclose(sums, 1), "mended: delete it from ERRING"
    ours = our_value("numpy", name, theirs, arguments).sum(axis=ARGUMENTS["axis"] if "axis" in theirs else -1)
    np.testing.assert_allclose(ours, 1)


def their_value(name, call, arguments):
    module = library(name)
    if name == "jax.nn":
        jax = library("jax")
        with jax.enable_x64(True):
            arrays = {k: jax.numpy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
            return np.asarray(evaluated(call, module, arrays))
    torch = library("torch")
    tensors = {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    return evaluated(call, module, tensors).numpy()


def our_value(backend, name, theirs, arguments):
    namespace = namespace_of(backend)
    arrays = {k: to_backend(namespace, v, "float64") if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    return np.asarray(evaluated(drop_in.LIBRARIES[name][theirs], namespace, arrays))


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize(("name", "theirs"), CASES)
def test_ours_gives_the_values_of_theirs(name, theirs, backend):
    if (name, theirs) in drop_in.ERRING:
        pytest.skip("theirs errs, see test_calls_that_err_still_err")
    arguments = arguments_of(name, theirs)
    expected = their_value(name, theirs, arguments)
    found = our_value(backend, name, theirs, arguments)
    assert found.dtype == expected.dtype == np.float64
    assert found.shape == expected.shape
    # Theirs cancel in places (1 + erf, 1 + tanh).
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize(("name", "theirs"), RANDOM)
def test_ours_has_the_distribution_of_theirs(name, theirs, backend):
    """Of 20 000 draws for the same inputs: equal means, within five standard errors."""
    arguments = {**arguments_of(name, theirs), "x": np.tile(X[1], (20_000, 1))}
    samples = our_value(backend, name, theirs, arguments), their_value(name, theirs, arguments)
    ours, expected = (sample.mean(axis=0) for sample in samples)
    error = np.sqrt(sum(sample.var(axis=0) for sample in samples) / 20_000)
    assert np.all(np.abs(ours - expected) <= 5 * error + 1e-12)


def test_every_elementwise_and_row_wise_operation_is_somebodys():
    """Of what no library has under a name of its own, the list is short and written down."""
    ours = {drop_in.function_of(call) for calls in drop_in.ACTIVATIONS.values() for call in calls.values()}
    rows = {name for name, row in catalog.OPERATIONS.items() if row.family in ("activations", "gated", "rowwise")}
    assert ours <= rows
    assert rows - ours == {"swish", "reglu", "geglu", "bilinear"}


def test_calls_are_found_by_name():
    assert drop_in.calls("jax.nn.softplus") == {"softplus(x)": "softplus(x, threshold=1e30)"}
    with pytest.raises(LookupError, match=r"no function 'swoosh' of jax\.nn here; known functions: celu, elu, gelu"):
        drop_in.calls("jax.nn.swoosh")


def test_examples():
    assert doctest.testmod(drop_in).failed == 0


def test_only_the_standard_library_is_imported():
    code = "import sys; before = set(sys.modules); from gradmark import drop_in; print(*sys.modules.keys() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - {"gradmark"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", [None, 3, "swoosh", "tensorflow.nn.swoosh"])
def test_names_without_a_library_are_refused(name):
    with pytest.raises(
        LookupError, match=r"is in no library that is known here; known libraries: torch\.nn\.functional"
    ):
        drop_in.calls(name)


@pytest.mark.parametrize("name", ["gelu", "torch.gelu", "torch.nn.GELU", "tensorflow.nn.gelu"])
def test_a_name_of_another_place_is_told_where_the_function_is(name):
    with pytest.raises(LookupError, match=r"give one of torch\.nn\.functional\.gelu, jax\.nn\.gelu, keras"):
        drop_in.calls(name)
