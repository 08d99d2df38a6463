"""The initializers of every backend: what they give, for every row of the catalog.

Their distributions are tested in test_initializers_distributions.py, the numbers below them in test_philox.py.
"""

import doctest
import importlib
import inspect
import math

import numpy as np
import pytest
import torch

import gradmark
from gradmark import catalog
from gradmark.initializers.public import fans
from gradmark.numerics.philox import stream_seed

ROWS = {row.name: row for row in catalog.INITIALIZERS}
SEEDED = [name for name, row in ROWS.items() if row.seeded]
SCALED = [name for name in SEEDED if ROWS[name].of is not None]
GAINED = [name for name in SCALED if "gain" in [p.name for p in ROWS[name].parameters]]
CHOICES = [(name, p) for name, row in ROWS.items() for p in row.parameters if isinstance(p, catalog.Choice)]
DTYPES = [(name, dtype) for name in gradmark.BACKENDS for dtype in gradmark.backend(name).dtypes]
SHAPES = [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (1, 1), (8, 3, 3, 3), (2, 3, 4, 1, 2)]


def make(backend, row_name, shape, dtype="float32", seed=0, **parameters):
    """The weights of a backend; parameters without a default get their first sample."""
    row = ROWS[row_name]
    shape = shape_of(row_name, shape)
    required = {p.name: p.samples[0] for p in row.parameters if p.default is None}
    keywords = {"seed": seed} if row.seeded else {}
    return getattr(gradmark.backend(backend), row_name)(shape, dtype=dtype, **keywords, **{**required, **parameters})


def values(weights):
    """Weights of any backend and dtype, exactly, as a float64 NumPy array."""
    if isinstance(weights, torch.Tensor):
        return weights.to(torch.float64).numpy()
    return np.asarray(weights, dtype=np.float64)


def shapes_of(row_name, shapes=(*SHAPES, (6, 4, 3), (4, 4, 2, 5))):
    least, most = ROWS[row_name].dimensions
    fitting = [shape for shape in shapes if least <= len(shape) <= most]
    return [shape for shape in fitting if row_name != "delta_orthogonal" or shape[1] <= shape[0]]


def shape_of(row_name, shape):
    """The shape, or one with a kernel where the row needs it."""
    return shape if ROWS[row_name].dimensions[0] <= len(shape) else (*shape, 3)


def test_all_backends_have_the_same_implementations():
    def implementations(backend):
        module = importlib.import_module(f"gradmark.initializers.{backend}")
        functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
        public = [f for f in functions if not f.__name__.startswith("_")]
        return [(f.__name__, inspect.signature(f)) for f in public]

    assert implementations("numpy") == implementations("numba") == implementations("torch")
    assert [name for name, _ in implementations("numpy")] == [n for n, row in ROWS.items() if row.of is None]


@pytest.mark.parametrize("row_name", ROWS)
def test_signatures_come_from_the_catalog(row_name):
    row = ROWS[row_name]
    signatures = {inspect.signature(getattr(gradmark.backend(name), row_name)) for name in gradmark.BACKENDS}
    (signature,) = signatures
    shape, *keywords = signature.parameters.values()
    assert shape.name == "shape"
    assert all(p.kind is p.KEYWORD_ONLY for p in keywords)
    defaults = {p.name: None if p.default is p.empty else p.default for p in keywords}
    expected = {p.name: p.default for p in row.parameters} | {"dtype": "float32"}
    assert defaults == (expected | {"seed": None, "stream": None} if row.seeded else expected)


@pytest.mark.parametrize("row_name", ROWS)
def test_the_example_in_the_docstring_runs(row_name):
    function = getattr(gradmark.backend("numpy"), row_name)
    (example,) = doctest.DocTestFinder().find(function, row_name, globs={}, module=False)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_example_of_fans_runs():
    (example,) = doctest.DocTestFinder().find(fans, "fans", globs={})
    assert doctest.DocTestRunner().run(example) == (0, 2)


