"""The contract that all backends keep: the same functions, the same signatures, the same errors."""

import copy
import functools
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import gradmark
from gradmark import backends, catalog
from gradmark.activations import public
from gradmark.backends import BACKENDS, DTYPES
from gradmark.catalog import backward_of

ROWS = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS]
LEARNABLE = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.learnable]
SEEDED = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.seeded]


def required(row):
    """Values for the parameters that the caller must give."""
    return {p.name: p.usual for p in row.required}


def test_no_two_operations_have_one_name():
    assert [row.name for row in catalog._ROWS] == list(catalog.OPERATIONS)


def public_names():
    for row in catalog.OPERATIONS.values():
        yield row.name
        if row.family != "initializers":
            yield backward_of(row.name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(public_names()))
def test_every_backend_has_every_function(name, backend):
    function = getattr(gradmark.backend(backend), name)
    assert function.__name__ == name
    assert function.__doc__
    assert "Returns" in function.__doc__
    assert "Raises" in function.__doc__


@pytest.mark.parametrize("name", list(public_names()))
def test_signatures_are_identical(name):
    signatures = {str(inspect.signature(getattr(gradmark.backend(b), name))) for b in BACKENDS}
    assert len(signatures) == 1, signatures


@pytest.mark.parametrize("row", ROWS)
def test_signatures_are_the_catalogs(row):
    empty = inspect.Parameter.empty
    for name, arrays in ((row.name, ["x"]), (backward_of(row.name), ["grad", "x"])):
        parameters = inspect.signature(getattr(gradmark.backend("numpy"), name)).parameters
        seed = ["seed"] if row.seeded else []
        assert list(parameters) == [*arrays, *(p.name for p in row.parameters), *seed, "out"]
        found = [parameters[p.name].default for p in row.parameters]
        assert found == [empty if p.default is None else p.default for p in row.parameters]
        keyword_only = [n for n, p in parameters.items() if p.kind == inspect.Parameter.KEYWORD_ONLY]
        assert keyword_only == [*seed, "out"]


@pytest.mark.parametrize("row", ROWS)
def test_docstrings_show_the_row(row):
    for name in (row.name, backward_of(row.name)):
        text = getattr(gradmark.backend("numpy"), name).__doc__
        assert row.source in text
        assert row.conventions in text
        assert all(requirement in text for requirement in row.requires)
        assert ("seed : int, optional" in text) == row.seeded
        for parameter in row.parameters:
            assert f"\n{parameter.name} : " in text
            assert (f"Default: {parameter.default!r}." in text) == (parameter.default is not None)


@pytest.mark.parametrize("row", ROWS)
def test_rows_hold_together(row):
    """What the derived tests rely on."""
    assert row.unmet([p.usual for p in row.parameters]) is None
    assert all(p.samples for p in row.required)
    assert row.required == row.parameters[: len(row.required)], "parameters without a default come first"
    assert len({d.backend + d.operation_pass for d in row.deviations}) == len(row.deviations)


@pytest.mark.parametrize("backend", BACKENDS)
def test_implementations_stand_in_the_catalogs_order(backend):
    """Files that are read side by side have the same names in the same order."""
    module = importlib.import_module(f"gradmark.activations.{backend}")
    source = inspect.getsource(module)
    places = []
    for row in catalog.ACTIVATIONS:
        assert callable(getattr(module, row.name)), f"{backend} lacks {row.name}"
        assert callable(getattr(module, backward_of(row.name))), f"{backend} lacks {backward_of(row.name)}"
        bound = rf"^(?:def {row.name}\(|{row.name}(?:, {backward_of(row.name)})? = )"
        places.append(re.search(bound, source, re.MULTILINE).start())
    assert places == sorted(places)


def test_a_row_without_an_implementation_is_named():
    row = next(r for r in catalog.ACTIVATIONS if r.name == "gelu")
    empty = importlib.import_module("gradmark.activations")
    with pytest.raises(AttributeError, match="gelu"):
        public.functions(row, empty, gradmark.backend("numpy")._arrays)


