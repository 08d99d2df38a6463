"""`gradmark.nn.init` on one process: the weights of the backends, in tensors of every kind.

Sharded tensors are tested in test_nn_sharded.py.
"""

import doctest
import functools
import inspect
import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import gradmark
from gradmark import catalog
from gradmark.nn import _fill, _shards, init
from gradmark.nn._shards import Part, runs, sharded
from gradmark.numerics.philox import stream_seed

ROWS = {row.name: row for row in catalog.INITIALIZERS}
LOCAL = [
    name for name, row in ROWS.items() if row.case_of({p.name: p.usual for p in row.parameters}).name in _fill.FILLS
]
RANDOM = [name for name in LOCAL if ROWS[name].seeded]
DTYPES = gradmark.backend("torch").dtypes
OF_TORCH = sorted({name for name in dir(torch.nn.init) if name.endswith("_")} & set(dir(init)))
SEED = 20260102


def shape_of(row_name, shape):
    """The shape, or one with a kernel where the row needs it."""
    return shape if ROWS[row_name].dimensions[0] <= len(shape) else (*shape, 3)


def required(row_name):
    """The parameters without a default at their first samples, as the catalog names them."""
    return {p.name: p.samples[0] for p in ROWS[row_name].parameters if p.default is None}


def expected(row_name, shape, dtype="float32", seed=SEED, **parameters):
    """The weights of the torch backend, which other tests compare with the other backends'."""
    keywords = {"seed": seed} if ROWS[row_name].seeded else {}
    function = getattr(gradmark.backend("torch"), row_name)
    return function(shape, dtype=dtype, **keywords, **{**required(row_name), **parameters})


def fill(row_name, tensor, **keywords):
    return getattr(init, f"{row_name}_")(tensor, *required(row_name).values(), seed=SEED, **keywords)


def same(tensor, weights):
    """Equal bits; NaN, where nothing was written, is equal to nothing."""
    return torch.equal(tensor.detach(), weights)


def empty(shape, dtype="float32"):
    return torch.full(shape, math.nan, dtype=getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_name", ROWS)
def test_a_tensor_gets_the_weights_of_the_backend(row_name, dtype):
    tensor = empty(shape_of(row_name, (303, 101)), dtype)
    assert fill(row_name, tensor) is tensor
    assert same(tensor, expected(row_name, tuple(tensor.shape), dtype))


@pytest.mark.parametrize("row_name", [name for name in ROWS if ROWS[name].distribution != "orthogonal"])
def test_bits_are_those_of_numpy(row_name):
    keywords = {"seed": SEED} if ROWS[row_name].seeded else {}
    shape = shape_of(row_name, (41, 37))
    for dtype in ("float16", "float32", "float64"):
        weights = getattr(gradmark.backend("numpy"), row_name)(shape, dtype=dtype, **keywords, **required(row_name))
        assert same(fill(row_name, empty(shape, dtype)), torch.from_numpy(weights))


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (3, 0), (48, 5, 3, 3)])
@pytest.mark.parametrize("row_name", ["uniform", "normal", "trunc_normal", "constant", "zeros"])
def test_shapes_of_any_number_of_dimensions(row_name, shape):
    assert same(fill(row_name, empty(shape)), expected(row_name, shape))


@pytest.mark.parametrize("row_name", RANDOM)
def test_fans_are_those_of_a_convolution(row_name):
    assert same(fill(row_name, empty((48, 5, 3, 3))), expected(row_name, (48, 5, 3, 3)))