@pytest.mark.parametrize("row_name", ROWS)
@pytest.mark.parametrize(("backend", "dtype"), DTYPES)
def test_shape_dtype_and_layout(row_name, backend, dtype):
    for shape in shapes_of(row_name):
        weights = make(backend, row_name, shape, dtype)
        assert tuple(weights.shape) == shape
        assert str(weights.dtype).removeprefix("torch.") == dtype
        assert weights.is_contiguous() if backend == "torch" else weights.flags.c_contiguous
        assert np.isfinite(values(weights)).all()
        assert backend != "torch" or not weights.requires_grad


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_shapes_and_dtypes_in_every_accepted_form(backend):
    functions = gradmark.backend(backend)
    expected = values(functions.uniform((3, 4), seed=1))
    dtype_object = functions.uniform((1,), seed=1).dtype
    for shape in ([3, 4], (np.int64(3), np.int32(4)), torch.Size([3, 4])):
        assert (values(functions.uniform(shape, seed=np.uint64(1), dtype=dtype_object)) == expected).all()
    assert (values(functions.uniform(12, seed=1)) == expected.ravel()).all()
    assert functions.uniform((), seed=1).shape == ()
    assert values(functions.uniform((), seed=1)) == expected[0, 0]


@pytest.mark.parametrize("row_name", ROWS)
@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_zero_length_gives_no_weights(row_name, backend, shape):
    shape = (5, *shape_of(row_name, shape)[1:-1], 0) if ROWS[row_name].dimensions[0] > 2 else shape
    assert tuple(make(backend, row_name, shape).shape) == shape


@pytest.mark.parametrize("row_name", [name for name, row in ROWS.items() if row.distribution != "orthogonal"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_give_equal_bits(row_name, dtype):
    for shape in [*shapes_of(row_name), (302, 300)]:
        for parameters in sampled(row_name):
            reference, *others = (values(make(b, row_name, shape, dtype, 5, **parameters)) for b in gradmark.BACKENDS)
            assert all(other.tobytes() == reference.tobytes() for other in others)


@pytest.mark.parametrize("row_name", [name for name in ROWS if ROWS[name].distribution != "orthogonal"])
@pytest.mark.parametrize(("backend", "dtype"), [pair for pair in DTYPES if pair[1] in ("float16", "bfloat16")])
def test_half_precision_is_float32_rounded(row_name, backend, dtype):
    single = torch.as_tensor(make(backend, row_name, (40, 30), "float32", 2))
    half = torch.as_tensor(make(backend, row_name, (40, 30), dtype, 2))
    assert single.any() or row_name == "zeros"
    assert torch.equal(half, single.to(getattr(torch, dtype)))


@pytest.mark.parametrize("row_name", SEEDED)
@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_the_seed_decides(row_name, backend):
    first, again, other = (values(make(backend, row_name, (16, 9), seed=seed)) for seed in (2**64 - 1, 2**64 - 1, 0))
    assert first.tobytes() == again.tobytes()
    # What is 0 whatever the seed, beside the 1 or 2 zeros that two draws may share.
    drawn = (first != 0) | (other != 0)
    assert drawn.sum() >= 16 * 9 / 2
    assert (first != other)[drawn].mean() > 0.99


@pytest.mark.parametrize("row_name", SEEDED)
@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_a_stream_is_that_of_its_own_seed(row_name, backend):
    named, again, other = (make(backend, row_name, (16, 9), seed=2, stream=s) for s in ("a.weight", "a.weight", "b"))
    assert values(named).tobytes() == values(again).tobytes()
    # Some initializers set most weights to zero, wherever that is.
    random = (values(named) != 0) & (values(other) != 0)
    assert random.any()
    assert (values(named) != values(other))[random].mean() > 0.99
    own = make(backend, row_name, (16, 9), seed=stream_seed(2, "a.weight"))
    assert values(own).tobytes() == values(named).tobytes()
    unnamed = make(backend, row_name, (16, 9), seed=2, stream=None)
    assert values(unnamed).tobytes() == values(make(backend, row_name, (16, 9), seed=2)).tobytes()


@pytest.mark.parametrize("row_name", [name for name in SEEDED if ROWS[name].of is None])
@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_the_state_of_other_generators_is_neither_used_nor_changed(row_name, backend):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    make(backend, row_name, (16, 9))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("shape", [(3, 5), (64, 32, 3), (8, 3, 5, 7), (2, 3, 4, 5, 6), (5, 1), (0, 4), (4, 0, 3)])
def test_fans_are_those_of_pytorch(shape):
    assert fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_fixed_weights_are_those_of_pytorch(backend):
    for shape in [(4, 7), (7, 4), (5, 5), (1, 3)]:
        empty = torch.empty(shape, dtype=torch.float64)
        assert (values(make(backend, "zeros", shape)) == torch.nn.init.zeros_(empty).numpy()).all()
        assert (values(make(backend, "ones", shape)) == torch.nn.init.ones_(empty).numpy()).all()
        assert (values(make(backend, "constant", shape, value=-2.5)) == -2.5).all()
        identity = torch.nn.init.eye_(empty).numpy()
        assert (values(make(backend, "eye", shape)) == identity).all()
        assert (values(make(backend, "eye", shape, gain=-3.0)) == -3.0 * identity).all()


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 2, 2), (6, 7, 3, 4), (6, 6, 1, 2), (6, 1, 2, 3, 4), (12, 3, 5, 5, 5)])
def test_dirac_is_that_of_pytorch(shape, groups, backend):
    expected = torch.nn.init.dirac_(torch.empty(shape, dtype=torch.float64), groups).numpy()
    assert (values(make(backend, "dirac", shape, groups=groups)) == expected).all()


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize("shape", [(6, 4, 3), (4, 4, 2), (5, 1, 4, 5), (3, 2, 1, 2, 3)])
def test_delta_orthogonal_is_orthogonal_at_the_centre(shape, backend):
    weights = values(make(backend, "delta_orthogonal", shape, "float64", 3, gain=2.0))
    matrix = values(make(backend, "orthogonal", shape[:2], "float64", 3, gain=2.0))
    centre = tuple((k - 1) // 2 for k in shape[2:])
    assert (weights[(slice(None), slice(None), *centre)] == matrix).all()
    assert np.count_nonzero(weights) == matrix.size


def test_a_convolution_with_a_delta_orthogonal_kernel_keeps_the_norm():
    weights = torch.from_numpy(np.asarray(make("numpy", "delta_orthogonal", (7, 5, 3, 3), "float64")))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 6, 6)))
    y = torch.nn.functional.conv2d(x, weights, padding=1)
    torch.testing.assert_close(y.norm(), x.norm(), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(10, 7), (7, 300), (301, 4), (1, 3)])