def test_import_is_light():
    heavy = "('numpy', 'numba', 'torch', 'scipy', 'mpmath', 'rich')"
    code = f"import sys, gradmark; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(LookupError, match=r"unknown backend 'jax'; known backends: numpy, numba, torch"):
        gradmark.backend("jax")
    with pytest.raises(LookupError, match=r"unknown operation 'swoosh'; known operations: sigmoid, "):
        catalog.operation("swoosh")
    with pytest.raises(
        AttributeError, match=r"the numpy backend has no function 'swoosh'; known operations: sigmoid, "
    ):
        _ = gradmark.backend("numpy").swoosh
    with pytest.raises(AttributeError, match="has no attribute 'swoosh'"):
        _ = gradmark.swoosh


def test_backends_can_be_copied_and_pickled():
    for name in BACKENDS:
        namespace = gradmark.backend(name)
        assert copy.deepcopy(namespace) is namespace
        assert pickle.loads(pickle.dumps(namespace)) is namespace


def test_devices_by_any_name():
    torch = pytest.importorskip("torch")
    for device in ("cpu", "cpu:3", torch.device("cpu")):
        assert gradmark.backend("torch", device=device).zeros((2,)).tolist() == [0.0, 0.0]
    for device in (None, 3):
        with pytest.raises(TypeError, match="device must be text"):
            gradmark.backend("torch", device=device)
    with pytest.raises(LookupError, match="unknown backend"):
        gradmark.backend(["numpy"])


@pytest.mark.parametrize("backend_name", ["numpy", "numba"])
def test_subclasses_are_no_arrays(backend_name):
    function = gradmark.backend(backend_name).gelu
    for array in (np.ma.masked_array([1.0, 2.0], [True, False]), np.ones((1, 2)).view(np.matrix)):
        with pytest.raises(TypeError, match=r"takes numpy\.ndarray"):
            function(array)


def test_initializers_have_no_backward():
    with pytest.raises(AttributeError, match="he_normal_backward"):
        _ = gradmark.backend("numpy").he_normal_backward


@pytest.mark.parametrize(
    ("backend", "device", "reason"),
    [
        ("numba", "cuda", "runs on the CPU only"),
        ("torch", "abacus", "is no device"),
        ("torch", "meta", "is not supported"),
        ("torch", "cuda:99", "CUDA"),
    ],
)
def test_unusable_devices_say_why(backend, device, reason):
    assert reason in gradmark.why_unusable(backend, device)
    with pytest.raises(gradmark.BackendUnavailableError, match=reason):
        gradmark.backend(backend, device=device)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    backends._why_unusable.cache_clear()
    try:
        with pytest.raises(
            gradmark.BackendUnavailableError, match=r"numba is not installed: pip install 'gradmark\[numba\]'"
        ):
            gradmark.backend("numba")
    finally:
        backends._why_unusable.cache_clear()


def array(backend, values, dtype="float32"):
    if backend != "torch":
        return np.asarray(values, dtype=dtype)
    torch = pytest.importorskip("torch")
    return torch.tensor(values, dtype=getattr(torch, dtype))


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("row", ROWS)
def test_other_types_are_named(row, backend):
    function = functools.partial(getattr(gradmark.backend(backend), row.name), **required(row))
    wanted = "torch.Tensor" if backend == "torch" else "numpy.ndarray"
    for value in (1.0, [1.0, 2.0], None, "x", np.float32(1.0)):
        with pytest.raises(TypeError, match=rf"x is .*; the {backend} backend takes {wanted}"):
            function(value)


@pytest.mark.parametrize("row", ROWS)
def test_other_dtypes_list_the_accepted(row, backend):
    function = functools.partial(getattr(gradmark.backend(backend), row.name), **required(row))
    accepted = ", ".join(DTYPES[backend])
    for dtype in ("int64", "int32", "bool", "complex64", "float16", "bfloat16"):
        if dtype in DTYPES[backend] or (dtype == "bfloat16" and backend != "torch"):
            continue
        with pytest.raises(TypeError, match=f"x has dtype {dtype}; the {backend} backend takes {accepted}"):
            function(array(backend, [1, 0], dtype))


@pytest.mark.parametrize("backend_name", ["numpy", "numba"])
def test_swapped_bytes_are_no_float32(backend_name):
    with pytest.raises(TypeError, match="in native byte order"):
        gradmark.backend(backend_name).relu(np.ones(3, ">f4"))


