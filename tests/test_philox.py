"""The stream of random numbers: published answers, equal bits in all backends, and nothing but seed and index in it."""

import inspect
import platform
import re

import numba
import numpy as np
import pytest
import torch
from numba import types

from gradmark.numerics import philox, philox_numba, philox_numpy, philox_torch

STREAMS = {"numpy": philox_numpy, "numba": philox_numba, "torch": philox_torch}
FILLS = ("fill_uniform", "fill_normal")
DTYPES = ("float32", "float64")
ODD_SIZE = 10**6 + 7
SEED = 0x123456789ABCDEF0

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Counter, key, words of philox4x32 with 10 rounds, from the file kat_vectors of Random123 (D. E. Shaw Research)."""


def words_numpy(counter, key):
    return [int(w[0]) for w in philox_numpy.block(*(np.array([c], np.uint64) for c in counter), *key)]


def words_numba(counter, key):
    block = philox_numba.block

    @numba.njit
    def compiled(c0, c1, c2, c3, k0, k1):
        return block(c0, c1, c2, c3, k0, k1)

    return [int(w) for w in compiled(*map(np.uint64, (*counter, *key)))]


def words_torch(counter, key):
    return [int(w) for w in philox_torch.block(*(torch.tensor(c, dtype=torch.int64) for c in counter), *key)]


def fill(backend, name, size, dtype, first=0, seed=SEED, a=0.0, b=1.0):
    """The elements first, ..., first + size - 1 as a NumPy array, computed by a backend."""
    out = torch.empty(size, dtype=getattr(torch, dtype)) if backend == "torch" else np.empty(size, dtype)
    getattr(STREAMS[backend], name)(out, first, seed, a, b)
    return np.asarray(out)


@pytest.mark.parametrize("words", [words_numpy, words_numba, words_torch])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_blocks_are_the_published_ones(words, counter, key, expected):
    assert words(counter, key) == list(expected)


def reference_uniform(index, seed, dtype):
    """u of one element, from its definition, in Python's integers."""
    per_block = {"float32": 4, "float64": 2}[dtype]
    block = index // per_block
    words = words_numpy((block & 0xFFFFFFFF, block >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    if dtype == "float32":
        return (words[index % 4] >> 8) / 2**24
    a, b = words[2 * (index % 2) : 2 * (index % 2) + 2]
    return ((a >> 5) * 2**26 + (b >> 6)) / 2**53


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1, 2**32 - 3, 2**34 - 2, 2**40 + 3])
def test_elements_follow_their_definition(backend, dtype, first):
    values = fill(backend, "fill_uniform", 9, dtype, first)
    assert values.tolist() == [reference_uniform(first + i, SEED, dtype) for i in range(9)]


@pytest.mark.parametrize("backend", STREAMS)
def test_normals_follow_their_definition(backend):
    words = words_numpy((5, 0, 0, 0), (SEED & 0xFFFFFFFF, SEED >> 32))
    u1, u2 = (words[2] + 1) / 2**32, words[3] / 2**32
    radius, angle = np.sqrt(-2 * np.log(u1)), 2 * np.pi * u2
    expected = [3 + 2 * radius * np.cos(angle), 3 + 2 * radius * np.sin(angle)]
    found = fill(backend, "fill_normal", 2, "float32", 22, a=3.0, b=2.0)
    np.testing.assert_array_max_ulp(found, np.array(expected, np.float32), 1)