def test_sparse_weights_are_normals_beside_as_many_zeros_as_pytorchs(shape, sparsity, backend):
    weights = values(make(backend, "sparse", shape, "float64", 4, sparsity=sparsity, std=0.5))
    normal = values(make(backend, "normal", shape, "float64", 4, std=0.5))
    assert (weights[weights != 0] == normal[weights != 0]).all()
    theirs = torch.nn.init.sparse_(torch.empty(shape), sparsity)
    assert ((weights == 0).sum(axis=0) == (theirs == 0).sum(dim=0).numpy()).all()


def test_the_zeros_of_sparse_weights_are_anywhere_and_independent():
    # Of 20 rows, 5 are zeros: each with probability 1/4, two of them with (5 · 4) / (20 · 19). Within 5 deviations.
    columns = 20_000
    zeros = values(make("numpy", "sparse", (20, columns), sparsity=0.25)) == 0
    bound = 5 * math.sqrt(0.25 * 0.75 / columns)
    assert np.abs(zeros.mean(axis=1) - 0.25).max() < bound
    pairs = (zeros[:, None] & zeros[None]).mean(axis=-1)[np.triu_indices(20, 1)]
    assert np.abs(pairs - 20 / 380).max() < 5 * math.sqrt(20 / 380 * 360 / 380 / columns)
    neighbours = (zeros[:, 1:] & zeros[:, :-1]).mean(axis=1)
    assert np.abs(neighbours - 1 / 16).max() < 5 * math.sqrt(1 / 16 * 15 / 16 / columns) * math.sqrt(2)