NOT_CONTIGUOUS = {
    "transposed": lambda dtype: empty((700, 301), dtype).t(),
    "every second column": lambda dtype: empty((301, 1400), dtype)[:, ::2],
    "inner columns": lambda dtype: empty((301, 900), dtype)[:, 100:800],
    "channels last": lambda dtype: empty((301, 25, 4, 7), dtype).to(memory_format=torch.channels_last),
    "one row above a piece": lambda dtype: empty((70_000, 3), dtype).t(),
    "inner row above a piece": lambda dtype: empty((1, 2, 70_000, 3), dtype).permute(0, 1, 3, 2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", NOT_CONTIGUOUS)
def test_what_is_not_contiguous_is_filled_by_logical_index(layout, dtype):
    for row_name in ("he_normal", "trunc_normal", "constant"):
        tensor = NOT_CONTIGUOUS[layout](dtype)
        assert not tensor.is_contiguous()
        assert same(fill(row_name, tensor), expected(row_name, tuple(tensor.shape), dtype))


def test_only_the_view_is_written():
    whole = empty((50, 60))
    fill("normal", whole[:, 10:20])
    assert whole[:, :10].isnan().all()
    assert whole[:, 20:].isnan().all()


def test_a_negated_view_is_filled():
    tensor = torch.complex(torch.ones(5, 4), torch.ones(5, 4)).conj().imag
    assert tensor.is_neg()
    assert same(fill("normal", tensor), expected("normal", (5, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_name", RANDOM)
def test_bits_are_the_same_without_numba(row_name, dtype, monkeypatch):
    compiled = fill(row_name, empty((101, 77), dtype))
    monkeypatch.setattr(_fill, "_numba_is_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "gradmark.numerics.philox_numba", None)
    assert same(fill(row_name, empty((101, 77), dtype)), compiled)


def test_numba_fills_the_memory_of_the_tensor(monkeypatch):
    from gradmark.numerics import philox_numba

    filled = []
    monkeypatch.setattr(philox_numba, "fill_normal", lambda out, *rest: filled.append(out))
    for dtype in (torch.float32, torch.float64):
        tensor = torch.nn.Parameter(torch.empty(300, 1000, dtype=dtype))
        init.normal_(tensor, seed=0)
        assert filled.pop().ctypes.data == tensor.data_ptr()
    assert not filled


@pytest.mark.parametrize("bounds", [(-0.3, 0.1), (0.1, 0.3)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bounds_of_truncation_are_kept_in_half_precision(dtype, bounds):
    # Both are no numbers of these dtypes, and one rounds outwards.
    tensor = init.trunc_normal_(empty((300, 301), dtype), 0.0, 1.0, *bounds, seed=1)
    assert same(tensor, expected("trunc_normal", (300, 301), dtype, 1, a=bounds[0], b=bounds[1]))
    assert bounds[0] <= tensor.double().min()
    assert tensor.double().max() <= bounds[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_no_temporary_grows_with_the_weight(dtype):
    # torch's own profiler counts what its CPU allocator hands out.
    tensor = empty((2000, 2000), dtype)
    for target in (tensor, tensor.t()):
        fill("normal", target)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            fill("normal", target)
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
        assert allocated <= 0.25 * tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("row_name", LOCAL)
def test_streams_are_those_of_the_backend(row_name):
    tensor = fill(row_name, empty((20, 30)), stream="layers.0.weight")
    assert same(tensor, expected(row_name, (20, 30), seed=stream_seed(SEED, "layers.0.weight")))


@pytest.mark.parametrize("row_name", ["orthogonal", *LOCAL])
def test_autograd_is_told_of_the_change(row_name):
    leaf = torch.nn.Parameter(empty((8, 8)))
    version = leaf._version
    assert fill(row_name, leaf) is leaf
    assert leaf._version > version
    assert leaf.requires_grad
    assert leaf.is_leaf
    # A backward pass that needs the old values is refused.
    product = (leaf * leaf).sum()
    fill(row_name, leaf)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_mode():
    with torch.inference_mode():
        tensor = fill("normal", empty((3, 4)))
        assert same(tensor, expected("normal", (3, 4)))
    with pytest.raises(ValueError, match=r"inference mode.* give its clone\(\)"):
        fill("normal", tensor)


@pytest.mark.parametrize("row_name", ROWS)
def test_meta_tensors_are_returned_as_they_are(row_name):
    tensor = torch.empty(shape_of(row_name, (5, 4)), device="meta")
    assert fill(row_name, tensor) is tensor
    assert tensor.is_meta


def test_a_bad_argument_is_refused_on_the_meta_device_too():
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        init.he_normal_(torch.empty(4, device="meta"), seed=0)


def test_neither_the_generator_of_torch_nor_that_of_numpy_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for row_name in ROWS:
        fill(row_name, empty(shape_of(row_name, (6, 5))))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("name", OF_TORCH)
def test_parameters_are_those_of_torch(name):
    theirs = list(inspect.signature(getattr(torch.nn.init, name)).parameters.values())
    ours = list(inspect.signature(getattr(init, name)).parameters.values())
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = [(p.name, p.default) for p in theirs if p.name != "generator"]
    assert [(p.name, p.default) for p in positional][: len(wanted)] == wanted
    assert all(p.default is not p.empty for p in positional[len(wanted) :])
    assert [p.name for p in ours if p.kind is p.KEYWORD_ONLY] == ["seed", "stream"]


def test_the_functions_of_torch_are_here():
    assert {"uniform_", "normal_", "trunc_normal_", "constant_", "zeros_", "eye_", "orthogonal_"} <= set(OF_TORCH)
    assert {"xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"} <= set(OF_TORCH)


@pytest.mark.parametrize("row_name", ROWS)
def test_signatures_come_from_the_catalog(row_name):
    function = getattr(init, f"{row_name}_")
    row = ROWS[row_name]
    tensor, *parameters, seed, stream = inspect.signature(function).parameters.values()
    assert [tensor.name, seed.name, stream.name] == ["tensor", "seed", "stream"]
    renamed = init._NAMES_OF_TORCH.get(row_name, {})
    defaults = {p.name: None if p.default is p.empty else p.default for p in parameters}
    assert defaults == {renamed.get(p.name, p.name): p.default for p in row.parameters}
    assert (seed.default is seed.empty) == row.seeded
    assert function.__name__ == f"{row_name}_"
    assert function.__module__ == "gradmark.nn.init"


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(("nonlinearity", "slope"), [("leaky_relu", 0), ("leaky_relu", 0.3), ("relu", 0), ("tanh", 0)])
def test_kaiming_scales_as_torch_does(nonlinearity, slope, mode, monkeypatch):
    for name, fill_name in (("kaiming_uniform_", "fill_uniform"), ("kaiming_normal_", "fill_normal")):
        ours, theirs = [], []
        with monkeypatch.context() as patch:
            patch.setattr(_fill, "_draw", lambda *call, ours=ours: ours.append(call))
            getattr(init, name)(torch.empty(48, 5, 3, 3), slope, mode, nonlinearity, seed=0)
            for method in ("uniform_", "normal_"):
                patch.setattr(
                    torch.Tensor, method, lambda self, a, b, generator=None, theirs=theirs: theirs.append((a, b))
                )
            getattr(torch.nn.init, name)(torch.empty(48, 5, 3, 3), slope, mode, nonlinearity)
        ((asked, _, arguments, *_),) = ours
        assert asked == fill_name
        assert arguments == pytest.approx(theirs[0], rel=1e-14)


def test_kaiming_is_he():
    weights = init.kaiming_normal_(empty((30, 20)), a=0.2, seed=SEED)
    gain = torch.nn.init.calculate_gain("leaky_relu", 0.2)
    assert same(weights, expected("he_normal", (30, 20), gain=gain))
    square = init.kaiming_uniform_(empty((20, 20)), mode="fan_out", nonlinearity="relu", seed=SEED)
    assert same(square, expected("he_uniform", (20, 20)))


@pytest.mark.parametrize("name", [name for name in dir(init) if name != "initialize_"])
def test_the_example_in_the_docstring_runs(name):
    (example,) = doctest.DocTestFinder().find(getattr(init, name), name, globs={}, module=False)
    assert len(example.examples) == 3
    assert doctest.DocTestRunner().run(example).failed == 0
    described = {line.partition(" : ")[0] for line in getattr(init, name).__doc__.splitlines() if " : " in line}
    described = {part.strip() for names in described for part in names.split(",")}
    assert set(inspect.signature(getattr(init, name)).parameters) <= described


def test_functions_can_be_sent_to_other_processes():
    for name in dir(init):
        function = functools.partial(getattr(init, name))
        assert pickle.loads(pickle.dumps(function)).func is function.func


# (the call on a tensor of NaN, its shape and dtype, the error, a part of its message)
BAD_CALLS = {
    "no tensor": (lambda t: init.normal_(t.numpy(), seed=0), TypeError, "tensor must be a torch.Tensor, got"),
    "integers": (lambda t: init.zeros_(t.to(torch.int32)), TypeError, "dtype torch.int32; accepted: float16, bfloat16"),
    "complex numbers": (lambda t: init.normal_(t.to(torch.complex64), seed=0), TypeError, "dtype torch.complex64"),
    "truth values": (lambda t: init.zeros_(t > 0), TypeError, "dtype torch.bool; accepted"),
    "a sparse tensor": (lambda t: init.normal_(t.to_sparse(), seed=0), TypeError, "layout torch.sparse_coo; accepted"),
    "an expanded tensor": (lambda t: init.normal_(t[:1].expand(4, -1), seed=0), ValueError, "tensor has several elem"),
    "a number where fans are needed": (lambda t: init.he_normal_(t[0, 0], seed=0), ValueError, "at least 2 dimensions"),
    "a vector where fans are needed": (lambda t: init.xavier_uniform_(t[0], seed=0), ValueError, r"got shape \(5,\)"),
    "a vector for eye": (lambda t: init.eye_(t[0]), ValueError, "exactly 2 dimensions"),
    "a vector for orthogonal": (lambda t: init.orthogonal_(t[0], seed=0), ValueError, "at least 2 dimensions"),
    "no seed": (lambda t: init.normal_(t), TypeError, "seed"),
    "seed None": (lambda t: init.normal_(t, seed=None), TypeError, "seed must be an int"),
    "negative seed": (lambda t: init.normal_(t, seed=-1), ValueError, r"0 <= seed < 2\*\*64, got -1"),
    "stream of bytes": (lambda t: init.normal_(t, seed=0, stream=b"w"), TypeError, "stream must be a str or None"),
    "nan gain": (lambda t: init.he_normal_(t, math.nan, seed=0), ValueError, "gain must be finite"),
    "negative gain": (lambda t: init.he_uniform_(t, -1.0, seed=0), ValueError, "gain must not be negative"),
    "a gain that is text": (lambda t: init.he_normal_(t, "relu", seed=0), TypeError, "gain must be a real number"),
    "a above b": (lambda t: init.uniform_(t, 1.0, 0.0, seed=0), ValueError, "low must be below high"),
    "a above b, truncated": (lambda t: init.trunc_normal_(t, a=1.0, b=0.0, seed=0), ValueError, "a must be below b"),
    "beyond float16": (lambda t: init.normal_(t.half(), std=1e4, seed=0), ValueError, "float16 ends at 65504"),
    "beyond float32": (lambda t: init.constant_(t, 1e39), ValueError, "overflows float32"),
    "a mode that is none": (lambda t: init.kaiming_normal_(t, mode="fan", seed=0), ValueError, "'fan_in', 'fan_out'"),
    "a nonlinearity that is none": (
        lambda t: init.kaiming_normal_(t, nonlinearity="tanhh", seed=0),
        ValueError,
        "Unsupported nonlinearity tanhh",
    ),
    "an unknown keyword": (lambda t: init.normal_(t, sigma=2.0, seed=0), TypeError, "sigma"),
    "a generator": (lambda t: init.normal_(t, seed=0, generator=torch.Generator()), TypeError, "generator"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_told_what_is_accepted_and_nothing_is_written(case):
    call, error, message = BAD_CALLS[case]
    tensor = empty((4, 5))
    version = tensor._version
    with pytest.raises(error, match=message):
        call(tensor)
    assert tensor.isnan().all()
    assert tensor._version == version


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no 'normal'; it has .*he_normal_, .*initialize_"):
        getattr(init, "normal")  # noqa: B009
    assert set(dir(init)) == {"initialize_", "kaiming_normal_", "kaiming_uniform_", *(f"{name}_" for name in ROWS)}


def test_the_import_is_lazy():
    code = "import gradmark, sys; assert 'torch' not in sys.modules; gradmark.nn.init; assert 'torch' in sys.modules"
    code += "; assert 'torch.distributed.tensor' not in sys.modules and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_import_says_what_to_install():
    code = """
import importlib.util, gradmark
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
try:
    gradmark.nn
except gradmark.BackendUnavailableError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "torch is not installed: pip install 'gradmark[torch]'\n"


PLACEMENTS = [
    [Shard(0), Shard(0)],
    [Shard(0), Shard(1)],
    [Shard(1), Shard(0)],
    [Replicate(), Shard(1)],
    [_StridedShard(0, split_factor=3), Shard(0)],
    [_StridedShard(0, split_factor=2), Shard(1)],
    [Shard(1), _StridedShard(1, split_factor=2)],
]


@pytest.mark.parametrize("placements", PLACEMENTS, ids=str)
def test_parts_are_those_of_pytorch(placements):
    """Shape and first index by PyTorch's own rule; and together the parts hold each element equally often."""
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    for rows, columns in [(1, 1), (2, 5), (7, 4), (12, 12), (13, 30), (36, 1)]:
        found = np.zeros((rows, columns), int)
        for coordinate in np.ndindex(2, 3):
            part = sharded((rows, columns), (2, 3), coordinate, placements)
            arguments = (rows, columns), (2, 3), list(coordinate), placements
            shape, offset = _compute_local_shape_and_global_offset(*arguments)
            assert part.local_shape == tuple(shape)
            if 0 not in shape:
                assert tuple(intervals[0].start for intervals in part.intervals) == tuple(offset)
            found[np.ix_(*([i for interval in intervals for i in interval] for intervals in part.intervals))] += 1
        assert found.min() == found.max()


def test_a_split_that_changes_nothing_is_no_split():
    part = sharded((8, 3), (1, 1), (0, 0), [_StridedShard(0, split_factor=4), Shard(0)])
    assert part.whole
    assert runs(part)[:2] == (1, 24)


def test_placements_that_are_none_of_these_are_refused():
    with pytest.raises(ValueError, match=r"placement Partial.* holds no elements.* accepted: Shard and Replicate"):
        sharded((8, 3), (2,), (0,), [Partial()])


def test_another_order_of_sharding_is_refused():
    # PyTorch has no public way yet to make such a DTensor.
    order = (SimpleNamespace(tensor_dim=0, mesh_dims=(1, 0)),)
    with pytest.raises(ValueError, match="accepted: mesh dimensions from left to right"):
        _shards._check_order(SimpleNamespace(_spec=SimpleNamespace(shard_order=order)))


def test_runs_of_any_part_are_its_elements():
    """Against an index array of the whole weight, for parts that no placement gives as well."""
    shape = (7, 5, 4, 6)
    whole = np.arange(math.prod(shape)).reshape(shape)
    cuts = [(range(7),), (range(2, 3),), (range(1, 3), range(4, 6)), (range(3, 6), range(0, 2), range(6, 7))]
    of_others = [(range(n),) for n in shape[1:]]
    for first in cuts:
        for dimension, cut in [(1, (range(1, 4),)), (2, (range(0, 1), range(2, 4))), (3, (range(4, 6), range(0, 4)))]:
            intervals = [first, *of_others]
            intervals[dimension] = cut
            part = Part(shape, tuple(intervals))
            index = whole[np.ix_(*(np.concatenate([*map(np.array, i)]) for i in intervals))]
            assert part.local_shape == index.shape
            layout = runs(part)
            found = layout.first(0, layout.number)[:, None] + np.arange(layout.length)
            assert found.reshape(index.shape).tolist() == index.tolist()
            middle = layout.first(layout.number // 3, layout.number // 2)
            assert middle.tolist() == found[layout.number // 3 : layout.number // 2, 0].tolist()
    assert runs(Part(shape, tuple((range(n),) for n in shape)))[:2] == (1, math.prod(shape))