# The second block index is beyond 2^32: the counter's upper word is used.
@pytest.mark.parametrize("first", [0, 3, 2**34 + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_uniforms_have_equal_bits_in_all_backends(dtype, first):
    reference = fill("numpy", "fill_uniform", ODD_SIZE, dtype, first, a=-0.3, b=0.7)
    for backend in ("numba", "torch"):
        found = fill(backend, "fill_uniform", ODD_SIZE, dtype, first, a=-0.3, b=0.7)
        assert found.tobytes() == reference.tobytes(), backend


# Measured over 1e6 elements at six offsets, against NumPy: 0 ULP in float32; in float64 2 (Numba) and 3 (PyTorch).
# The bounds are for other libms: cos and sin within 1 ULP each, of sqrt's and log's 1.5, and the rounding of products.
# In float32 the rounding of a float64 result may differ where it is nearly a tie.
@pytest.mark.parametrize(("dtype", "ulp"), [("float32", 1), ("float64", 5)])
@pytest.mark.parametrize("first", [0, 2**34 + 5])
def test_normals_agree_to_a_few_ulp(dtype, ulp, first):
    reference = fill("numpy", "fill_normal", ODD_SIZE, dtype, first)
    for backend in ("numba", "torch"):
        found = fill(backend, "fill_normal", ODD_SIZE, dtype, first)
        error = np.abs(found - reference) / np.spacing(np.abs(reference))
        assert error.max() <= ulp, backend


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_part_can_be_computed_by_itself(backend, name, dtype):
    # Larger than every backend's chunk, so that parts begin and end within chunks and across them.
    whole = fill(backend, name, 200_003, dtype)
    for begin, end in [(0, 1), (1, 2), (3, 3), (2, 5), (5, 70_001), (65_535, 200_003), (99_999, 199_998)]:
        assert fill(backend, name, end - begin, dtype, begin).tobytes() == whole[begin:end].tobytes()


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(name, dtype):
    threads = numba.get_num_threads()
    try:
        results = []
        for count in {1, threads}:
            numba.set_num_threads(count)
            results.append(fill("numba", name, ODD_SIZE, dtype).tobytes())
    finally:
        numba.set_num_threads(threads)
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_serial_and_parallel_loops_give_equal_bits(name, dtype):
    fill("numba", name, 1, dtype)
    key = (name.removeprefix("fill_"), dtype)
    scalar = np.dtype(dtype).type if name == "fill_uniform" else np.float64
    results = []
    for loop in philox_numba._compiled[key]:
        out = np.empty(ODD_SIZE, dtype)
        loop(out, 3, np.uint64(1), np.uint64(2), scalar(0.25), scalar(0.5), scalar(0.75))
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("name", FILLS)
def test_every_bit_of_the_seed_matters(backend, name):
    seeds = [0, *(1 << bit for bit in range(64))]
    streams = {fill(backend, name, 8, "float32", seed=seed).tobytes() for seed in seeds}
    assert len(streams) == len(seeds)


@pytest.mark.parametrize("backend", STREAMS)
def test_the_last_float_before_high_is_the_largest(backend):
    # Four floats apart: 1 + span u rounds to high for every u > 7/8, unless it is clamped.
    low, high = 1.0, 1.0 + 2.0**-21
    assert np.float32(low) + np.float32(high - low) * np.float32(0.9) == np.float32(high)
    values = fill(backend, "fill_uniform", 1000, "float32", a=low, b=high)
    assert sorted(set(values.tolist())) == [low + k * 2.0**-23 for k in range(4)]


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float64", 53)])
def test_the_largest_normal_is_that_of_the_smallest_u1(dtype, bits):
    for box_muller, u1, u2 in (
        (philox_numpy.box_muller, np.array([2.0**-bits]), np.array([0.0])),
        (philox_torch.box_muller, torch.tensor([2.0**-bits], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),
        (philox_numba.box_muller, 2.0**-bits, 0.0),
    ):
        assert np.asarray(box_muller(u1, u2)[0]).item() == pytest.approx(philox.LARGEST_NORMAL[dtype], rel=1e-14)


def test_all_streams_have_the_same_functions():
    def public(module):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = {name: f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}
        order = sorted(own, key=lambda name: own[name].__code__.co_firstlineno)
        return [(name, list(inspect.signature(own[name]).parameters)) for name in order]

    assert public(philox_numpy) == public(philox_numba) == public(philox_torch)
    assert [name for name, _ in public(philox_numpy)] == [
        "fill_uniform",
        "fill_normal",
        "fill_gumbel",
        "box_muller",
        "block",
    ]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names the vector registers of x86-64")
@pytest.mark.parametrize(
    ("elements", "per_block", "scalar"),
    [(philox_numba._uniform_32, 4, types.float32), (philox_numba._uniform_64, 2, types.float64)],
)
def test_the_uniform_loop_is_vectorized(elements, per_block, scalar):
    # Whether LLVM vectorizes it hangs on what Numba inlines; a loop that is not is several times slower.
    out = types.Array(scalar, 1, "C")
    compiled = numba.njit(error_model="numpy")(philox_numba._loop(elements, per_block))
    compiled.compile(types.void(out, types.int64, types.uint64, types.uint64, scalar, scalar, scalar))
    (assembly,) = compiled.inspect_asm().values()
    assert re.search(r"pmuludq\s.*%[xyz]mm", assembly)