def test_which_weights_are_zero_is_independent_of_their_values():
    zeros = values(make("numpy", "sparse", (100, 400), sparsity=0.5, std=1.0)) == 0
    normal = values(make("numpy", "normal", (100, 400)))
    for function in (lambda z: z, lambda z: z**2 - 1):
        assert abs(function(normal)[zeros].mean()) < 5 * math.sqrt(2 / zeros.sum())


@pytest.mark.parametrize("row_name", [*GAINED, "orthogonal", "eye"])
@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_a_gain_of_zero_gives_zeros(row_name, backend):
    assert (values(make(backend, row_name, (6, 5), gain=0.0)) == 0).all()


def test_named_cases_are_those_of_variance_scaling():
    # float64, so that float32 does not hide a difference; two ways to compute one σ may differ in its last bit.
    shape = (9, 4, 3)
    cases = {
        "lecun": {"mode": "fan_in"},
        "xavier": {"mode": "fan_avg"},
        "he": {"mode": "fan_in", "scale": 2.0},
    }
    for name, parameters in cases.items():
        for distribution in ("uniform", "normal", "truncated_normal"):
            named = make("numpy", f"{name}_{distribution}", shape, "float64")
            scaled = make("numpy", "variance_scaling", shape, "float64", distribution=distribution, **parameters)
            np.testing.assert_allclose(named, scaled, rtol=4e-16)


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
def test_modes_divide_by_their_fans(backend):
    shape = (9, 4, 3)
    unit = values(make(backend, "normal", shape, "float64"))
    for mode, fan in {"fan_in": 12, "fan_out": 27, "fan_avg": 19.5, "fan_geo_avg": 18}.items():
        found = make(backend, "variance_scaling", shape, "float64", mode=mode, distribution="normal", scale=3.0)
        np.testing.assert_allclose(values(found), unit * math.sqrt(3 / fan), rtol=1e-15)
    for mode, fan in {"fan_in": 12, "fan_out": 27}.items():
        found = values(make(backend, "he_normal", shape, "float64", mode=mode))
        np.testing.assert_allclose(found, unit * math.sqrt(2 / fan), rtol=1e-15)


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize(("row_name", "choice"), CHOICES)
def test_an_unknown_word_is_told_which_are_known(row_name, choice, backend):
    accepted = ", ".join(map(repr, choice.words))
    for word in ("", "fan", choice.default.upper(), f"{choice.default} "):
        with pytest.raises(ValueError, match=f"{row_name}: {choice.name} must be one of {accepted}, got {word!r}"):
            make(backend, row_name, (4, 3), **{choice.name: word})
    for word in (None, 1, choice.default.encode(), [choice.default]):
        with pytest.raises(TypeError, match=rf"{row_name}: {choice.name} must be one of {accepted}, got .* of type"):
            make(backend, row_name, (4, 3), **{choice.name: word})


@pytest.mark.parametrize(("row_name", "choice"), CHOICES)
def test_the_docstring_lists_the_words(row_name, choice):
    doc = getattr(gradmark.backend("numpy"), row_name).__doc__
    assert f"\n{choice.name} : {{{', '.join(map(repr, choice.words))}}}\n" in doc
    assert choice.default in choice.words
    assert len(set(choice.words)) == len(choice.words) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("row_name", ROWS)
def test_cuda_gives_what_the_cpu_gives(row_name):
    function = getattr(gradmark.backend("torch", device="cuda"), row_name)
    keywords = {"seed": 5} if ROWS[row_name].seeded else {}
    required = {p.name: p.samples[0] for p in ROWS[row_name].parameters if p.default is None}
    weights = function(shape_of(row_name, (300, 101)), dtype="float64", **keywords, **required)
    assert weights.device.type == "cuda"
    expected = values(make("torch", row_name, (300, 101), "float64", 5))
    scale = 0.0 if ROWS[row_name].distribution in ("uniform", "fixed") else 1e-12
    np.testing.assert_allclose(weights.cpu().numpy(), expected, rtol=scale, atol=scale)