@pytest.mark.parametrize("row", ROWS)
def test_gradients_of_another_shape_or_dtype(row, backend):
    function = functools.partial(getattr(gradmark.backend(backend), backward_of(row.name)), **required(row))
    x = array(backend, [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"grad has shape \(3,\), x has shape \(1, 3\)"):
        function(array(backend, [1.0, 2.0, 3.0]), x)
    with pytest.raises(TypeError, match="grad has dtype float64, x has float32"):
        function(array(backend, [[1.0, 2.0, 3.0]], "float64"), x)


@pytest.mark.parametrize("row", ROWS)
def test_bad_out(row, backend):
    function = functools.partial(getattr(gradmark.backend(backend), row.name), **required(row))
    x = array(backend, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"out has shape \(1,\)"):
        function(x, out=array(backend, [0.0]))
    with pytest.raises(TypeError, match="out has dtype float64"):
        function(x, out=array(backend, [0.0] * 4, "float64"))
    with pytest.raises(ValueError, match="out overlaps x without being the same"):
        function(x[:-1], out=x[1:])
    one = array(backend, [0.0])
    spread = one.expand(4) if backend == "torch" else np.lib.stride_tricks.as_strided(one, (4,), (0,))
    with pytest.raises(ValueError, match="several elements in one place"):
        function(x, out=spread)
    eight = array(backend, [0.0] * 8)
    as_strided = eight.as_strided if backend == "torch" else functools.partial(np.lib.stride_tricks.as_strided, eight)
    with pytest.raises(ValueError, match="several elements in one place"):
        function(x.reshape(2, 2), out=as_strided((2, 2), (1, 1) if backend == "torch" else (4, 4)))
    if backend == "torch":
        with pytest.raises(ValueError, match="out requires grad"):
            function(x, out=x.clone().requires_grad_())
    else:
        fixed = np.zeros(4, np.float32)
        fixed.flags.writeable = False
        with pytest.raises(ValueError, match="out is read-only"):
            function(x, out=fixed)


FIXED = [pytest.param(row, p, id=f"{row.name}-{p.name}") for row in catalog.ACTIVATIONS for p in row.parameters]


@pytest.mark.parametrize(("row", "parameter"), FIXED)
def test_bad_parameters(row, parameter, backend):
    x = array(backend, [[1.0, 2.0, 3.0]])
    namespace = gradmark.backend(backend)
    for function in (
        functools.partial(getattr(namespace, row.name), x),
        functools.partial(getattr(namespace, backward_of(row.name)), x, x),
    ):
        others = {name: value for name, value in required(row).items() if name != parameter.name}
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{parameter.name} must be finite"):
                function(**others, **{parameter.name: value})
        with pytest.raises(ValueError, match=f"{parameter.name} must be within"):
            function(**others, **{parameter.name: 1e300})
        for value in ("1", None, 1j, True):
            with pytest.raises(TypeError, match=parameter.name):
                function(**others, **{parameter.name: value})


def breaking(row, requirement):
    """Parameter values of which exactly this requirement does not hold: the usual ones, one of them moved."""
    usual = {p.name: p.usual for p in row.parameters}
    for name in usual:
        for value in (0.0, -1.0, 1.0, -1e3, 1e3):
            values = {**usual, name: value}
            if row.unmet(values.values()) == requirement:
                yield values


REQUIREMENTS = [
    pytest.param(row, text, id=f"{row.name}-{text}".replace(" ", ""))
    for row in catalog.ACTIVATIONS
    for text in row.requires
]


@pytest.mark.parametrize(("row", "requirement"), REQUIREMENTS)
def test_what_a_row_requires_is_checked(row, requirement, backend):
    x = array(backend, [1.0, -2.0, 3.0])
    namespace = gradmark.backend(backend)
    cases = list(breaking(row, requirement))
    assert cases
    for values in cases:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        message = re.escape(f"{row.name} requires {requirement}, got ")
        for call in (
            functools.partial(getattr(namespace, row.name), x),
            functools.partial(getattr(namespace, backward_of(row.name)), x, x),
        ):
            with pytest.raises(ValueError, match=message) as raised:
                call(**values)
            assert given in str(raised.value)


@pytest.mark.parametrize("row", ROWS)
def test_parameters_of_any_real_type(row, backend):
    """A Fraction, a NumPy scalar and a float of one value give one result."""
    function = getattr(gradmark.backend(backend), row.name)
    x = array(backend, [[1.0, -2.0, 0.25]])
    values = {p.name: 0.5 for p in row.parameters}
    if row.unmet(values.values()) is not None:
        pytest.skip("one value for all parameters is not accepted")
    expected = np.asarray(function(x, **values))
    for kind in (Fraction, np.float32, np.float64):
        scalars = {name: kind(value) for name, value in values.items()}
        if any(p.learnable and kind is not Fraction for p in row.parameters):
            continue  # a NumPy scalar is an array of shape () there, and must be of the backend's type
        np.testing.assert_array_equal(np.asarray(function(x, **scalars)), expected)


@pytest.mark.parametrize("row", SEEDED)
def test_bad_seeds(row, backend):
    x = array(backend, [1.0, -2.0])
    namespace = gradmark.backend(backend)
    for call in (
        functools.partial(getattr(namespace, row.name), x),
        functools.partial(getattr(namespace, backward_of(row.name)), x, x),
    ):
        for seed in (1.0, "1", True, [1], b"1"):
            with pytest.raises(TypeError, match=r"seed must be an int with 0 <= seed < 2\*\*64"):
                call(seed=seed)
        for seed in (-1, 2**64):
            with pytest.raises(ValueError, match=r"seed must be an int with 0 <= seed < 2\*\*64"):
                call(seed=seed)


@pytest.mark.parametrize("row", LEARNABLE)
def test_learnable_parameters_of_the_wrong_length(row, backend):
    function = getattr(gradmark.backend(backend), row.name)
    x = array(backend, [[1.0, 2.0, 3.0]])
    name = row.learnable[0].name
    for shape in ((2,), (1, 3), (4,)):
        with pytest.raises(ValueError, match=rf"{name} has shape .*accepted: \(\) or \(1,\), one for all, or \(3,\)"):
            function(x, array(backend, np.ones(shape).tolist()))
    with pytest.raises(ValueError, match=r"or \(1,\), one per channel"):
        function(array(backend, [1.0, 2.0]), array(backend, [1.0, 2.0]))
    with pytest.raises(TypeError, match=f"{name} has dtype float64, x has float32"):
        function(x, array(backend, [1.0], "float64"))


def test_tensors_within_autograd_are_refused():
    """A graph that ends here without a word leaves the layers before it untrained."""
    torch = pytest.importorskip("torch")
    backend = gradmark.backend("torch")
    x, leaf = torch.ones(3, 4), torch.ones(3, 4, requires_grad=True)
    calls = {
        "x": lambda: backend.gelu(leaf),
        "grad": lambda: backend.gelu_backward(leaf, x),
        "alpha": lambda: backend.prelu(x, torch.ones(1, requires_grad=True)),
        "y": lambda: backend.softmax_backward(x, leaf),
    }
    calls |= {name: lambda name=name: getattr(backend, name)(leaf) for name in ("softmax", "swiglu", "sparsemax")}
    calls |= {"f": lambda: backend.residual_add(x, leaf), "grads": lambda: backend.clip_grad_norm([leaf], 1.0)}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"requires grad, and gradmark's functions are outside of autograd"):
            call()
        with torch.no_grad():
            result = call()
        while isinstance(result, list | tuple):
            result = result[0]
        assert not result.requires_grad, name
    with pytest.raises(ValueError, match="requires grad"):
        torch.func.grad(lambda t: backend.gelu(t).sum())(x)


def test_sparse_tensors_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="layout"):
        gradmark.backend("torch").gelu(torch.eye(2).to_sparse())


def test_missing_and_surplus_arguments_are_pythons_own_errors():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        gradmark.backend("numpy").gelu()
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        gradmark.backend("numpy").gelu(np.ones(2), beta=1)
    for row in catalog.ACTIVATIONS:
        if row.required:
            with pytest.raises(TypeError, match=f"missing .* required positional argument.*{row.required[-1].name}"):
                getattr(gradmark.backend("numpy"), row.name)(np.ones(2))