# (the call on a backend, the error, a part of its message)
BAD_CALLS = {
    "length is negative": (lambda b: b.uniform((3, -1), seed=0), ValueError, "must not hold negative lengths"),
    "length is a float": (lambda b: b.uniform((3, 2.0), seed=0), TypeError, "shape must hold ints, got 2.0"),
    "length is a bool": (lambda b: b.uniform((3, True), seed=0), TypeError, "shape must hold ints, got True"),
    "shape is a bool": (lambda b: b.uniform(True, seed=0), TypeError, "shape must hold ints, got True"),
    "shape is a string": (lambda b: b.zeros("34"), TypeError, "an int or a tuple of ints, got '34'"),
    "shape is None": (lambda b: b.zeros(None), TypeError, "an int or a tuple of ints, got None"),
    "shape is too long": (lambda b: b.zeros((1,) * 65), ValueError, "65 dimensions; at most 64"),
    "seed is a float": (lambda b: b.uniform(3, seed=1.0), TypeError, r"0 <= seed < 2\*\*64, got 1.0 of type float"),
    "seed is a bool": (lambda b: b.uniform(3, seed=True), TypeError, r"0 <= seed < 2\*\*64, got True of type bool"),
    "seed is None": (lambda b: b.uniform(3, seed=None), TypeError, "got None of type NoneType"),
    "seed is negative": (lambda b: b.uniform(3, seed=-1), ValueError, r"0 <= seed < 2\*\*64, got -1"),
    "seed is too large": (lambda b: b.uniform(3, seed=2**64), ValueError, "got 18446744073709551616"),
    "seed is missing": (lambda b: b.uniform(3), TypeError, "seed"),
    "stream is bytes": (
        lambda b: b.uniform(3, seed=0, stream=b"w"),
        TypeError,
        "stream must be a str or None, got b.w.",
    ),
    "stream is a number": (lambda b: b.normal(3, seed=0, stream=1), TypeError, "stream must be a str or None, got 1"),
    "value is missing": (lambda b: b.constant(3), TypeError, "value"),
    "dtype is no float": (lambda b: b.uniform(3, seed=0, dtype="int32"), TypeError, "takes .*float32, float64"),
    "dtype is unknown": (lambda b: b.zeros(3, dtype="float31"), TypeError, "takes .*float32, float64"),
    "dtype is None": (lambda b: b.zeros(3, dtype=None), TypeError, "takes .*float32, float64"),
    "low above high": (lambda b: b.uniform(3, seed=0, low=1, high=0), ValueError, "low must be below high"),
    "low is high": (lambda b: b.uniform(3, seed=0, low=1, high=1), ValueError, "low must be below high"),
    "low is high in float32": (
        lambda b: b.uniform(3, seed=0, low=1, high=1 + 1e-9),
        ValueError,
        "below high in float32",
    ),
    "high - low overflows": (lambda b: b.uniform(3, seed=0, low=-3e38, high=3e38), ValueError, "overflows float32"),
    "high overflows": (lambda b: b.uniform(3, seed=0, high=1e39), ValueError, "high=1e[+]39 overflows float32"),
    "low is nan": (lambda b: b.uniform(3, seed=0, low=math.nan), ValueError, "low must be finite"),
    "high is inf": (lambda b: b.uniform(3, seed=0, high=math.inf), ValueError, "high must be finite"),
    "high is beyond float64": (lambda b: b.uniform(3, seed=0, high=10**400), ValueError, "high must be finite"),
    "low is a string": (lambda b: b.uniform(3, seed=0, low="0"), TypeError, "low must be a real number"),
    "low is complex": (lambda b: b.uniform(3, seed=0, low=0j), TypeError, "low must be a real number"),
    "std is negative": (lambda b: b.normal(3, seed=0, std=-1.0), ValueError, "std must not be negative, got -1.0"),
    "std is nan": (lambda b: b.normal(3, seed=0, std=math.nan), ValueError, "std must be finite"),
    "std overflows": (lambda b: b.normal(3, seed=0, std=1e38), ValueError, "float32 ends at 3.40282e[+]38"),
    "std is a bool": (lambda b: b.normal(3, seed=0, std=True), TypeError, "std must be a real number"),
    "value is nan": (lambda b: b.constant(3, value=math.nan), ValueError, "value must be finite"),
    "value overflows": (lambda b: b.constant(3, value=1e39), ValueError, "value=1e[+]39 overflows float32"),
    "gain of a named case is negative": (
        lambda b: b.he_normal((3, 3), seed=0, gain=-1),
        ValueError,
        "gain must not be",
    ),
    "scale is zero": (
        lambda b: b.variance_scaling((3, 3), seed=0, scale=0.0),
        ValueError,
        "variance_scaling requires scale > 0, got scale=0.0, mode='fan_in'",
    ),
    "scale is negative": (lambda b: b.variance_scaling((3, 3), seed=0, scale=-1), ValueError, "scale > 0, got"),
    "scale is nan": (lambda b: b.variance_scaling((3, 3), seed=0, scale=math.nan), ValueError, "scale must be finite"),
    "scale overflows": (
        lambda b: b.variance_scaling((3, 3), seed=0, scale=1e300),
        ValueError,
        "overflows float32",
    ),
    "fans of a vector to scale": (lambda b: b.variance_scaling(3, seed=0), ValueError, "at least 2 dimensions"),
    "mode is unknown": (
        lambda b: b.variance_scaling((3, 3), seed=0, mode="fan_max"),
        ValueError,
        "mode must be one of 'fan_in', 'fan_out', 'fan_avg', 'fan_geo_avg', got 'fan_max'",
    ),
    "gain is nan": (lambda b: b.orthogonal((3, 3), seed=0, gain=math.nan), ValueError, "gain must be finite"),
    "gain of a uniform overflows": (
        lambda b: b.he_uniform((3, 3), seed=0, gain=1e308),
        ValueError,
        "overflows float32",
    ),
    "gain of a normal overflows": (lambda b: b.he_normal((3, 3), seed=0, gain=1e308), ValueError, "float32 ends at"),
    "fans of a vector": (
        lambda b: b.xavier_uniform((3,), seed=0),
        ValueError,
        r"at least 2 dimensions, got shape \(3,\)",
    ),
    "fans of a number": (lambda b: b.he_normal((), seed=0), ValueError, r"at least 2 dimensions, got shape \(\)"),
    "orthogonal vector": (lambda b: b.orthogonal(3, seed=0), ValueError, r"at least 2 dimensions, got shape \(3,\)"),
    "orthogonal number": (lambda b: b.orthogonal((), seed=0), ValueError, r"at least 2 dimensions, got shape \(\)"),
    "orthogonal empty vector": (lambda b: b.orthogonal((0,), seed=0), ValueError, "at least 2 dimensions"),
    "eye vector": (lambda b: b.eye((3,)), ValueError, r"exactly 2 dimensions, got shape \(3,\)"),
    "eye of a convolution": (lambda b: b.eye((3, 3, 1)), ValueError, "exactly 2 dimensions"),
    "sparsity is missing": (lambda b: b.sparse((3, 3), seed=0), TypeError, "sparsity"),
    "sparsity is negative": (
        lambda b: b.sparse((3, 3), seed=0, sparsity=-0.1),
        ValueError,
        "sparse requires 0 <= sparsity <= 1, got sparsity=-0.1",
    ),
    "sparsity is above 1": (lambda b: b.sparse((3, 3), seed=0, sparsity=1.01), ValueError, "0 <= sparsity <= 1"),
    "sparsity is nan": (lambda b: b.sparse((3, 3), seed=0, sparsity=math.nan), ValueError, "sparsity must be finite"),
    "std of sparse is negative": (
        lambda b: b.sparse((3, 3), seed=0, sparsity=0.5, std=-1),
        ValueError,
        "std must not be negative, got -1",
    ),
    "std of sparse overflows": (
        lambda b: b.sparse((3, 3), seed=0, sparsity=0.5, std=1e38),
        ValueError,
        "float32 ends at 3.40282e[+]38",
    ),
    "sparse vector": (lambda b: b.sparse(3, seed=0, sparsity=0.5), ValueError, "exactly 2 dimensions"),
    "sparse convolution": (lambda b: b.sparse((3, 3, 1), seed=0, sparsity=0.5), ValueError, "exactly 2 dimensions"),
    "sparse is too large": (lambda b: b.sparse((2**30, 2**30), seed=0, sparsity=0.5), MemoryError, "sparse of shape"),
    "dirac matrix": (
        lambda b: b.dirac((3, 3)),
        ValueError,
        r"dirac needs a shape \(out, in, \*kernel\) of 3 to 5 dimensions, got shape \(3, 3\)",
    ),
    "dirac in 4 dimensions": (lambda b: b.dirac((1,) * 6), ValueError, "of 3 to 5 dimensions"),
    "groups do not divide": (
        lambda b: b.dirac((6, 3, 3), groups=4),
        ValueError,
        r"groups must divide the 6 outputs of shape \(6, 3, 3\), got groups=4",
    ),
    "groups is zero": (lambda b: b.dirac((6, 3, 3), groups=0), ValueError, "groups must be 1 or more, got 0"),
    "groups is negative": (lambda b: b.dirac((6, 3, 3), groups=-2), ValueError, "groups must be 1 or more, got -2"),
    "groups is a float": (lambda b: b.dirac((6, 3, 3), groups=2.0), TypeError, "groups must be an int, got 2.0"),
    "groups is a bool": (lambda b: b.dirac((6, 3, 3), groups=True), TypeError, "groups must be an int, got True"),
    "dirac of ints": (lambda b: b.dirac((6, 3, 3), dtype="int64"), TypeError, "takes .*float32, float64"),
    "delta_orthogonal matrix": (lambda b: b.delta_orthogonal((3, 3), seed=0), ValueError, "of 3 to 5 dimensions"),
    "delta_orthogonal with more inputs": (
        lambda b: b.delta_orthogonal((3, 4, 1), seed=0),
        ValueError,
        r"needs in <= out in the shape \(out, in, \*kernel\), got shape \(3, 4, 1\)",
    ),
    "gain of delta_orthogonal overflows": (
        lambda b: b.delta_orthogonal((3, 3, 1), seed=0, gain=1e39),
        ValueError,
        "gain=1e[+]39 overflows float32",
    ),
    "too large": (
        lambda b: b.uniform((2**30, 2**30), seed=0),
        MemoryError,
        "uniform of shape .* needs 4398046511104 MiB",
    ),
    "far too large": (lambda b: b.he_normal((10**200, 10**200), seed=0), MemoryError, "he_normal of shape"),
    "too large beside a zero": (lambda b: b.zeros((0, 2**62, 2**62)), MemoryError, "zeros of shape"),
}


@pytest.mark.parametrize("backend", gradmark.BACKENDS)
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_told_what_is_accepted(backend, case):
    call, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        call(gradmark.backend(backend))


@pytest.mark.parametrize(("backend", "dtype"), [pair for pair in DTYPES if pair[1] == "float16"])
def test_weights_beyond_float16_are_refused(backend, dtype):
    functions = gradmark.backend(backend)
    with pytest.raises(ValueError, match=r"high=70000\.0 overflows float16, which ends at 65504"):
        functions.uniform(3, seed=0, dtype=dtype, high=70000.0)
    with pytest.raises(ValueError, match="float16 ends at 65504"):
        functions.normal(3, seed=0, dtype=dtype, std=10000.0)
    with pytest.raises(ValueError, match=r"variance_scaling: .* overflows float16"):
        functions.variance_scaling((3, 3), seed=0, dtype=dtype, scale=1e12)
    with pytest.raises(ValueError, match=r"sparse: .* float16 ends at 65504"):
        functions.sparse((3, 3), seed=0, dtype=dtype, sparsity=0.5, std=10000.0)
    with pytest.raises(ValueError, match=r"delta_orthogonal: gain=70000\.0 overflows float16"):
        functions.delta_orthogonal((3, 3, 3), seed=0, dtype=dtype, gain=70000.0)
    # float32 holds high - low.
    assert np.isfinite(values(functions.uniform(1000, seed=0, dtype=dtype, low=-65504, high=65504))).all()


def test_fans_refuses_what_is_no_weight():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got shape \(3,\)"):
        fans(3)
    with pytest.raises(TypeError, match="shape must hold ints"):
        fans((3, 2.5))


def sampled(row_name):
    """Parameters at which a row is tested: the defaults, and each of the samples in turn."""
    row = ROWS[row_name]
    return [{}, *({p.name: sample} for p in row.parameters for sample in p.samples)]
